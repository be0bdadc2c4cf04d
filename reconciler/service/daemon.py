"""The daemon: takes the lead, has the jobs run by their schedule, tells systemd and monitoring how it is.

Design rules
- No business rule is here: what a job does is its own matter, and what becomes of its failure the crew's.
- The main thread only watches: the lead, signals, hung jobs, the watchdog. It waits for nobody for longer than a
  tick: whatever is asked of Twilio here is asked in another thread (`_await`), while the watch goes on.
- What heals is waited for: a database or a Twilio that is away fails runs, and the next ones go on. What does not heal
  ends the process with the exit code that says so: credentials, privileges, a schema that is not ours.
- Ready means that the database is there, migrated, and that Twilio accepted the credentials.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

from reconciler import __version__, metrics
from reconciler.errors import ConfigError, ExitCode, ReconcilerError, Retriable, Unavailable
from reconciler.logs import get_logger
from reconciler.service.http_server import Health, StatusPage, Web
from reconciler.service.leadership import Leadership
from reconciler.service.systemd import Notifier
from reconciler.service.workers import Crew, Setup
from reconciler.settings import Settings
from reconciler.status.html_page import CONTENT_SECURITY_POLICY, read_page
from reconciler.twilio.accounts import find_accounts, named_accounts
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.listing import Listing

TICK: Final = 1.0  # seconds between two looks of the main thread
GRACE_TO_STOP: Final = 8.0  # seconds for the pages in hand; systemd waits 15
STATUS_EVERY: Final = 10.0  # seconds
ACCOUNTS_READ_EVERY: Final = 1800.0  # seconds: a new subaccount is looked after within the hour
TRIED_AGAIN_AFTER: Final = 5.0  # seconds, what the main thread wants to know of Twilio and did not learn
PATIENCE_GROWS: Final = 2.0  # times, each time the accounts could not be read

_A_WHILE: Final = timedelta(minutes=5)  # that systemd is asked to wait; said again long before it is over

_ONCE: Final = threading.Event()  # as the `stop` of a source: no repeats, the next tick will do
_ONCE.set()

log = get_logger(__name__)

T = TypeVar("T")


def serve(read_settings: Callable[[], Settings], prepare: Callable[[Settings], str], notifier: Notifier) -> ExitCode:
    """Run until a signal, or something that cannot heal, ends it; returns how it ended.

    `read_settings` reads them, and for a reload again, also the files they name. `prepare` gives the database's URL,
    migrated.

    Raises:
        ConfigError: the settings, or an address that cannot be listened on.
        Refused: the database turned us away, or lacks privileges for the migrations.
        SchemaError: the schema is not one that this version can work with.

    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    # The default would end nothing where we are the first process of a container.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settings = read_settings()
    credentials = settings.credentials()
    daemon: Daemon | None = None
    awaited = Health(is_alive=True, is_ready=False, reason="not ready: waiting for the database")
    web = None
    if settings.http_listen is not None:
        page = StatusPage(lambda: _status_page(daemon), CONTENT_SECURITY_POLICY)
        web = Web(settings.http_listen, health=lambda: awaited if daemon is None else daemon.health(), status_page=page)
        web.start()
    metrics.build.info({"version": __version__, "python": platform.python_version()})
    log.info("daemon.started", version=__version__, http_port=None if web is None else web.port)
    try:
        with _patience_of(notifier):
            url = _until_prepared(lambda: prepare(settings), notifier)
        client = TwilioClient.from_settings(settings)
        setup = Setup(settings, url, client, named_accounts(settings, credentials.account_sid))
        daemon = Daemon(setup, read_settings, prepare, notifier)
        code = daemon.run()
    except KeyboardInterrupt:  # before there was anything to finish; a migration heals
        notifier.stopping("told to, while waiting for the database")
        log.info("daemon.stopped", exit_code=0, unfinished=[], uptime_seconds=0)
        code = ExitCode.DONE
    if web is not None:
        web.close()
    if daemon is not None and daemon.unfinished:
        # The interpreter would wait for their threads.
        sys.stderr.flush()
        os._exit(code)
    return code


def _status_page(daemon: Daemon | None) -> str:
    if daemon is None:
        raise Unavailable("waiting for the database")
    setup, health = daemon.setup(), daemon.health()
    return read_page(setup.url, setup.settings, state=health.reason, is_well=health.is_ready)


@contextmanager
def _patience_of(notifier: Notifier) -> Iterator[None]:
    """Ask systemd to go on waiting, also in the middle of a long migration."""
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.wait(_A_WHILE.total_seconds() / 5):
            notifier.extend_timeout(_A_WHILE)

    notifier.extend_timeout(_A_WHILE)
    threading.Thread(target=ask, name="patience", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _until_prepared(prepare: Callable[[], str], notifier: Notifier) -> str:
    """Wait for the database."""
    while True:
        try:
            return prepare()
        except Retriable as exc:
            notifier.status(f"waiting for the database: {exc}")
            log.warning("database.awaited", error=str(exc))
        time.sleep(2)


class _Leaving(Exception):
    """Told to end while something was awaited."""


class Daemon:
    """The lead, the watch and the crew; `run` in the main thread. `unfinished` are the jobs it left behind."""

    def __init__(
        self,
        setup: Setup,
        read_settings: Callable[[], Settings],
        prepare: Callable[[Settings], str],
        notifier: Notifier,
    ) -> None:
        self._setup = setup
        self._read_settings = read_settings
        self._prepare = prepare
        self._notifier = notifier
        self._signals: SimpleQueue[int] = SimpleQueue()  # its put may interrupt itself, an Event's set may not
        self._lead = Leadership(setup.url)
        self._crew = Crew(self.setup, on_fatal=self._end)
        self._exit_code: ExitCode | None = None
        self._is_ready = False
        self._lead_trouble = self._twilio_trouble = ""
        self._ticked_at = time.monotonic()
        self._told_alive = self._told_status = 0.0
        self._told_ready = False
        self._accounts_due = self._credentials_due = 0.0
        self._accounts_patience = TRIED_AGAIN_AFTER
        self.unfinished: list[str] = []

    def setup(self) -> Setup:
        """What the configuration amounts to now."""
        return self._setup

    def run(self) -> ExitCode:
        """Serve until a signal or what cannot heal; the pages in hand are finished, for a while."""
        started = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        try:
            while self._exit_code is None:
                self._watch()
                self._look_around()
                if self._next_signal(wait=TICK) == signal.SIGHUP:
                    self._reload()
        except _Leaving:
            pass
        except Exception as exc:
            log.exception("program.failed", kind=type(exc).__name__)
            self._exit_code = ExitCode.BUG
        return self._leave(started)

    def health(self) -> Health:
        """How we are; from memory."""
        is_alive = time.monotonic() - self._ticked_at < 60
        if (stalled := self._crew.stalled()) is not None:
            return Health(is_alive=False, is_ready=False, reason=f"{stalled} makes no progress")
        if not self._is_ready:
            trouble = self._lead_trouble or self._twilio_trouble or "asking Twilio"
            return Health(is_alive, is_ready=False, reason=f"not ready: {trouble}")
        if not self._lead.leads:
            reason = self._lead_trouble or "standing by: another daemon leads"
            return Health(is_alive, is_ready=False, reason=reason)
        if self._crew.hot_at is None:
            return Health(is_alive, is_ready=False, reason="hot has not succeeded yet")
        ago = time.monotonic() - self._crew.hot_at
        patience = 3 * self._setup.settings.hot_interval + timedelta(seconds=30)
        if ago > patience.total_seconds():
            return Health(is_alive, is_ready=False, reason=f"hot has not succeeded for {ago:.0f} s")
        return Health(is_alive, is_ready=True, reason=f"leading, hot {ago:.0f} s ago")

    # What cannot wait

    def _watch(self) -> None:
        """The lead, the watchdog, the line of status."""
        self._ticked_at = now = time.monotonic()
        self._check_lead()
        watchdog = self._notifier.watchdog
        is_due = watchdog is not None and now - self._told_alive > watchdog.total_seconds() / 3
        if is_due and self._crew.stalled() is None:
            self._told_alive = now
            self._notifier.alive()
        health = self.health()
        if health.is_ready != self._told_ready or now - self._told_status > STATUS_EVERY:
            self._told_ready, self._told_status = health.is_ready, now
            self._notifier.status(health.reason)

    def _check_lead(self) -> None:
        led, self._lead_trouble = self._lead.leads, ""
        try:
            leads = self._lead.check()
        except Retriable as exc:
            leads, self._lead_trouble = False, str(exc)
        except ReconcilerError as exc:
            self._end(exc)
            return
        metrics.leading.set(leads)
        if leads and not led:
            log.info("lead.acquired")
            self._accounts_due = 0.0
            self._crew.work()
        elif led and not leads:
            log.warning("lead.dropped", error=self._lead_trouble)
            self._crew.rest()

    def _await(self, question: Callable[[], T]) -> T:
        """Ask in another thread, and watch until the answer is there; raises what `question` does."""
        answer: Future[T] = Future()

        def ask() -> None:
            try:
                answer.set_result(question())
            except Exception as exc:
                answer.set_exception(exc)

        threading.Thread(target=ask, name="asking", daemon=True).start()
        while self._exit_code is None:
            if wait([answer], TICK).done:
                return answer.result()
            self._watch()
        raise _Leaving

    # What may wait

    def _look_around(self) -> None:
        now = time.monotonic()
        if self._lead.leads and now >= self._accounts_due:
            if self._read_accounts():
                self._accounts_patience, self._accounts_due = TRIED_AGAIN_AFTER, now + ACCOUNTS_READ_EVERY
            else:
                self._accounts_due = now + self._accounts_patience
                self._accounts_patience = min(ACCOUNTS_READ_EVERY, self._accounts_patience * PATIENCE_GROWS)
        if self._is_ready:
            return
        setup = self._setup
        self._notifier.extend_timeout(_A_WHILE)
        # Who leads learns it by its first run of hot.
        main = setup.accounts.main
        is_told = self._lead.leads and main in setup.accounts.sids
        if not setup.client.has_worked and not is_told and now >= self._credentials_due:
            self._credentials_due = now + TRIED_AGAIN_AFTER
            try:
                self._await(lambda: _try_credentials(setup.client, main))
            except Retriable as exc:
                self._twilio_trouble = str(exc)
            except ReconcilerError as exc:
                self._end(exc)
        if setup.client.has_worked:
            self._is_ready = True
            self._notifier.ready(self.health().reason)
            log.info("daemon.readied", leads=self._lead.leads)

    def _read_accounts(self) -> bool:
        """Find the accounts to look after, where they are not named; False if Twilio could not be asked."""
        setup = self._setup
        if setup.settings.accounts != ("all",):
            return True
        try:
            accounts = self._await(lambda: find_accounts(setup.client.session(_ONCE), setup.accounts.main))
        except ReconcilerError as exc:
            log.error("accounts.failed", error=str(exc), hint=exc.hint)
            return not isinstance(exc, Retriable)
        self._setup = replace(setup, accounts=accounts)
        self._crew.reschedule()
        return True

    def _reload(self) -> None:
        """Read the settings anew; one that cannot be used leaves everything as it was."""
        self._notifier.reloading()
        before = self._setup
        client: TwilioClient | None = None
        try:
            settings = self._read_settings()
            client = TwilioClient.from_settings(settings)
            for name in ("twilio_account_sid", "http_listen"):
                if getattr(settings, name) != getattr(before.settings, name):
                    raise ConfigError(f"{_name_of(name)} is another now", hint="this takes a restart")
            with suppress(Retriable):  # a Twilio that is away says nothing against them
                self._await(lambda: _try_credentials(client, before.accounts.main))
            url = before.url
            if settings.database_url != before.settings.database_url:
                url = self._await(lambda: self._prepare(settings))
        except ReconcilerError as exc:
            if client is not None:
                client.close()
            log.error("configuration.refused", error=str(exc), hint=exc.hint)
        else:
            is_same = settings.accounts == before.settings.accounts
            accounts = before.accounts if is_same else named_accounts(settings, before.accounts.main)
            self._setup = Setup(settings, url, client, accounts)
            before.client.close()  # who still asks it opens a connection anew
            self._crew.forgive()
            log.info("configuration.reloaded", changed=_changed(before.settings, settings))
            if url != before.url:
                self._crew.rest()
                self._lead.resign()
                self._lead = Leadership(url)
            elif self._lead.leads:
                self._accounts_due = 0.0
                self._crew.reschedule()
        self._notifier.ready(self.health().reason)

    # The end

    def _leave(self, started: float) -> ExitCode:
        """Let the pages in hand be finished, for a while, and go."""
        code = self._exit_code or ExitCode.DONE
        self._notifier.stopping("finishing the pages in hand")
        log.info("daemon.stopping", exit_code=int(code), running=self._crew.running())
        self.unfinished = [str(job) for job in self._crew.leave(within=GRACE_TO_STOP)]
        self._lead.resign()
        log.info(
            "daemon.stopped", exit_code=int(code), unfinished=self.unfinished,
            uptime_seconds=round(time.monotonic() - started),
        )  # fmt: skip
        return code

    def _end(self, error: ReconcilerError) -> None:
        """End because of `error`; from any thread, and the first one counts."""
        if self._exit_code is None:
            self._exit_code = error.exit_code
            log.error("daemon.failed", error=str(error), kind=type(error).__name__, hint=error.hint)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number != signal.SIGHUP:
            if self._exit_code is not None:
                os._exit(self._exit_code or ExitCode.INTERRUPTED)  # asked for a second time: at once
            self._exit_code = ExitCode.DONE
        self._signals.put(number)

    def _next_signal(self, *, wait: float) -> int | None:
        try:
            return self._signals.get(timeout=wait)
        except Empty:
            return None


def _try_credentials(client: TwilioClient, account_sid: str) -> None:
    """Whether Twilio accepts them, asked once."""
    client.session(_ONCE).page(Listing(account_sid, page_size=1))


def _name_of(field_name: str) -> str:
    """What a setting is called outside."""
    return next(str(field.metadata["name"]) for field in fields(Settings) if field.name == field_name)


def _changed(before: Settings, after: Settings) -> list[str]:
    """The names of the settings that differ."""
    return [
        _name_of(field.name) for field in fields(Settings) if getattr(before, field.name) != getattr(after, field.name)
    ]

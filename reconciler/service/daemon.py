"""The daemon: takes the lead, has the jobs run by their schedule, tells systemd and monitoring how it is.

Design rules
- No business rule is here: what a job does is its own matter, and what becomes of its failure the workers'.
- The main thread only watches: the lead, signals, hung jobs, the watchdog. It waits for nobody for longer than a
  tick: whatever is asked of Twilio here is asked in another thread (`_await`), while the watch goes on.
- What heals is waited for: a database or a Twilio that is away fails runs, and the next ones go on.
- What does not heal ends the process with the exit code that says so: credentials, privileges, a schema that is not
  ours. A refusal may pass, or a secret may have been rotated: the settings are read again, and a login is tried three
  times, before it counts.
- APScheduler plans by the wall clock. When that is set, the schedule is moved with it (`ClockWatch`).
- Ready means that the database is there, migrated, and that Twilio accepted the credentials.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from reconciler import __version__, metrics
from reconciler.errors import ConfigError, ExitCode, LoginRefused, ReconcilerError, Refused, Retriable
from reconciler.jobs.registry import Kind
from reconciler.logs import get_logger
from reconciler.masking import mask, redact
from reconciler.service.clock import ClockWatch
from reconciler.service.http_server import Health
from reconciler.service.leadership import Leadership
from reconciler.service.patience import Patience
from reconciler.service.systemd import Notifier
from reconciler.service.workers import Setup, Waits, WorkerPool
from reconciler.settings import Settings
from reconciler.status.verdict import Verdict
from reconciler.twilio.accounts import find_accounts, named_accounts
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.listing import Listing

TICK: Final = 1.0  # seconds between two looks of the main thread
GRACE_TO_STOP: Final = 8.0  # seconds for the pages in hand; systemd waits 15
STATUS_EVERY: Final = 10.0  # seconds
TOLD_EVERY: Final = 3.0  # seconds between two looks at what other processes should know of us
ACCOUNTS_READ_EVERY: Final = 1800.0  # seconds: a new subaccount is looked after within the hour
TRIED_AGAIN_AFTER: Final = 5.0  # seconds, what the main thread wants to know of Twilio and did not learn
STEP_IS_SAID_FOR: Final = 600.0  # seconds, by /readyz
PATIENCE_GROWS: Final = 2.0  # times, each time the accounts could not be read

A_WHILE: Final = timedelta(minutes=5)  # that systemd is asked to wait; said again long before it is over

_ONCE: Final = threading.Event()  # as the `stop` of a source: no repeats, the next tick will do
_ONCE.set()

log = get_logger(__name__)

T = TypeVar("T")


class _Leaving(Exception):
    """Told to end while something was awaited."""


class Daemon:
    """The lead, the watch and the workers; `run` in the main thread. `unfinished` are the jobs it left behind."""

    def __init__(
        self,
        setup: Setup,
        read_settings: Callable[[], Settings],
        prepare: Callable[[Settings], str],
        notifier: Notifier,
        *,
        kinds: Mapping[str, Kind] | None = None,
        waits: Waits | None = None,
    ) -> None:
        self._setup = setup
        self._read_settings = read_settings
        self._prepare = prepare
        self._notifier = notifier
        self._signals: SimpleQueue[int] = SimpleQueue()  # its put may interrupt itself, an Event's set may not
        self._lead = Leadership(setup.url)
        # Refusals, with the seconds until the next try; None: it was the last. From any thread.
        self._doubts: SimpleQueue[tuple[ReconcilerError, float | None]] = SimpleQueue()
        self._database_login, self._twilio_login = Patience(), Patience()
        self._lead_due = 0.0
        self._clock = ClockWatch()
        self._step, self._stepped_at = timedelta(0), -math.inf
        self._workers = WorkerPool(
            self.setup, on_fatal=lambda error: self._doubts.put((error, None)), kinds=kinds, waits=waits
        )
        self._exit_code: ExitCode | None = None
        self._is_ready = False
        self._lead_trouble = self._twilio_trouble = ""
        self._ticked_at = time.monotonic()
        self._told_alive = self._told_status = self._told_word = 0.0
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
                self._face_doubts()
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
        health = self._health()
        if time.monotonic() - self._stepped_at > STEP_IS_SAID_FOR:
            return health
        said = f"this machine's clock was set by {self._step.total_seconds():+,.0f} s"
        return health._replace(reason=f"{health.reason}; {said}")

    def _health(self) -> Health:
        is_alive = time.monotonic() - self._ticked_at < 60
        outage = self._setup.client.outage.current()
        waiting = "" if outage is None else outage.said(datetime.now(UTC))
        if (stalled := self._workers.stalled()) is not None:
            return Health(is_alive=False, is_ready=False, reason=f"{stalled} makes no progress")
        if not self._is_ready:
            trouble = self._lead_trouble or waiting or self._twilio_trouble or "asking Twilio"
            verdict = Verdict.WAITING if self._lead_trouble or waiting else Verdict.NOT_WORKING
            return Health(is_alive, False, f"not ready: {trouble}", verdict)
        if not self._lead.leads:
            if self._lead_trouble:
                return Health(is_alive, False, f"waiting for the database: {self._lead_trouble}", Verdict.WAITING)
            return Health(is_alive, False, f"standing by: {self._lead.leader} leads", Verdict.STANDING_BY)
        if self._workers.hot_at is None:
            verdict = Verdict.WAITING if waiting else Verdict.NOT_WORKING
            return Health(is_alive, False, "; ".join(filter(None, ("hot has not succeeded yet", waiting))), verdict)
        ago = time.monotonic() - self._workers.hot_at
        patience = 3 * self._setup.settings.hot_interval + timedelta(seconds=30)
        if ago > patience.total_seconds():
            return Health(is_alive, False, "; ".join(filter(None, (f"hot has not succeeded for {ago:.0f} s", waiting))))
        if waiting:
            return Health(is_alive, True, f"{waiting}; hot succeeded {ago:.0f} s ago", Verdict.WAITING)
        return Health(is_alive, True, f"leading, hot {ago:.0f} s ago", Verdict.WORKING)

    # What cannot wait

    def _watch(self) -> None:
        """The lead, the watchdog, the line of status."""
        self._ticked_at = now = time.monotonic()
        if (step := self._clock.step()) is not None:
            log.warning("clock.stepped", seconds=round(step.total_seconds(), 1))
            self._step, self._stepped_at = step, now
            self._workers.shift(step)
        if now >= self._lead_due:
            self._check_lead()
        watchdog = self._notifier.watchdog
        is_due = watchdog is not None and now - self._told_alive > watchdog.total_seconds() / 3
        if is_due and self._workers.stalled() is None:
            self._told_alive = now
            self._notifier.alive()
        health = self.health()
        if health.is_ready != self._told_ready or now - self._told_status > STATUS_EVERY:
            self._told_ready, self._told_status = health.is_ready, now
            self._notifier.status(health.reason)
        if self._lead.leads and now - self._told_word > TOLD_EVERY:
            self._told_word = now
            self._lead.tell(self._word())

    def _word(self) -> dict[str, Any]:
        """What a command or page of another process cannot see: whom we wait for, and when the jobs run next."""
        outage = self._setup.client.outage.current()
        waiting = None
        if outage is not None:
            waiting = {
                "service": "Twilio", "reason": mask(redact(outage.reason)), "attempt": outage.attempt,
                "next_at": outage.next_at.isoformat(), "since": outage.since.isoformat(),
            }  # fmt: skip
        return {"version": __version__, "waiting": waiting, "next_runs": self._workers.next_runs()}

    def _check_lead(self) -> None:
        led, self._lead_trouble = self._lead.leads, ""
        try:
            leads = self._lead.check()
            self._database_login.renew()
        except Retriable as exc:
            leads, self._lead_trouble = False, str(exc)
        except LoginRefused as exc:
            leads, self._lead_trouble = False, str(exc)
            pause = self._database_login.wait()
            self._lead_due = time.monotonic() + (pause or 0)
            self._doubts.put((exc, pause))
        except ReconcilerError as exc:
            self._end(exc)
            return
        metrics.leading.set(leads)
        if leads and not led:
            log.info("lead.acquired")
            self._accounts_due = 0.0
            self._workers.start()
        elif led and not leads:
            log.warning("lead.dropped", error=self._lead_trouble)
            self._workers.pause()

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
        self._notifier.extend_timeout(A_WHILE)
        # Who leads learns it by its first run of hot.
        main = setup.accounts.main
        is_told = self._lead.leads and main in setup.accounts.sids
        if not setup.client.has_worked and not is_told and now >= self._credentials_due:
            self._credentials_due = now + TRIED_AGAIN_AFTER
            try:
                self._await(lambda: _try_credentials(setup.client, main))
            except Retriable as exc:
                self._twilio_trouble = str(exc)
            except Refused as exc:
                self._twilio_trouble, pause = str(exc), self._twilio_login.wait()
                self._credentials_due = time.monotonic() + (pause or 0)
                self._doubts.put((exc, pause))
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
        self._workers.reschedule()
        return True

    def _face_doubts(self) -> None:
        """After a refusal, read the secrets again: they may be others now. The last of the tries ends the daemon."""
        try:
            error, pause = self._doubts.get_nowait()
        except Empty:
            return
        if self._take_settings(only_other_logins=True):
            self._lead_due = self._credentials_due = 0.0
        elif pause is None:
            self._end(error)
        else:
            log.warning("login.refused", error=str(error), hint=error.hint, wait_seconds=pause)

    def _reload(self) -> None:
        """Read the settings anew, and let systemd know."""
        self._notifier.reloading()
        self._take_settings()
        self._notifier.ready(self.health().reason)

    def _take_settings(self, *, only_other_logins: bool = False) -> bool:
        """Read the settings anew. True if they are taken; one that cannot be used leaves all as it was."""
        before = self._setup
        client: TwilioClient | None = None
        try:
            settings = self._read_settings()
            if only_other_logins and settings.logins() == before.settings.logins():
                return False
            settings.credentials()
            for name in ("twilio_account_sid", "http_listen"):
                if getattr(settings, name) != getattr(before.settings, name):
                    raise ConfigError(f"{_name_of(name)} is another now", hint="this takes a restart")
            client = TwilioClient.from_settings(settings)
            with suppress(Retriable):  # a Twilio that is away says nothing against them
                self._await(lambda: _try_credentials(client, before.accounts.main))
            url = before.url
            if settings.database_url != before.settings.database_url:
                url = self._await(lambda: self._prepare(settings))
        except ReconcilerError as exc:
            if client is not None:
                client.close()
            log.error("configuration.refused", error=str(exc), hint=exc.hint)
            return False
        self._use(settings, url, client)
        return True

    def _use(self, settings: Settings, url: str, client: TwilioClient) -> None:
        """Work with these settings from now on."""
        before = self._setup
        is_same = settings.accounts == before.settings.accounts
        accounts = before.accounts if is_same else named_accounts(settings, before.accounts.main)
        self._setup = Setup(settings, url, client, accounts)
        before.client.close()  # a run that still asks it opens a connection anew
        self._workers.clear_failures()
        for login in (self._database_login, self._twilio_login):
            login.renew()
        log.info("configuration.reloaded", changed=_changed(before.settings, settings))
        if url != before.url:
            self._workers.pause()
            self._lead.resign()
            self._lead = Leadership(url)
        elif self._lead.leads:
            self._accounts_due = 0.0
            self._workers.reschedule()

    # The end

    def _leave(self, started: float) -> ExitCode:
        """Let the pages in hand be finished, for a while, and go."""
        code = self._exit_code or ExitCode.DONE
        self._notifier.stopping("finishing the pages in hand")
        log.info("daemon.stopping", exit_code=int(code), running=[str(job) for job in self._workers.running()])
        self.unfinished = [str(job) for job in self._workers.stop(within=GRACE_TO_STOP)]
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

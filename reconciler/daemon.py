"""The daemon: takes the lead, runs the jobs by their schedule, tells systemd and monitoring how it is.

Design rules
- No business rule is here: what a job does is its own matter.
- The main thread only watches: the lead, signals, hung jobs, the watchdog. Jobs run in the schedule's threads, each
  thread with a connection of its own.
- What heals is waited for: a database or a Twilio that is away fails runs, and the next ones go on. What does not heal
  ends the process with the exit code that says so: credentials, privileges, a schema that is not ours.
- Ready means that the database is there, migrated, and that Twilio accepted the credentials.
"""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Final

from reconciler import __version__, metrics
from reconciler.config import Settings
from reconciler.errors import (
    ConfigError,
    CredentialsDoubted,
    ExitCode,
    JobHeld,
    ReconcilerError,
    Refused,
    Retriable,
    SchemaError,
)
from reconciler.jobs import KINDS, Kind, Means, job_of
from reconciler.leadership import Leadership
from reconciler.logs import get_logger
from reconciler.pacing import Pacer
from reconciler.runs import Job, Terms
from reconciler.schedule import Due, Schedule
from reconciler.source import Listing, Source
from reconciler.store import Rules, Store
from reconciler.systemd import Notifier
from reconciler.web import Health, Web

TICK: Final = 1.0  # seconds between two looks of the main thread
GRACE_TO_STOP: Final = 8.0  # seconds for the pages in hand; systemd waits 15
STALLED_AFTER: Final = timedelta(minutes=10)  # without progress; longer than any wait for Twilio or a statement
FAILURES_ALLOWED: Final = 3  # in a row, of what no waiting heals, once it has worked
REST_OF_REFUSED: Final = timedelta(hours=1)  # of an account that is refused while others work
ACCOUNTS_READ_EVERY: Final = timedelta(hours=1)

# Threads by kind of job. What asks Twilio waits for the network most of the time; each thread has a connection.
POOLS: Final = {"hot": 8, "warm": 4, "cold": 1, "inbox": 1, "upkeep": 1}
_POOL_OF: Final = {"freeze": "upkeep", "housekeeping": "upkeep"}

log = get_logger(__name__)


@dataclass(slots=True)
class _Running:
    """A run at work."""

    stop: threading.Event
    progressed_at: float = field(default_factory=time.monotonic)

    def progress(self) -> None:
        self.progressed_at = time.monotonic()


@dataclass(frozen=True, slots=True)
class _Setup:
    """What a configuration amounts to; replaced as a whole by a reload."""

    settings: Settings
    url: str
    source: Source
    main: str
    accounts: tuple[str, ...]


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
    settings = read_settings()
    credentials = settings.credentials()
    daemon: Daemon | None = None
    awaited = Health(is_alive=True, is_ready=False, reason="not ready: waiting for the database")
    web = None
    if settings.http_listen is not None:
        web = Web(settings.http_listen, health=lambda: awaited if daemon is None else daemon.health())
        web.start()
    metrics.build.info({"version": __version__, "python": platform.python_version()})
    log.info("daemon.started", version=__version__, http_port=None if web is None else web.port)
    url = _until_prepared(lambda: prepare(settings), notifier)
    source = Source(credentials, pacer=Pacer(settings.max_concurrency))
    main = credentials.account_sid
    daemon = Daemon(_Setup(settings, url, source, main, (main,)), read_settings, notifier)
    code = daemon.run()
    if web is not None:
        web.close()
    return code


def _until_prepared(prepare: Callable[[], str], notifier: Notifier) -> str:
    """Wait for the database. A signal ends the process where it is: migrations heal, and nothing else has begun."""
    while True:
        notifier.extend_timeout(timedelta(minutes=5))
        try:
            return prepare()
        except Retriable as exc:
            notifier.status(f"waiting for the database: {exc}")
            log.warning("database.awaited", error=str(exc))
        time.sleep(2)


class Daemon:
    """The lead, the schedule and the runs; `run` in the main thread."""

    def __init__(self, setup: _Setup, read_settings: Callable[[], Settings], notifier: Notifier) -> None:
        self._setup = setup
        self._read_settings = read_settings
        self._notifier = notifier
        self._signals: SimpleQueue[int] = SimpleQueue()  # its put may interrupt itself, an Event's set may not
        self._lead = Leadership(setup.url)
        self._running: dict[Job, _Running] = {}
        self._guard = threading.Lock()
        self._local = threading.local()
        self._failures: Counter[Job] = Counter()
        self._exit_code: ExitCode | None = None
        self._is_ready = False
        self._ticked_at = time.monotonic()
        self._trouble = ""
        self._last_hot: float | None = None
        self._schedule = Schedule(self._execute, pools=POOLS, on_missed=self._note_missed)

    def run(self) -> ExitCode:
        """Serve until a signal or what cannot heal; the pages in hand are finished, for a while."""
        started = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self._watch()
        return self._leave(started)

    # The main thread

    def _watch(self) -> None:
        """Look around every tick until a signal, or what cannot heal, ends it."""
        told_alive = told_status = 0.0
        accounts_read_at: float | None = None
        while self._exit_code is None:
            self._ticked_at = now = time.monotonic()
            if self._check_lead() and (
                accounts_read_at is None or now - accounts_read_at > ACCOUNTS_READ_EVERY.total_seconds()
            ):
                accounts_read_at = now
                self._read_accounts()
            if not self._is_ready:
                self._become_ready()
            if (stalled := self._stalled()) is None:
                if self._notifier.watchdog and now - told_alive > self._notifier.watchdog.total_seconds() / 3:
                    told_alive = now
                    self._notifier.alive()
            else:
                self._trouble = f"{stalled} makes no progress"
            if now - told_status > 10:
                told_status = now
                self._notifier.status(self.health().reason)
            match self._next_signal(wait=TICK):
                case signal.SIGHUP:
                    self._reload()
                case signal.SIGTERM | signal.SIGINT:
                    self._exit_code = ExitCode.DONE

    def _check_lead(self) -> bool:
        led = self._lead.leads
        try:
            leads = self._lead.check()
        except Retriable as exc:
            leads, self._trouble = False, str(exc)
        except ReconcilerError as exc:
            self._end(exc)
            return False
        if leads and not led:
            log.info("lead.taken")
            self._trouble = ""
            self._set_schedule()
            self._schedule.resume()
        elif led and not leads:
            log.warning("lead.lost", error=self._trouble)
            self._schedule.pause()
        elif not leads and not self._trouble:
            self._trouble = "standing by: another daemon leads"
        metrics.leading.set(leads)
        return leads

    def _become_ready(self) -> None:
        """Ready once Twilio accepted the credentials; one that stands by tries them itself."""
        if not self._setup.source.has_worked and not self._lead.leads:
            self._notifier.extend_timeout(timedelta(minutes=5))
            try:
                self._setup.source.page(Listing(self._setup.main, page_size=1))
            except Retriable as exc:
                self._trouble = str(exc)
            except ReconcilerError as exc:
                self._end(exc)
        if self._setup.source.has_worked:
            self._is_ready = True
            self._notifier.ready(self.health().reason)
            log.info("daemon.ready", leads=self._lead.leads)
        else:
            self._notifier.extend_timeout(timedelta(minutes=5))

    def _read_accounts(self) -> None:
        """Find the accounts to look after, where they are not named one by one."""
        setup = self._setup
        match setup.settings.accounts:
            case ("this",):
                accounts: tuple[str, ...] = (setup.main,)
            case ("all",):
                try:
                    accounts = tuple(account.sid for account in setup.source.accounts() if account.status != "closed")
                except ReconcilerError as exc:
                    log.error("accounts.unread", error=str(exc), hint=exc.hint)
                    accounts = setup.accounts
            case named:
                accounts = named
        self._setup = _Setup(setup.settings, setup.url, setup.source, setup.main, accounts)
        self._set_schedule()

    def _set_schedule(self) -> None:
        setup = self._setup
        due: list[Due] = []
        for name, kind in KINDS.items():
            interval = kind.interval(setup.settings)
            metrics.interval.labels(name).set(interval.total_seconds())
            pool = _POOL_OF.get(name, name)
            accounts = setup.accounts if kind.asks_twilio else (None,)
            due += [Due(job_of(name, account, main=setup.main), interval, pool) for account in accounts]
        self._schedule.set(due)

    def _stalled(self) -> Job | None:
        """A job that has made no progress for so long that it must hang."""
        before = time.monotonic() - STALLED_AFTER.total_seconds()
        with self._guard:
            return next((job for job, running in self._running.items() if running.progressed_at < before), None)

    def _reload(self) -> None:
        """Read the settings anew; one that cannot be used leaves everything as it was."""
        self._notifier.reloading()
        source: Source | None = None
        try:
            settings = self._read_settings()
            credentials = settings.credentials()
            source = Source(credentials, pacer=Pacer(settings.max_concurrency))
            with suppress(Retriable):  # a Twilio that is away says nothing against them
                source.page(Listing(credentials.account_sid, page_size=1))
            if credentials.account_sid != self._setup.main:
                raise ConfigError("TWILIO_ACCOUNT_SID is another account's", hint="restart to serve another account")
        except ReconcilerError as exc:
            if source is not None:
                source.close()
            log.error("configuration.refused", error=str(exc), hint=exc.hint)
        else:
            before, self._setup = (
                self._setup,
                _Setup(
                    settings,
                    settings.database_url or self._setup.url,
                    source,
                    credentials.account_sid,
                    self._setup.accounts,
                ),
            )
            self._failures.clear()
            log.info("configuration.reloaded", changed=_changed(before.settings, settings))
            if before.url != self._setup.url:
                self._lead.resign()
                self._schedule.pause()
                self._lead = Leadership(self._setup.url)
            elif self._lead.leads:
                self._read_accounts()
        self._notifier.ready(self.health().reason)

    def _leave(self, started: float) -> ExitCode:
        """Let the pages in hand be finished, for a while, and go."""
        code = self._exit_code or ExitCode.DONE
        self._notifier.stopping("finishing the pages in hand")
        log.info("daemon.stopping", exit_code=int(code), running=sorted(self._running))
        self._schedule.shut_down()
        with self._guard:
            running = list(self._running.values())
        for run in running:
            run.stop.set()
        deadline = time.monotonic() + GRACE_TO_STOP
        while self._running and time.monotonic() < deadline:
            self._next_signal(wait=0.05)
        self._lead.resign()
        log.info(
            "daemon.stopped", exit_code=int(code), unfinished=sorted(self._running),
            uptime_seconds=round(time.monotonic() - started),
        )  # fmt: skip
        return code

    def _on_signal(self, number: int, _frame: object) -> None:
        if number != signal.SIGHUP and self._exit_code is not None:
            os._exit(ExitCode.INTERRUPTED)  # asked for a second time: at once
        self._signals.put(number)

    def _next_signal(self, *, wait: float) -> int | None:
        try:
            return self._signals.get(timeout=wait)
        except Empty:
            return None

    # The threads of the schedule

    def _execute(self, job: Job) -> None:
        """One run of `job`, whatever comes of it."""
        setup = self._setup
        kind = KINDS[job.kind]
        account = self._account_of(job, setup)
        running = _Running(threading.Event())
        with self._guard:
            if self._exit_code is not None or not self._lead.leads:
                return
            self._running[job] = running
        try:
            totals = kind.work(self._means(setup, job, kind, account, running))
            self._failures.pop(job, None)
            if job == "hot" and totals.outcome == "succeeded":
                self._last_hot = time.monotonic()
        except JobHeld as exc:
            metrics.runs.labels(job.kind, account or "", "skipped").inc()
            log.warning("job.skipped", job=job.kind, account=account, why=str(exc))
        except ReconcilerError as exc:
            self._judge(job, exc)
        except Exception as exc:
            log.exception("program.failed", job=job.kind, account=account, kind=type(exc).__name__)
        finally:
            with self._guard:
                self._running.pop(job, None)

    def _means(self, setup: _Setup, job: Job, kind: Kind, account: str | None, running: _Running) -> Means:
        terms = Terms(
            stop=running.stop, within=kind.within, on_progress=running.progress,
            retry_at=lambda: self._schedule.next_run(job),
        )  # fmt: skip
        source = None
        if account is not None:
            source = setup.source.for_run(running.stop, is_bulk=kind.is_bulk, on_progress=running.progress)
        return Means(
            job, setup.settings, self._store(setup), terms, source, account or "", account == setup.main,
            is_scheduled=True,
        )  # fmt: skip

    def _store(self, setup: _Setup) -> Store:
        """This thread's store; a new one when the settings changed it."""
        settings = setup.settings
        made_of = (setup.url, Rules(settings.webhook_grace, settings.freeze_after), settings.notify_channel)
        if getattr(self._local, "made_of", None) != made_of:
            if hasattr(self._local, "store"):
                self._local.store.close()
            self._local.made_of = made_of
            self._local.store = Store(made_of[0], rules=made_of[1], channel=made_of[2])
        store: Store = self._local.store
        return store

    def _judge(self, job: Job, error: ReconcilerError) -> None:
        """Let the next run try again, unless no waiting heals this."""
        if not isinstance(error, Refused | CredentialsDoubted | SchemaError):
            self._failures.pop(job, None)
            return
        if ":" in job:
            # One account alone; the others go on.
            self._schedule.postpone(job, REST_OF_REFUSED)
            return
        self._failures[job] += 1
        if not self._is_ready or self._failures[job] >= FAILURES_ALLOWED:
            self._end(error)

    def _end(self, error: ReconcilerError) -> None:
        log.error("daemon.failed", error=str(error), kind=type(error).__name__, hint=error.hint)
        self._trouble = str(error)
        self._exit_code = error.exit_code

    def _note_missed(self, job: Job, count: int, why: str) -> None:
        account = self._account_of(job, self._setup)
        metrics.missed_runs.labels(job.kind, account or "").inc(count)
        log.warning("job.missed", job=job.kind, account=account, count=count, why=why)

    def _account_of(self, job: Job, setup: _Setup) -> str | None:
        return (job.partition(":")[2] or setup.main) if KINDS[job.kind].asks_twilio else None

    def health(self) -> Health:
        """How we are; from memory."""
        is_alive = time.monotonic() - self._ticked_at < 60 or not self._is_ready
        if not self._is_ready:
            return Health(is_alive, is_ready=False, reason=f"not ready: {self._trouble or 'asking Twilio'}")
        if not self._lead.leads:
            return Health(is_alive, is_ready=False, reason=self._trouble or "standing by: another daemon leads")
        if (stalled := self._stalled()) is not None:
            return Health(is_alive=False, is_ready=False, reason=f"{stalled} makes no progress")
        patience = 3 * self._setup.settings.hot_interval + timedelta(seconds=30)
        if self._last_hot is None or time.monotonic() - self._last_hot > patience.total_seconds():
            since = "yet" if self._last_hot is None else f"for {time.monotonic() - self._last_hot:.0f} s"
            return Health(is_alive, is_ready=False, reason=f"hot has not succeeded {since}")
        return Health(is_alive, is_ready=True, reason=f"leading, hot {time.monotonic() - self._last_hot:.0f} s ago")


def _changed(before: Settings, after: Settings) -> list[str]:
    """The names of the settings that differ."""
    return [
        field_.metadata["name"]
        for field_ in before.__dataclass_fields__.values()
        if getattr(before, field_.name) != getattr(after, field_.name)
    ]

"""The worker threads: they run the jobs that are due, and handle the errors of a run.

Design rules
- Each thread has a connection of its own; two runs of one job never meet (`Schedule`, `Store.holding`).
- After a failure the next run tries again. For an error that does not heal by waiting, `on_fatal` is called the third
  time in a row.
- A refused subaccount is paused for an hour; the others continue.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from structlog.contextvars import bound_contextvars

from reconciler import metrics
from reconciler.database.store import Store
from reconciler.database.transaction import Rules
from reconciler.errors import CredentialsDoubted, JobHeld, ReconcilerError, SchemaError
from reconciler.jobs.accounts import name_job
from reconciler.jobs.registry import KINDS, Kind
from reconciler.logs import get_logger
from reconciler.model import JobName
from reconciler.service.schedule import Due, Schedule
from reconciler.settings import Settings
from reconciler.sync import telemetry
from reconciler.sync.context import Account, JobContext, Options
from reconciler.sync.counts import Outcome
from reconciler.twilio.accounts import Accounts
from reconciler.twilio.client import TwilioClient

FAILURES_ALLOWED: Final = 3  # in a row, of errors that do not heal by waiting; a single refusal may pass

# Threads by kind of job. Jobs that ask Twilio mostly wait for the network. Each thread has a database connection.
POOLS: Final = {"hot": 8, "warm": 4, "cold": 1, "inbox": 1, "upkeep": 1}
_POOL_OF: Final = {"freeze": "upkeep", "housekeeping": "upkeep", "webhooks": "warm"}

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that follows from one configuration; a reload replaces it as a whole."""

    settings: Settings
    url: str
    client: TwilioClient
    accounts: Accounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """The waiting times of the workers."""

    stalled_after: timedelta = timedelta(minutes=10)  # without progress; longer than any wait for Twilio or a statement
    retried_after: timedelta = timedelta(minutes=15)  # for a failed run of a job that is due less often than this
    retried_within: timedelta = timedelta(seconds=10)  # for a refused run before Twilio has accepted the credentials
    refused_for: timedelta = timedelta(hours=1)  # for a refused subaccount while other accounts work


@dataclass(slots=True)
class _Running:
    """One run under way: the event that stops it, and its last progress in monotonic seconds."""

    stop: threading.Event = field(default_factory=threading.Event)
    progressed_at: float = field(default_factory=time.monotonic)

    def progress(self) -> None:
        self.progressed_at = time.monotonic()


class WorkerPool:
    """Runs the jobs of `setup()` from `start` to `pause`.

    `on_fatal` is called with an error that does not heal by waiting.
    """

    def __init__(
        self,
        setup: Callable[[], Setup],
        *,
        on_fatal: Callable[[ReconcilerError], None],
        kinds: Mapping[str, Kind] | None = None,
        waits: Waits | None = None,
    ) -> None:
        self._setup = setup
        self._on_fatal = on_fatal
        self._kinds = KINDS if kinds is None else kinds
        self._waits = waits or Waits()
        self._is_started = False
        self._running: dict[JobName, _Running] = {}
        self._changed = threading.Condition()
        self._stores: dict[int, tuple[object, Store]] = {}  # by thread, each with the settings it was made from
        self._failures: Counter[JobName] = Counter()
        self._paused: set[JobName] = set()
        self._accounts: frozenset[str] = frozenset()
        self._schedule = Schedule(self._execute, pools=POOLS, on_missed=self._note_missed)
        self.hot_at: float | None = None  # time.monotonic() of hot's last success, for any account

    def start(self) -> None:
        """Start runs, for the first time or after a pause."""
        self._is_started = True
        self.reschedule()
        self._schedule.resume()

    def pause(self) -> None:
        """Start no more runs; those under way continue, each under its own lock."""
        self._is_started = False
        self._schedule.pause()

    def reschedule(self) -> None:
        """Schedule the jobs for the accounts and intervals of the setup; forget the counts of removed accounts."""
        setup = self._setup()
        main, sids = setup.accounts.main, setup.accounts.sids
        due: list[Due] = []
        for name, kind in self._kinds.items():
            interval = kind.interval(setup.settings)
            metrics.interval.labels(name).set(interval.total_seconds())
            accounts = sids if kind.asks_twilio else (None,)
            pool = _POOL_OF.get(name, name)
            due += [Due(name_job(name, account, main=main), interval, pool) for account in accounts]
        self._schedule.set(due)
        before, self._accounts = self._accounts, frozenset(sids)
        for account in before - self._accounts:
            telemetry.forget_counts(account)

    def clear_failures(self) -> None:
        """Forget the failures under the previous configuration, and end the pauses that followed from them."""
        self._failures.clear()
        while self._paused:
            self._schedule.postpone(self._paused.pop(), timedelta(0))

    def shift(self, step: timedelta) -> None:
        """Move the schedule by `step`, by which the machine's clock was set, so that intervals stay the same."""
        self._schedule.shift(step)

    def stalled(self) -> JobName | None:
        """Return a job that has made no progress for `stalled_after`; None if there is none."""
        before = time.monotonic() - self._waits.stalled_after.total_seconds()
        with self._changed:
            return next((job for job, running in self._running.items() if running.progressed_at < before), None)

    def running(self) -> list[JobName]:
        """Return the jobs under way, in order of their names."""
        with self._changed:
            return sorted(self._running, key=str)

    def next_runs(self) -> dict[str, str]:
        """Return, by kind of job, the ISO time of the next run for any account, in the order of the jobs."""
        due: dict[str, datetime] = {}
        for job, at in self._schedule.next_runs():
            due[job.kind] = min(at, due.get(job.kind, at))
        return {kind: due[kind].isoformat(timespec="seconds") for kind in self._kinds if kind in due}

    def stop(self, *, within: float) -> list[JobName]:
        """Give the runs `within` seconds to finish their current pages; return the jobs that did not end."""
        with self._changed:
            self._is_started = False
            for running in self._running.values():
                running.stop.set()
        self._schedule.shut_down()
        with self._changed:
            self._changed.wait_for(lambda: not self._running, within)
        unfinished = self.running()
        if not unfinished:
            for _, store in self._stores.values():
                store.close()
        return unfinished

    # In the threads

    def _execute(self, job: JobName) -> None:
        """Run `job` once, and handle its errors."""
        setup, running = self._setup(), _Running()
        account_sid = self._account_of(job, setup)
        with self._changed:
            if not self._is_started:
                return
            self._running[job] = running
        try:
            with bound_contextvars(**telemetry.log_fields(job, account_sid)):
                self._run(self._context(setup, job, account_sid, running))
        finally:
            with self._changed:
                del self._running[job]
                self._changed.notify_all()
            if account_sid is not None and account_sid not in self._setup().accounts.sids:
                telemetry.forget_counts(account_sid)

    def _run(self, context: JobContext) -> None:
        job = context.job
        account_sid = "" if context.account is None else context.account.sid
        try:
            counts = self._kinds[job.kind].work(context)
            self._failures.pop(job, None)
            self._paused.discard(job)
            if counts.outcome is Outcome.FAILED:
                self._retry_soon(job)
            elif job.kind == "hot" and counts.outcome is Outcome.SUCCEEDED:
                self.hot_at = time.monotonic()
        except JobHeld as exc:
            metrics.runs.labels(job.kind, account_sid, Outcome.SKIPPED).inc()
            log.warning("job.skipped", why=str(exc))
        except ReconcilerError as exc:
            self._handle_failure(job, exc, has_worked=context.session is None or context.session.client.has_worked)
        except Exception as exc:
            log.exception("program.failed", kind=type(exc).__name__)

    def _context(self, setup: Setup, job: JobName, account_sid: str | None, running: _Running) -> JobContext:
        kind, accounts = self._kinds[job.kind], setup.accounts
        session = account = None
        if account_sid is not None:
            session = setup.client.session(running.stop, is_bulk=kind.is_bulk, on_progress=running.progress)
            account = Account(
                account_sid,
                owns_unassigned=account_sid == accounts.default_account,
                is_only=accounts.is_only_account,
            )
        return JobContext(
            job=job,
            settings=setup.settings,
            store=self._store(setup),
            session=session,
            account=account,
            options=Options(is_scheduled=True, scheduled_accounts=accounts.sids if accounts.is_complete else None),
            stop=running.stop,
            time_limit=kind.time_limit,
            on_progress=running.progress,
            retry_at=lambda: self._retry_at(job),
            pause_if_refused=self._waits.refused_for if job.account_sid is not None else None,
        )

    def _store(self, setup: Setup) -> Store:
        """Return this thread's store; a new one if the settings it was made from have changed."""
        settings = setup.settings
        made_of = (setup.url, Rules(settings.webhook_grace, settings.freeze_after), settings.notify_channel)
        thread = threading.get_ident()
        before, store = self._stores.get(thread, (None, None))
        if store is None or before != made_of:
            if store is not None:
                store.close()
            store = Store(made_of[0], rules=made_of[1], channel=made_of[2])
            self._stores[thread] = made_of, store
        return store

    def _handle_failure(self, job: JobName, error: ReconcilerError, *, has_worked: bool) -> None:
        """Leave an error that heals to the next run; count one that does not, or pause its subaccount."""
        if not error.is_refusal and not isinstance(error, SchemaError):
            self._failures.pop(job, None)
            self._retry_soon(job)
            return
        if job.account_sid is not None:
            self._paused.add(job)
            self._schedule.postpone(job, self._waits.refused_for)
            if isinstance(error, CredentialsDoubted) and self._hot_jobs() <= self._paused:
                self._on_fatal(error)  # the credentials work for no account any more
            return
        self._failures[job] += 1
        if self._failures[job] >= FAILURES_ALLOWED:
            self._on_fatal(error)
        elif not has_worked:
            # Nothing works until the refusal heals, so the next run is earlier than the schedule says.
            interval = self._kinds[job.kind].interval(self._setup().settings)
            self._schedule.postpone(job, min(self._waits.retried_within, interval))

    def _retry_soon(self, job: JobName) -> None:
        """Bring the next run of a rare job forward: a daily job must not wait a day after minutes of an outage."""
        if self._is_rare(job):
            self._schedule.postpone(job, self._waits.retried_after)

    def _retry_at(self, job: JobName) -> datetime | None:
        return datetime.now(UTC) + self._waits.retried_after if self._is_rare(job) else self._schedule.next_run(job)

    def _is_rare(self, job: JobName) -> bool:
        return self._kinds[job.kind].interval(self._setup().settings) > self._waits.retried_after

    def _hot_jobs(self) -> set[JobName]:
        accounts = self._setup().accounts
        return {name_job("hot", account_sid, main=accounts.main) for account_sid in accounts.sids}

    def _note_missed(self, job: JobName, count: int, why: str) -> None:
        account_sid = self._account_of(job, self._setup())
        metrics.missed_runs.labels(job.kind, account_sid or "").inc(count)
        with bound_contextvars(**telemetry.log_fields(job, account_sid)):
            log.warning("job.missed", count=count, why=why)

    def _account_of(self, job: JobName, setup: Setup) -> str | None:
        return (job.account_sid or setup.accounts.main) if self._kinds[job.kind].asks_twilio else None

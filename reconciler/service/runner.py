"""The execution of one run in the current thread: its context, its database connection, and its failure.

Design rules
- Each thread has a connection of its own; two runs of one job never meet (`Store.holding`).
- After a failure the next run tries again. For an error that does not heal by waiting, `on_fatal` is called the third
  time in a row.
- A refused subaccount is paused for an hour; the others continue.
- The runner decides when a job runs again (`Ended`); the owner of the schedule obeys.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from structlog.contextvars import bound_contextvars

from reconciler import metrics
from reconciler.database.store import Store
from reconciler.database.transaction import Rules
from reconciler.errors import CredentialsDoubted, JobHeld, ReconcilerError, SchemaError
from reconciler.jobs.registry import Kind
from reconciler.logs import get_logger
from reconciler.model import JobName, name_job
from reconciler.settings import Settings
from reconciler.sync import telemetry
from reconciler.sync.context import Account, JobContext, Options
from reconciler.sync.counts import Outcome
from reconciler.twilio.accounts import Accounts
from reconciler.twilio.client import TwilioClient

FAILURES_ALLOWED: Final = 3  # in a row, of errors that do not heal by waiting; a single refusal may pass

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


class Ended(NamedTuple):
    """How a run ended, for the schedule.

    - `again_in`: the job runs again after this time, whatever the schedule says; None: when it is due.
    - `is_held`: another process has the job. The run was not skipped yet; `Runner.skip` does that.
    - `was_cut_short`: the process was stopped before the run's work was done.
    """

    again_in: timedelta | None = None
    is_held: str | None = None
    was_cut_short: bool = False


class Runner:
    """Executes runs, in any number of threads. `on_fatal` is called with an error that does not heal by waiting."""

    def __init__(
        self,
        setup: Callable[[], Setup],
        *,
        kinds: Mapping[str, Kind],
        waits: Waits,
        on_fatal: Callable[[ReconcilerError], None],
        next_run: Callable[[JobName], datetime | None],
    ) -> None:
        self._setup = setup
        self._kinds = kinds
        self._waits = waits
        self._on_fatal = on_fatal
        self._next_run = next_run
        self._is_open = False
        self._running: dict[JobName, _Running] = {}
        self._changed = threading.Condition()
        self._stores: dict[int, tuple[object, Store]] = {}  # by thread, each with the settings it was made from
        self._failures: Counter[JobName] = Counter()
        self._paused: set[JobName] = set()
        self.hot_at: float | None = None  # time.monotonic() of hot's last success, for any account

    def open(self) -> None:
        """Accept runs."""
        self._is_open = True

    def shut(self) -> None:
        """Accept no runs; those under way continue."""
        self._is_open = False

    def clear_failures(self) -> list[JobName]:
        """Forget the failures under the previous configuration; return the jobs whose pause ends by that."""
        self._failures.clear()
        paused = list(self._paused)
        self._paused.clear()
        return paused

    def stalled(self) -> JobName | None:
        """Return a job that has made no progress for `stalled_after`; None if there is none."""
        before = time.monotonic() - self._waits.stalled_after.total_seconds()
        with self._changed:
            return next((job for job, running in self._running.items() if running.progressed_at < before), None)

    def running(self) -> list[JobName]:
        """Return the jobs under way, in order of their names."""
        with self._changed:
            return sorted(self._running, key=str)

    def interrupt(self) -> None:
        """Accept no runs, and stop those under way after their current pages."""
        with self._changed:
            self._is_open = False
            for running in self._running.values():
                running.stop.set()

    def wait(self, within: float) -> list[JobName]:
        """Wait for the end of all runs; close the connections, or return the jobs that did not end `within` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running, within)
        unfinished = self.running()
        if not unfinished:
            for _, store in self._stores.values():
                store.close()
        return unfinished

    def perform(self, job: JobName, options: Options | None = None) -> Ended:
        """Run `job` once, with the options of its task if it has some, and decide what its failure means."""
        setup, running = self._setup(), _Running()
        account_sid = self.account_of(job)
        with self._changed:
            if not self._is_open:
                return Ended(was_cut_short=True)
            self._running[job] = running
        try:
            with bound_contextvars(**telemetry.log_fields(job, account_sid)):
                return self._run(self._context(setup, job, account_sid, running, options or Options()))
        finally:
            with self._changed:
                del self._running[job]
                self._changed.notify_all()
            if account_sid is not None and account_sid not in self._setup().accounts.sids:
                telemetry.forget_counts(account_sid)

    def skip(self, job: JobName, why: str) -> None:
        """Count and log a run that another process kept from happening."""
        account_sid = self.account_of(job)
        metrics.runs.labels(job.kind, account_sid or "", Outcome.SKIPPED).inc()
        with bound_contextvars(**telemetry.log_fields(job, account_sid)):
            log.warning("job.skipped", why=why)

    def note_missed(self, job: JobName, count: int, why: str) -> None:
        """Count and log runs that did not happen when they were due."""
        account_sid = self.account_of(job)
        metrics.missed_runs.labels(job.kind, account_sid or "").inc(count)
        with bound_contextvars(**telemetry.log_fields(job, account_sid)):
            log.warning("job.missed", count=count, why=why)

    def account_of(self, job: JobName) -> str | None:
        """Return the account that a job asks Twilio about; None if it asks nothing."""
        if not self._kinds[job.kind].asks_twilio:
            return None
        return job.account_sid or self._setup().accounts.main

    def _run(self, context: JobContext) -> Ended:
        job = context.job
        try:
            counts = self._kinds[job.kind].work(context)
            self._failures.pop(job, None)
            self._paused.discard(job)
            if counts.outcome is Outcome.FAILED:
                return Ended(self._soon(job))
            if job.kind == "hot" and counts.outcome is Outcome.SUCCEEDED:
                self.hot_at = time.monotonic()
            return Ended(was_cut_short=counts.outcome is Outcome.INTERRUPTED)
        except JobHeld as exc:
            return Ended(is_held=str(exc))
        except ReconcilerError as exc:
            has_worked = context.session is None or context.session.client.has_worked
            return Ended(self._after_failure(job, exc, has_worked=has_worked))
        except Exception as exc:
            log.exception("program.failed", kind=type(exc).__name__)
            return Ended()

    def _context(
        self, setup: Setup, job: JobName, account_sid: str | None, running: _Running, options: Options
    ) -> JobContext:
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
            options=replace(
                options, is_scheduled=True, scheduled_accounts=accounts.sids if accounts.is_complete else None
            ),
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

    def _after_failure(self, job: JobName, error: ReconcilerError, *, has_worked: bool) -> timedelta | None:
        """Return when the job runs again: an error that heals is left to the next run; a refused subaccount pauses."""
        if not error.is_refusal and not isinstance(error, SchemaError):
            self._failures.pop(job, None)
            return self._soon(job)
        if job.account_sid is not None:
            self._paused.add(job)
            if isinstance(error, CredentialsDoubted) and self._hot_jobs() <= self._paused:
                self._on_fatal(error)  # the credentials work for no account any more
            return self._waits.refused_for
        self._failures[job] += 1
        if self._failures[job] >= FAILURES_ALLOWED:
            self._on_fatal(error)
        elif not has_worked:
            # Nothing works until the refusal heals, so the next run is earlier than the schedule says.
            interval = self._kinds[job.kind].interval(self._setup().settings)
            return min(self._waits.retried_within, interval)
        return None

    def _soon(self, job: JobName) -> timedelta | None:
        """Return when a rare job runs again: a daily job must not wait a day after minutes of an outage."""
        return self._waits.retried_after if self._is_rare(job) else None

    def _retry_at(self, job: JobName) -> datetime | None:
        return datetime.now(UTC) + self._waits.retried_after if self._is_rare(job) else self._next_run(job)

    def _is_rare(self, job: JobName) -> bool:
        return self._kinds[job.kind].interval(self._setup().settings) > self._waits.retried_after

    def _hot_jobs(self) -> set[JobName]:
        accounts = self._setup().accounts
        return {name_job("hot", account_sid, main=accounts.main) for account_sid in accounts.sids}

"""The schedule and the threads that work by it: what runs when a job is due, and what becomes of its failure.

Design rules
- Each thread has a connection of its own; two runs of one job never meet (`Schedule`, `Store.holding`).
- A failure is left to the next run. What no waiting heals is told to `on_fatal` the third time in a row. An account
  beside the main one then rests alone.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from structlog.contextvars import bound_contextvars

from reconciler import metrics
from reconciler.database.store import Store
from reconciler.database.transaction import Rules
from reconciler.errors import CredentialsDoubted, JobHeld, ReconcilerError, Refused, SchemaError
from reconciler.jobs.registry import KINDS, Means, job_of
from reconciler.logs import get_logger
from reconciler.model import Job
from reconciler.service.schedule import Due, Schedule
from reconciler.settings import Settings
from reconciler.sync.run import Terms, forget_counts
from reconciler.twilio.accounts import Accounts
from reconciler.twilio.client import TwilioClient

STALLED_AFTER: Final = timedelta(minutes=10)  # without progress; longer than any wait for Twilio or a statement
FAILURES_ALLOWED: Final = 3  # in a row, of what no waiting heals; a single refusal may pass
RETRIED_AFTER: Final = timedelta(minutes=15)  # a run that failed, of a job that is due less often
RETRIED_WITHIN: Final = timedelta(seconds=10)  # a run that was refused, while Twilio has not accepted the credentials
REST_OF_REFUSED: Final = timedelta(hours=1)  # of an account that is refused while others work

# Threads by kind of job. What asks Twilio waits for the network most of the time; each thread has a connection.
POOLS: Final = {"hot": 8, "warm": 4, "cold": 1, "inbox": 1, "upkeep": 1}
_POOL_OF: Final = {"freeze": "upkeep", "housekeeping": "upkeep"}

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Setup:
    """What a configuration amounts to; replaced as a whole."""

    settings: Settings
    url: str
    client: TwilioClient
    accounts: Accounts


@dataclass(slots=True)
class _Running:
    """A run at work."""

    stop: threading.Event = field(default_factory=threading.Event)
    progressed_at: float = field(default_factory=time.monotonic)

    def progress(self) -> None:
        self.progressed_at = time.monotonic()


class Crew:
    """Runs the jobs of `setup()` while it is at work; at rest at first. `on_fatal` is told what no waiting heals."""

    def __init__(self, setup: Callable[[], Setup], *, on_fatal: Callable[[ReconcilerError], None]) -> None:
        self._setup = setup
        self._on_fatal = on_fatal
        self._is_at_work = False
        self._running: dict[Job, _Running] = {}
        self._changed = threading.Condition()
        self._stores: dict[int, tuple[object, Store]] = {}  # by thread, with what each was made of
        self._failures: Counter[Job] = Counter()
        self._resting: set[Job] = set()
        self._accounts: frozenset[str] = frozenset()
        self._schedule = Schedule(self._execute, pools=POOLS, on_missed=self._note_missed)
        self.hot_at: float | None = None  # when hot succeeded last, for any account; time.monotonic()

    def work(self) -> None:
        """Begin to work, or go on."""
        self._is_at_work = True
        self.reschedule()
        self._schedule.resume()

    def rest(self) -> None:
        """Start no more runs; those at work go on, each under its own lock."""
        self._is_at_work = False
        self._schedule.pause()

    def reschedule(self) -> None:
        """Take up the accounts and intervals of the setup; nothing more is heard of accounts that left it."""
        setup = self._setup()
        main, sids = setup.accounts.main, setup.accounts.sids
        due: list[Due] = []
        for name, kind in KINDS.items():
            interval = kind.interval(setup.settings)
            metrics.interval.labels(name).set(interval.total_seconds())
            accounts = sids if kind.asks_twilio else (None,)
            pool = _POOL_OF.get(name, name)
            due += [Due(job_of(name, account, main=main), interval, pool) for account in accounts]
        self._schedule.set(due)
        before, self._accounts = self._accounts, frozenset(sids)
        for account in before - self._accounts:
            forget_counts(account)

    def forgive(self) -> None:
        """Forget past failures: they were those of another configuration, and who rests for one works again."""
        self._failures.clear()
        while self._resting:
            self._schedule.postpone(self._resting.pop(), timedelta(0))

    def shift(self, step: timedelta) -> None:
        """Keep the intervals between runs, although the machine's clock was set by `step`."""
        self._schedule.shift(step)

    def stalled(self) -> Job | None:
        """A job that has made no progress for so long that it must hang."""
        before = time.monotonic() - STALLED_AFTER.total_seconds()
        with self._changed:
            return next((job for job, running in self._running.items() if running.progressed_at < before), None)

    def running(self) -> list[Job]:
        """The jobs at work."""
        with self._changed:
            return sorted(self._running)

    def next_runs(self) -> dict[str, str]:
        """When each kind of job is due next, for whichever account: ISO times, in the order of the jobs."""
        due: dict[str, datetime] = {}
        for job, at in self._schedule.next_runs():
            due[job.kind] = min(at, due.get(job.kind, at))
        return {kind: due[kind].isoformat(timespec="seconds") for kind in KINDS if kind in due}

    def leave(self, *, within: float) -> list[Job]:
        """Let the pages in hand be finished, for so many seconds; returns what was not."""
        with self._changed:
            self._is_at_work = False
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

    def _execute(self, job: Job) -> None:
        """One run of `job`, whatever comes of it."""
        setup, running = self._setup(), _Running()
        account = self._account_of(job, setup)
        with self._changed:
            if not self._is_at_work:
                return
            self._running[job] = running
        try:
            with _named(job, account):
                self._run(self._means(setup, job, account, running))
        finally:
            with self._changed:
                del self._running[job]
                self._changed.notify_all()
            if account is not None and account not in self._setup().accounts.sids:
                forget_counts(account)

    def _run(self, means: Means) -> None:
        job = means.job
        try:
            totals = KINDS[job.kind].work(means)
            self._failures.pop(job, None)
            self._resting.discard(job)
            if totals.outcome == "failed":
                self._retry_soon(job)
            elif job.kind == "hot" and totals.outcome == "succeeded":
                self.hot_at = time.monotonic()
        except JobHeld as exc:
            metrics.runs.labels(job.kind, means.account_sid, "skipped").inc()
            log.warning("job.skipped", why=str(exc))
        except ReconcilerError as exc:
            self._judge(job, exc, has_worked=means.source is None or means.source.client.has_worked)
        except Exception as exc:
            log.exception("program.failed", kind=type(exc).__name__)

    def _means(self, setup: Setup, job: Job, account: str | None, running: _Running) -> Means:
        kind = KINDS[job.kind]
        terms = Terms(
            stop=running.stop, within=kind.within, on_progress=running.progress,
            retry_at=lambda: self._retry_at(job), rest=REST_OF_REFUSED if ":" in job else None,
        )  # fmt: skip
        source = None
        if account is not None:
            source = setup.client.session(running.stop, is_bulk=kind.is_bulk, on_progress=running.progress)
        return Means(
            job, setup.settings, self._store(setup), terms, source, account or "", account == setup.accounts.keeper,
            setup.accounts.is_alone, is_scheduled=True,
            looked_after=setup.accounts.sids if setup.accounts.is_complete else None,
        )  # fmt: skip

    def _store(self, setup: Setup) -> Store:
        """This thread's store; a new one when the settings changed it."""
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

    def _judge(self, job: Job, error: ReconcilerError, *, has_worked: bool) -> None:
        """Let the next run try again, unless no waiting heals this."""
        if not isinstance(error, Refused | CredentialsDoubted | SchemaError):
            self._failures.pop(job, None)
            self._retry_soon(job)
            return
        if ":" in job:
            self._resting.add(job)
            self._schedule.postpone(job, REST_OF_REFUSED)
            if isinstance(error, CredentialsDoubted) and self._hot_jobs() <= self._resting:
                self._on_fatal(error)  # not one account is left that they work for
            return
        self._failures[job] += 1
        if self._failures[job] >= FAILURES_ALLOWED:
            self._on_fatal(error)
        elif not has_worked:
            # Nothing works before this heals: the last try is not as far away as the schedule has it.
            self._schedule.postpone(job, min(RETRIED_WITHIN, KINDS[job.kind].interval(self._setup().settings)))

    def _retry_soon(self, job: Job) -> None:
        """What is due once a day does not wait for a day because Twilio or the database was away for minutes."""
        if self._is_rare(job):
            self._schedule.postpone(job, RETRIED_AFTER)

    def _retry_at(self, job: Job) -> datetime | None:
        return datetime.now(UTC) + RETRIED_AFTER if self._is_rare(job) else self._schedule.next_run(job)

    def _is_rare(self, job: Job) -> bool:
        return KINDS[job.kind].interval(self._setup().settings) > RETRIED_AFTER

    def _hot_jobs(self) -> set[Job]:
        accounts = self._setup().accounts
        return {job_of("hot", account_sid, main=accounts.main) for account_sid in accounts.sids}

    def _note_missed(self, job: Job, count: int, why: str) -> None:
        account = self._account_of(job, self._setup())
        metrics.missed_runs.labels(job.kind, account or "").inc(count)
        with _named(job, account):
            log.warning("job.missed", count=count, why=why)

    def _account_of(self, job: Job, setup: Setup) -> str | None:
        return (job.partition(":")[2] or setup.accounts.main) if KINDS[job.kind].asks_twilio else None


def _named(job: Job, account: str | None) -> AbstractContextManager[None]:
    """Every line within says which job of which account it is about."""
    return bound_contextvars(job=job.kind, **({} if account is None else {"account": account}))

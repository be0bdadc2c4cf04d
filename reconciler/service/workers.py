"""The worker threads of one process: they run the jobs that are due (RECONCILER_ENGINE=local).

`make_workers` returns the workers that the settings ask for: these, or this daemon's part in a fleet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import ClassVar, Final

from reconciler import metrics
from reconciler.database.engine_schema import shares_work
from reconciler.errors import ReconcilerError
from reconciler.jobs.registry import KINDS, Kind
from reconciler.model import JobName, name_job
from reconciler.service.runner import Runner, Setup, Waits
from reconciler.service.schedule import Due, Schedule
from reconciler.status.verdict import Verdict
from reconciler.sync import telemetry

# Threads by kind of job. Jobs that ask Twilio mostly wait for the network. Each thread has a database connection.
POOLS: Final = {"hot": 8, "warm": 4, "cold": 1, "inbox": 1, "upkeep": 1}
_POOL_OF: Final = {"freeze": "upkeep", "housekeeping": "upkeep", "recordings": "warm", "webhooks": "warm"}


class Workers(ABC):
    """The workers of a daemon. They run jobs; while the daemon leads, they also start those that are due.

    `on_fatal` is called with an error that does not heal by waiting.
    """

    shares: ClassVar[bool]  # whether daemons that do not lead work too
    _pools: ClassVar[Mapping[str, int]]  # the threads that start what is due, by name

    def __init__(
        self,
        setup: Callable[[], Setup],
        *,
        on_fatal: Callable[[ReconcilerError], None],
        kinds: Mapping[str, Kind] | None = None,
        waits: Waits | None = None,
    ) -> None:
        self._setup = setup
        self._kinds = KINDS if kinds is None else kinds  # of jobs that are scheduled
        self._tasks = {**self._kinds, **self._unscheduled()}
        self._accounts: frozenset[str] = frozenset()
        self._runner = Runner(
            setup, kinds=self._tasks, waits=waits or Waits(), on_fatal=on_fatal, next_run=self._next_run
        )
        self._schedule = Schedule(self._start_due, pools=self._pools, on_missed=self._runner.note_missed)

    @property
    def hot_at(self) -> float | None:
        """The time.monotonic() of hot's last success, for any account."""
        return self._runner.hot_at

    @abstractmethod
    def work(self) -> None:
        """Take note that Twilio has accepted the credentials."""

    @abstractmethod
    def start(self) -> None:
        """Begin to lead, for the first time or after a pause."""

    @abstractmethod
    def pause(self) -> None:
        """Lead no more; runs under way continue, each under its own lock."""

    def reschedule(self) -> None:
        """Schedule the jobs for the accounts and intervals of the setup; forget the counts of removed accounts."""
        setup = self._setup()
        self._schedule.set(self._due_jobs(setup))
        before, self._accounts = self._accounts, frozenset(setup.accounts.sids)
        for account in before - self._accounts:
            telemetry.forget_counts(account)

    @abstractmethod
    def clear_failures(self) -> None:
        """Forget the failures under the previous configuration, and end the pauses that followed from them."""

    def shift(self, step: timedelta) -> None:
        """Move the schedule by `step`, by which the machine's clock was set, so that intervals stay the same."""
        self._schedule.shift(step)

    def stalled(self) -> JobName | None:
        """Return a job of this process that has made no progress for a long time; None if there is none."""
        return self._runner.stalled()

    def running(self) -> list[JobName]:
        """Return the jobs under way in this process, in order of their names."""
        return self._runner.running()

    def next_runs(self) -> dict[str, str]:
        """Return, by kind of job, the ISO time of the next run for any account, in the order of the jobs."""
        due: dict[str, datetime] = {}
        for job, at in self._schedule.next_runs():
            due[job.kind] = min(at, due.get(job.kind, at))
        return {kind: due[kind].isoformat(timespec="seconds") for kind in self._kinds if kind in due}

    @abstractmethod
    def stop(self, *, within: float) -> list[JobName]:
        """Give the runs `within` seconds to finish their current pages; return the jobs that did not end."""

    @abstractmethod
    def state_beside(self, leader: str) -> tuple[bool, str, Verdict]:
        """Return whether this daemon is ready while another leads, and its state in words and in one word."""

    @abstractmethod
    def _start_due(self, job: JobName) -> None:
        """Start the run of a job that is due; called by a thread of the job's pool."""

    @abstractmethod
    def _next_run(self, job: JobName) -> datetime | None:
        """Return when the job runs next."""

    @abstractmethod
    def _pool_of(self, kind: str, /) -> str:
        """Return the pool whose threads start jobs of this kind."""

    def _unscheduled(self) -> Mapping[str, Kind]:
        """Return the kinds of jobs that run here and are not scheduled."""
        return {}

    def _due_jobs(self, setup: Setup) -> list[Due]:
        """Return the jobs to schedule, for the accounts and intervals of the setup; show the intervals as metrics."""
        main, sids = setup.accounts.main, setup.accounts.sids
        due: list[Due] = []
        for name, kind in self._kinds.items():
            interval = kind.interval(setup.settings)
            metrics.interval.labels(name).set(interval.total_seconds())
            accounts = sids if kind.asks_twilio else (None,)
            due += [Due(name_job(name, account, main=main), interval, self._pool_of(name)) for account in accounts]
        return due


def make_workers(
    setup: Callable[[], Setup],
    *,
    on_fatal: Callable[[ReconcilerError], None],
    kinds: Mapping[str, Kind] | None = None,
    waits: Waits | None = None,
) -> Workers:
    """Return the workers that RECONCILER_ENGINE asks for; `on_fatal` gets an error that does not heal by waiting.

    Raises:
        ConfigError: the engine is not installed.

    """
    if not shares_work(setup().settings):
        return WorkerPool(setup, on_fatal=on_fatal, kinds=kinds, waits=waits)
    from reconciler.service.fleet import Fleet

    return Fleet(setup, on_fatal=on_fatal, kinds=kinds, waits=waits)


class WorkerPool(Workers):
    """Worker threads that run the jobs of `setup()` from `start` to `pause`."""

    shares = False  # only the leader works
    _pools = POOLS

    def work(self) -> None:
        """Do nothing: the runs of this process begin with its lead."""

    def start(self) -> None:
        """Start runs, for the first time or after a pause."""
        self._runner.open()
        self.reschedule()
        self._schedule.resume()

    def pause(self) -> None:
        """Start no more runs; those under way continue, each under its own lock."""
        self._runner.shut()
        self._schedule.pause()

    def clear_failures(self) -> None:
        """Forget the failures under the previous configuration, and end the pauses that followed from them."""
        for job in self._runner.clear_failures():
            self._schedule.postpone(job, timedelta(0))

    def stop(self, *, within: float) -> list[JobName]:
        """Give the runs `within` seconds to finish their current pages; return the jobs that did not end."""
        self._runner.interrupt()
        self._schedule.shut_down()
        return self._runner.wait(within)

    def state_beside(self, leader: str) -> tuple[bool, str, Verdict]:
        """Return whether this daemon is ready while another leads, and its state in words and in one word."""
        return False, f"standing by: {leader} leads", Verdict.STANDING_BY

    def _pool_of(self, kind: str) -> str:
        return _POOL_OF.get(kind, kind)

    def _next_run(self, job: JobName) -> datetime | None:
        return self._schedule.next_run(job)

    def _start_due(self, job: JobName) -> None:
        setup = self._setup()
        ended = self._runner.perform(job)
        if ended.is_held is not None:
            self._runner.skip(job, ended.is_held)
        if ended.again_in is not None:
            self._schedule.postpone(job, ended.again_in)
            if self._setup() is not setup:  # the failure was one of the previous configuration
                self._schedule.postpone(job, timedelta(0))

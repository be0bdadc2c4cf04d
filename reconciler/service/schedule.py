"""The schedule: when each job is due. It uses APScheduler, with explicit settings, and counts missed runs.

Design rules
- By default APScheduler drops a run that starts one second late, in silence (misfire_grace_time). Here a late run runs.
- If several runs of a job are due at once, one runs (coalesce): a job works through everything it missed. A job has one
  run at a time (max_instances). `on_missed` is called for each run that did not happen.
- Accounts start at random moments of the interval, and each run gets a small random delay. A thousand accounts
  therefore do not ask Twilio in the same second.
(https://apscheduler.readthedocs.io/en/3.x/userguide.html#missed-job-executions-and-coalescing)
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_SUBMITTED
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from reconciler.model import JobName

# APScheduler logs overruns in its own words; we log them as `job.missed`.
logging.getLogger("apscheduler.scheduler").setLevel(logging.ERROR)

_JITTER: Final = 0.05  # share of the interval
_JITTER_AT_MOST: Final = timedelta(seconds=5)
_SPREAD: Final = 0.9  # share of the interval over which the first runs of further accounts are spread


class Due(NamedTuple):
    """One job of the schedule: its interval, and the pool of threads that runs it."""

    job: JobName
    interval: timedelta
    pool: str


class Schedule:
    """Calls `execute` in a thread with each job that is due, until `shut_down`. It starts paused.

    `on_missed` is called with a job, the number of its runs that did not happen, and the reason:
    - `overrun`: the previous run was still going on;
    - `late`: the process or the machine stood still.
    """

    def __init__(
        self,
        execute: Callable[[JobName], None],
        *,
        pools: Mapping[str, int],
        on_missed: Callable[[JobName, int, str], None],
    ) -> None:
        self._execute = execute
        self._on_missed = on_missed
        self._due: dict[str, Due] = {}
        self._last: dict[str, datetime] = {}  # the time at which the last started run was due
        self._guard = threading.Lock()
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={name: ThreadPoolExecutor(threads) for name, threads in pools.items()},
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )
        self._scheduler.add_listener(self._note_started, EVENT_JOB_SUBMITTED)
        self._scheduler.add_listener(self._note_overrun, EVENT_JOB_MAX_INSTANCES)
        self._scheduler.start(paused=True)

    def set(self, due: Iterable[Due]) -> None:
        """Replace the schedule: new jobs run at once, changed intervals start now, other jobs are removed."""
        wanted = {str(item.job): item for item in due}
        with self._guard:
            for name in self._due.keys() - wanted.keys():
                self._scheduler.remove_job(name)
                self._last.pop(name, None)
            kinds: set[str] = set()
            for name, item in wanted.items():
                if self._due.get(name) != item:
                    delay = random.uniform(0, _SPREAD) * item.interval if item.job.kind in kinds else timedelta(0)  # noqa: S311 - spreads load
                    self._add(name, item, delay)
                kinds.add(item.job.kind)
            self._due = wanted

    def _add(self, name: str, item: Due, delay: timedelta) -> None:
        jitter = min(item.interval * _JITTER, _JITTER_AT_MOST)
        self._last.pop(name, None)
        self._scheduler.add_job(
            self._execute,
            "interval",
            args=[item.job],
            id=name,
            executor=item.pool,
            seconds=item.interval.total_seconds(),
            jitter=jitter.total_seconds(),
            next_run_time=datetime.now(UTC) + delay,
            replace_existing=True,
        )

    def resume(self) -> None:
        """Start running. Jobs that became due meanwhile run at once, and count no missed runs."""
        self._last.clear()
        self._scheduler.resume()

    def pause(self) -> None:
        """Start no more runs; those under way continue."""
        self._scheduler.pause()

    def shut_down(self) -> None:
        """Start no more runs, for good; those under way continue."""
        self._scheduler.shutdown(wait=False)

    def next_run(self, job: JobName) -> datetime | None:
        """Return when `job` is due next; None if it is paused or not in the schedule."""
        found = self._scheduler.get_job(str(job))
        return found.next_run_time if found is not None else None

    def next_runs(self) -> list[tuple[JobName, datetime]]:
        """Return when each job is due next; paused jobs are left out."""
        planned = [(found.id, found.next_run_time) for found in self._scheduler.get_jobs()]
        return [(JobName.parse(name), at) for name, at in planned if at is not None]

    def postpone(self, job: JobName, delay: timedelta) -> None:
        """Move the next run of `job` to `delay` from now. The runs left out meanwhile do not count as missed."""
        name = str(job)
        with self._guard:  # otherwise `set` might remove the job in between
            if self._scheduler.get_job(name) is not None:
                self._last.pop(name, None)
                self._scheduler.modify_job(name, next_run_time=datetime.now(UTC) + delay)

    def shift(self, step: timedelta) -> None:
        """Move all planned runs by `step`, the step by which the machine's clock was set.

        APScheduler plans by the wall clock. If that is set back by an hour, it would start nothing for an hour
        (https://github.com/agronholm/apscheduler/issues/351).
        """
        with self._guard:
            self._last = {name: at + step for name, at in self._last.items()}
            for found in self._scheduler.get_jobs():
                if found.next_run_time is not None:
                    self._scheduler.modify_job(found.id, next_run_time=found.next_run_time + step)

    def _note_started(self, event: Any) -> None:
        due = self._due.get(event.job_id)
        if due is None:
            return
        at = event.scheduled_run_times[-1]
        before, self._last[event.job_id] = self._last.get(event.job_id), at
        # Jitter adds at most a twentieth of an interval, so rounding gives the number of runs that became one.
        if before is not None and (missed := round((at - before) / due.interval) - 1) > 0:
            self._on_missed(due.job, missed, "late")

    def _note_overrun(self, event: Any) -> None:
        due = self._due.get(event.job_id)
        if due is not None:
            self._last[event.job_id] = event.scheduled_run_times[-1]
            self._on_missed(due.job, 1, "overrun")

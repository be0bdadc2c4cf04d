"""When each job is due: APScheduler, with its settings said aloud, and what it would drop in silence counted.

Design rules
- One second late, APScheduler by default drops a run in silence (misfire_grace_time); here a late run runs.
- Of several runs that came due together one runs (coalesce), and one run of a job at a time (max_instances): a job
  works through all it missed. Each run that did not happen of its own is told to `on_missed`.
- Accounts begin at random moments of the interval and each run is a little late, so that a thousand accounts do not
  ask Twilio in the same second.
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

# What it would say of overruns in words of its own, we say as `job.missed`.
logging.getLogger("apscheduler.scheduler").setLevel(logging.ERROR)

_JITTER: Final = 0.05  # of the interval,
_JITTER_AT_MOST: Final = timedelta(seconds=5)
_SPREAD: Final = 0.9  # of the interval, for the first run of an account that is not the first


class Due(NamedTuple):
    """A job of the schedule: how often, and by which of the pools of threads it is run."""

    job: JobName
    interval: timedelta
    pool: str


class Schedule:
    """Calls `execute` with each job when it is due, in threads, until it is shut down; paused at first.

    `on_missed` is told a job, how many of its runs did not happen, and why: `overrun` (the run before it was still at
    work) or `late` (the process or the machine stood still).
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
        self._last: dict[str, datetime] = {}  # when the last run that was started was due
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
        """Make the schedule `due`: new jobs run at once, an interval that changed holds from now, others end."""
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
        """Start running: what came due meanwhile runs at once, and none of it counts as missed."""
        self._last.clear()
        self._scheduler.resume()

    def pause(self) -> None:
        """Start nothing more; what runs goes on."""
        self._scheduler.pause()

    def shut_down(self) -> None:
        """Start nothing more, for good; what runs goes on."""
        self._scheduler.shutdown(wait=False)

    def next_run(self, job: JobName) -> datetime | None:
        """When `job` is due next."""
        found = self._scheduler.get_job(str(job))
        return found.next_run_time if found is not None else None

    def next_runs(self) -> list[tuple[JobName, datetime]]:
        """When each job is due next; a paused one is left out."""
        planned = [(found.id, found.next_run_time) for found in self._scheduler.get_jobs()]
        return [(JobName.parse(name), at) for name, at in planned if at is not None]

    def postpone(self, job: JobName, delay: timedelta) -> None:
        """Let `job` rest for `delay`; its rest counts as no missed run."""
        name = str(job)
        with self._guard:  # or it might be removed in between
            if self._scheduler.get_job(name) is not None:
                self._last.pop(name, None)
                self._scheduler.modify_job(name, next_run_time=datetime.now(UTC) + delay)

    def shift(self, step: timedelta) -> None:
        """Move what is planned by `step`, by which the machine's clock was set.

        APScheduler plans by the wall clock: set back by an hour, it would start nothing for an hour
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
        # Jitter adds up to a twentieth of an interval, so whole intervals tell how many runs were folded into one.
        if before is not None and (missed := round((at - before) / due.interval) - 1) > 0:
            self._on_missed(due.job, missed, "late")

    def _note_overrun(self, event: Any) -> None:
        due = self._due.get(event.job_id)
        if due is not None:
            self._last[event.job_id] = event.scheduled_run_times[-1]
            self._on_missed(due.job, 1, "overrun")

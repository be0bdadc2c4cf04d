"""The work of a fleet: every daemon takes up runs, and the leader defers those that are due.

Design rules
- APScheduler stays what ticks, in the leader; the engine's queue hands the runs out (`service/engine.py`).
- A run that fails is put off in the queue, not in the leader's memory: so the pause outlives a change of the lead.
- A run whose job is locked tries again for a minute and more. The lock may be that of a machine that was cut off; the
  server ends a session that is silent for a minute (`Store`). After that the run is skipped, as without a fleet.
- A run that was cut short, because its daemon stops, goes back into the queue at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final

from reconciler.errors import ReconcilerError
from reconciler.jobs.backfill_slice import KIND as BACKFILL
from reconciler.jobs.registry import SLICE, Kind
from reconciler.model import JobName
from reconciler.service.engine import Again, Engine
from reconciler.service.engine_tables import Identity
from reconciler.service.leadership import host_name
from reconciler.service.runner import Ended, Setup, Waits
from reconciler.service.workers import Workers
from reconciler.status.verdict import Verdict
from reconciler.sync.context import Options

HELD_FOR: Final = timedelta(seconds=10)  # between two tries
HELD_TRIES: Final = 8  # to take a task back from a silent worker counts as one

_POOL: Final = "due"


class Fleet(Workers):
    """This daemon's part in the fleet.

    `work` begins to take up runs; from `start` to `pause` the daemon leads, and defers what is due.
    """

    shares = True
    _pools: ClassVar[Mapping[str, int]] = {_POOL: 1}

    def __init__(
        self,
        setup: Callable[[], Setup],
        *,
        on_fatal: Callable[[ReconcilerError], None],
        kinds: Mapping[str, Kind] | None = None,
        waits: Waits | None = None,
    ) -> None:
        super().__init__(setup, on_fatal=on_fatal, kinds=kinds, waits=waits)
        self._engine = Engine(
            lambda: self._setup().url,
            Identity(host_name(), os.getpid(), datetime.now(UTC), setup().settings.workers),
            run=self._perform,
            on_missed=self._runner.note_missed,
            hot_at=self._own_hot_at,
        )

    @property
    def hot_at(self) -> float | None:
        """The time.monotonic() of hot's last success: in any daemon if this one leads, else in this one."""
        seen = self._engine.hot_seen_at
        if seen is None:
            return self._runner.hot_at
        at = time.monotonic() - max(0.0, (datetime.now(UTC) - seen).total_seconds())
        return at if self._runner.hot_at is None else max(at, self._runner.hot_at)

    def work(self) -> None:
        """Take up runs from now on."""
        self._runner.open()
        self._engine.start()

    def start(self) -> None:
        """Defer what is due, as the leader."""
        self.reschedule()
        self._engine.leads = True
        self._schedule.resume()

    def pause(self) -> None:
        """Defer no more; this daemon goes on working as long as another leads."""
        self._engine.leads = False
        self._schedule.pause()

    def clear_failures(self) -> None:
        """Forget the failures under the previous configuration; the leader ends the pauses that followed from them."""
        self._runner.clear_failures()
        self._engine.end_pauses()

    def stop(self, *, within: float) -> list[JobName]:
        """Give the runs `within` seconds to finish their current pages; return the jobs that did not end."""
        deadline = time.monotonic() + within
        self._schedule.shut_down()
        self._runner.interrupt()
        self._engine.stop(within=within)
        return self._runner.wait(max(0.0, deadline - time.monotonic()))

    def state_beside(self, leader: str) -> tuple[bool, str, Verdict]:
        """Return whether this daemon is ready while another leads, and its state in words and in one word."""
        if not self._engine.is_connected:
            return False, "waiting for the database: the queue does not answer", Verdict.WAITING
        return True, f"working in a fleet: {leader} leads", Verdict.WORKING

    def _start_due(self, job: JobName) -> None:
        self._engine.defer(job)

    def _pool_of(self, _kind: str) -> str:
        return _POOL

    def _unscheduled(self) -> Mapping[str, Kind]:
        return {BACKFILL: SLICE}

    def _perform(self, job: JobName, task: Mapping[str, Any], attempts: int) -> None:
        """Run the job of a task.

        Raises:
            Again: the run is to happen again; the engine puts its task back.

        """
        if job.kind not in self._tasks:  # a newer version deferred it
            raise Again(HELD_FOR)
        setup = self._setup()
        ended = self._runner.perform(job, Options(slice=task.get("slice"), room=task.get("room")))
        again_in = decide_again(ended, attempts)
        if ended.again_in is not None and self._setup() is not setup:
            again_in = timedelta(0)  # the failure was one of the previous configuration
        if again_in is not None:
            raise Again(again_in)
        if ended.is_held is not None:
            self._runner.skip(job, ended.is_held)

    def _own_hot_at(self) -> datetime | None:
        at = self._runner.hot_at
        return None if at is None else datetime.now(UTC) - timedelta(seconds=time.monotonic() - at)

    def _next_run(self, job: JobName) -> datetime | None:
        return datetime.now(UTC) + self._tasks[job.kind].interval(self._setup().settings)


def decide_again(ended: Ended, attempts: int) -> timedelta | None:
    """Decide when the task of a run that ended so is worked again; None: it is done. Pure."""
    if ended.was_cut_short:
        return timedelta(0)
    if ended.is_held is not None:
        return HELD_FOR if attempts + 1 < HELD_TRIES else None
    return ended.again_in

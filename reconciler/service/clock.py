"""Notices steps of the machine's clock: set by hand, by NTP at boot, or by a hypervisor that woke a guest."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

# A smaller step may delay a run by this much. NTP corrects less than 0.128 s by slewing, not by a step.
SMALLEST_STEP: Final = timedelta(seconds=2)


def steady() -> float:
    """Return seconds on a clock that cannot be set. It runs while the machine is suspended, like the wall clock."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)  # Linux
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


class ClockWatch:
    """Compares the wall clock with a clock that cannot be set, from one call of `step` to the next."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._offset = wall() - steady()

    def step(self) -> timedelta | None:
        """Return how far the clock was set since the last call, negative if back; None below `SMALLEST_STEP`."""
        before, self._offset = self._offset, self._wall() - steady()
        step = timedelta(seconds=self._offset - before)
        return step if abs(step) >= SMALLEST_STEP else None

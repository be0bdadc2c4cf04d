"""Notices that the machine's clock was set: by hand, by NTP at boot, by a hypervisor that woke a guest."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

# A smaller step delays a run by no more than this. NTP corrects less than 0.128 s by slewing, not by a step.
SMALLEST_STEP: Final = timedelta(seconds=2)


def steady() -> float:
    """Seconds on a clock that nobody sets. It goes on while the machine is suspended, as the wall clock does."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)  # Linux
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


class ClockWatch:
    """Compares the wall clock with one that nobody sets, from one look to the next."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._offset = wall() - steady()

    def step(self) -> timedelta | None:
        """By how much the clock was set since the last look, negative if back; None if by less than `SMALLEST_STEP`."""
        before, self._offset = self._offset, self._wall() - steady()
        step = timedelta(seconds=self._offset - before)
        return step if abs(step) >= SMALLEST_STEP else None

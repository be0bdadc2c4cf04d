"""The clock of simulated calls: a test sets it, or it follows real time at a multiple.

Every instant is aware and in UTC. A clock may be set back: every call then looks as it did at that time.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Self


class Clock:
    """A clock that stands still until `set` or `advance` moves it; thread-safe."""

    def __init__(self, at: datetime) -> None:
        self._lock = threading.Lock()
        self._base = _utc(at)
        self._speed = 0.0
        self._since = 0.0

    @classmethod
    def running(cls, start: datetime | None = None, speed: float = 1.0) -> Self:
        """Return a clock that starts at `start` (default: now) and runs `speed` times as fast as real time."""
        clock = cls(start or datetime.now(UTC))
        clock._speed = speed
        clock._since = time.monotonic()
        return clock

    def now(self) -> datetime:
        """The simulated instant, in UTC."""
        with self._lock:
            return self._now()

    def set(self, at: datetime) -> None:
        """Set the clock to `at`; a running clock runs on from there."""
        with self._lock:
            self._base, self._since = _utc(at), time.monotonic()

    def advance(self, by: timedelta) -> datetime:
        """Move the clock by `by` and return the new instant."""
        with self._lock:
            self._base += by
            return self._now()

    def _now(self) -> datetime:
        if not self._speed:
            return self._base
        return self._base + timedelta(seconds=(time.monotonic() - self._since) * self._speed)


def _utc(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise ValueError(f"a clock needs an aware time, not {at!r}")
    return at.astimezone(UTC)

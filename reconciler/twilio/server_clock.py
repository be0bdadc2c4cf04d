"""The time of Twilio's answers: their `Date`, as far as it is credible.

An observation outranks all observations before its date. A date in the future would outrank the truth until then. A
proxy may write such a date, a cache may repeat it, and our own clock may be the one that is wrong.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

CLOCKS_DIFFER: Final = timedelta(minutes=5)  # the largest difference between Twilio's machines, and to ours
AGREEING: Final = 3  # so many answers in a row that agree with one another outweigh our clock
FARTHEST: Final = timedelta(days=2)  # a date farther ahead of our clock is never accepted

_boot_time: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # runs while the machine sleeps


class ServerClock:
    """Decides which dates of answers are credible; safe to use from several threads.

    - A date in the past is always accepted.
    - A later date is accepted up to CLOCKS_DIFFER after our clock, or after the time that earlier answers lead to
      expect.
    - If our clock is behind, AGREEING answers in a row that agree with one another are accepted.
    - A date that is not accepted is replaced by the expected time, or by our clock's if there is no earlier answer.
    """

    def __init__(self, ours: Callable[[], datetime]) -> None:
        self.told: datetime | None = None  # the date of the last answer itself, accepted or not
        self._ours = ours
        self._latest: tuple[datetime, float] | None = None  # the latest accepted date, and its arrival
        self._odd: tuple[datetime, float, int] | None = None  # the last one not accepted, and how many agree
        self._lock = threading.Lock()

    def read(self, date: datetime | None) -> datetime:
        """Return the time of an answer, in whole seconds; `date` is the answer's own date, None if it has none."""
        now, tick = self._ours(), time.clock_gettime(_boot_time)
        with self._lock:
            self.told = date
            expected = None if self._latest is None else _later(self._latest, tick)
            if date is not None and self._is_accepted(date, expected, now, tick):
                if expected is None or date > expected:
                    self._latest = date, tick
                return date
            return (now if expected is None else expected).replace(microsecond=0)

    def now(self) -> datetime | None:
        """The moment that Twilio's clock shows, as its answers lead to expect; None before the first that was accepted.

        Our clock has no say in it: it may be set while the program runs.
        """
        tick = time.clock_gettime(_boot_time)
        with self._lock:
            return None if self._latest is None else _later(self._latest, tick)

    def _is_accepted(self, date: datetime, expected: datetime | None, now: datetime, tick: float) -> bool:
        if expected is None:
            is_allowed = date <= now + CLOCKS_DIFFER
        else:
            is_allowed = date <= expected + CLOCKS_DIFFER or abs(date - now) <= CLOCKS_DIFFER
        if is_allowed:
            self._odd = None
            return True
        agreeing = 1
        if self._odd is not None and abs(date - _later(self._odd[:2], tick)) <= CLOCKS_DIFFER:
            agreeing += self._odd[2]
        self._odd = date, tick, agreeing
        return agreeing >= AGREEING and date <= now + FARTHEST


def _later(then: tuple[datetime, float], tick: float) -> datetime:
    date, came_at = then
    return date + timedelta(seconds=tick - came_at)

"""When Twilio said what it says: the `Date` of its answers, as far as it can be believed.

What an answer says outranks all that was said before its date, so a date in the future would outrank the truth until
then. A proxy may write such a date, a cache may repeat it, and our own clock may be the one that is wrong.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

CLOCKS_DIFFER: Final = timedelta(minutes=5)  # Twilio's machines among one another, and ours
AGREEING: Final = 3  # answers in a row that say the same, against our clock, are Twilio's clock
FARTHEST: Final = timedelta(days=2)  # ahead of our clock, that it can be

_boot_time: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while the machine sleeps


class ServerClock:
    """Reads the dates of answers; safe to use from several threads.

    A date is believed if it is no later than our clock, or earlier answers and the time since, allow. Where our clock
    is behind, answers that agree with one another are believed after some of them. Another date counts as the moment
    that earlier answers lead to expect, or as ours if there are none. A date in the past is always believed.
    """

    def __init__(self, ours: Callable[[], datetime]) -> None:
        self.told: datetime | None = None  # what the last answer said itself, believed or not
        self._ours = ours
        self._latest: tuple[datetime, float] | None = None  # of the dates believed, and when it came
        self._odd: tuple[datetime, float, int] | None = None  # the last of those not believed, and how many agree
        self._lock = threading.Lock()

    def read(self, date: datetime | None) -> datetime:
        """The moment that an answer was given at, in whole seconds; `date` is what it says itself."""
        now, tick = self._ours(), time.clock_gettime(_boot_time)
        with self._lock:
            self.told = date
            expected = None if self._latest is None else _later(self._latest, tick)
            if date is not None and self._is_believed(date, expected, now, tick):
                if expected is None or date > expected:
                    self._latest = date, tick
                return date
            return (now if expected is None else expected).replace(microsecond=0)

    def _is_believed(self, date: datetime, expected: datetime | None, now: datetime, tick: float) -> bool:
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

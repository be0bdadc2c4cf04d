"""The plan of a sweep: the slices that are left, and their order; pure.

Design rules
- A page commits with the cursor that holds the plan. After a kill the next run continues at that place, and reads again
  only the pages that were under way.
- Several threads may merge pages at once. They commit one after another: each moves the plan in `moving`.
- A slice that fails does not affect the others, and stays in the plan. Days that could not be read together are read
  one by one from then on.
- Days are cut into slices when there is room to read them. A slice has as many days as will fill some pages: a page
  that is not full costs as much as a full one, and most accounts have fewer calls a day than a page holds.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from math import ceil
from typing import Final

from reconciler.sync.cursors import PlanCursor
from reconciler.sync.fetch import Fetched
from reconciler.sync.slices import (
    MARGIN,
    NEVER_DIALLED,
    OPEN,
    Slice,
    pages_expected,
    slice_by_status,
    slice_named,
    slice_of_days,
    slice_of_recordings_up_to,
    starts,
)
from reconciler.times import utc_days

# The size of a slice, as predicted from the days read so far. With less than a page a request returns little. With ten
# pages the last one, which is not full, does not matter, and after a dead page token few pages are read again.
_PAGES_AT_LEAST: Final = 1
_PAGES_AT_MOST: Final = 10

_ONE_DAY: Final = timedelta(days=1)


@dataclass(slots=True)
class Plan:
    """The plan of a window: the slices that are left to read. `state` is its part in the cursor, always up to date."""

    account_sid: str
    state: PlanCursor
    _lock: threading.RLock = field(default_factory=threading.RLock)  # held to change the plan, or to write its cursor
    # These are of whole days only: today may have just begun.
    _expected: dict[str, float] = field(default_factory=dict)  # calls a day by slice under way
    _seen: Counter[str] = field(default_factory=Counter)  # calls by slice under way
    _calls_read: int = 0
    _days_read: int = 0

    @classmethod
    def of(cls, account_sid: str, since: datetime, until: datetime) -> Plan:
        """Return the plan of a window of which nothing has been read; its ends are rounded outwards to seconds."""
        since = since.replace(microsecond=0)
        plan = cls(account_sid, PlanCursor(since=since, until=since, done=0, pending_windows=[], begun={}))
        plan.extend(until)
        return plan

    def add_recordings(self, since: datetime, until: datetime) -> None:
        """Add the recordings that were created from `since` up to and with the second of `until`.

        One slice covers the whole window: most accounts have fewer recordings in it than a page holds.
        """
        self.state.begun[slice_of_recordings_up_to(self.account_sid, since, until).name] = None

    @classmethod
    def resume(cls, account_sid: str, state: PlanCursor) -> Plan:
        """Return the plan that a cursor holds.

        Raises:
            ValueError: the cursor names a slice that cannot exist.

        """
        for name in state.begun:
            slice_named(account_sid, name)
        return cls(account_sid, state)

    def extend(self, until: datetime) -> None:
        """Add the days from the plan's end up to `until`, and the calls that are open now.

        The new window overlaps the old end by MARGIN: Twilio may not yet have listed calls that began just before it.
        """
        state = self.state
        if until.microsecond:
            until = until.replace(microsecond=0) + timedelta(seconds=1)
        if until <= state.until:
            return
        since = max(state.since, state.until - MARGIN)
        for status in (*OPEN, *NEVER_DIALLED):
            # A slice that was not begun is replaced, so that extending a plan often does not multiply its requests.
            unread = [s for s in self._begun() if s.listing.status is status and state.begun[s.name] is None]
            for slice_ in unread:
                del state.begun[slice_.name]
            earliest = min([since, *(slice_.since for slice_ in unread)])
            state.begun[slice_by_status(self.account_sid, status, earliest, until).name] = None
        if state.pending_windows and state.pending_windows[-1][1] == state.until:
            since, _ = state.pending_windows.pop()
        state.pending_windows.append((since, until))
        state.until = until

    @property
    def left(self) -> list[str]:
        """The names of the statuses and days that have not been read to their end."""
        under_way = [part for name in self.state.begun for part in slice_named(self.account_sid, name).parts]
        return under_way + [
            part for window in self.state.pending_windows for part in slice_of_days(self.account_sid, *window).parts
        ]

    def open_calls(self) -> list[Slice]:
        """Return the slices of open calls, which must be read before the others."""
        return [slice_ for slice_ in self._begun() if slice_.listing.status in OPEN]

    def others(self, at_once: int, page_size: int) -> Iterator[Slice]:
        """Yield the other slices, the newest days first, each cut when it is taken; `at_once` are read at a time.

        Slices under way come first. A status takes turns with days: it may be a long slice, and it may fail. Days that
        could not be read before come last, because they may fail again.
        """
        begun = self.state.begun
        others = [s for s in self._begun() if s.listing.status not in OPEN and not s.is_of_recordings]
        yield from [slice_ for slice_ in others if begun[slice_.name] is not None]
        unread = [slice_ for slice_ in others if begun.get(slice_.name, "") is None]
        statuses = iter([slice_ for slice_ in unread if slice_.listing.status is not None])
        while (days := self._next_days(at_once, page_size)) is not None:
            yield days
            yield from islice(statuses, 1)
        yield from statuses
        yield from [slice_ for slice_ in unread if slice_.listing.status is None]

    def recordings(self) -> list[Slice]:
        """Return the slices of recordings, which are read after the calls."""
        return [slice_ for slice_ in self._begun() if slice_.is_of_recordings]

    def leave_out_recordings(self) -> int:
        """Record that the recordings that are left will not be read; return the number of their slices."""
        with self._lock:
            left = self.recordings()
            for slice_ in left:
                del self.state.begun[slice_.name]
            self.state.done += len(left)
        return len(left)

    def split(self, slice_: Slice) -> None:
        """Record that a slice could not be read. If it has several days, each is read alone from now on."""
        if len(slice_.parts) > 1:
            with self._lock:
                self.state.begun.pop(slice_.name, None)
                self.state.begun |= dict.fromkeys(slice_.parts)

    def replace(self, slice_: Slice, parts: Sequence[Slice]) -> None:
        """Record that these parts are read in place of a slice."""
        with self._lock:
            del self.state.begun[slice_.name]
            self.state.begun |= dict.fromkeys(part.name for part in parts)
            self._forget(slice_)

    @contextmanager
    def moving(self, item: Fetched) -> Iterator[None]:
        """Record that `item` is merged; its commit happens inside. If that fails, the record is taken back."""
        with self._lock:
            take_back = self._move(item)
            try:
                yield
            except BaseException:
                take_back()
                raise
            self._count(item)

    def _move(self, item: Fetched) -> Callable[[], None]:
        """Move on to the state after `item`; return what takes that back."""
        state, name = self.state, item.slice.name
        before, done = state.begun[name], state.done
        if item.next_uri is not None:
            state.begun[name] = item.next_uri
        else:
            del state.begun[name]
            state.begun |= dict.fromkeys(slice_.name for slice_ in item.instead)
            state.done += 0 if item.instead else len(item.slice.parts)

        def take_back() -> None:
            for slice_ in item.instead:
                del state.begun[slice_.name]
            state.begun[name], state.done = before, done

        return take_back

    def _count(self, item: Fetched) -> None:
        """Count the calls of `item`, which tell how many days fill a page."""
        if not item.instead and _whole_days(item.slice):
            self._seen[item.slice.name] += len(item.page.observations)
            if item.next_uri is None:
                self._learn(item.slice, self._seen[item.slice.name])
                self._forget(item.slice)

    def expect(self, item: Fetched) -> None:
        """Estimate from a slice's first page how many calls its days have. The page may not be merged yet."""
        calls = item.page.observations
        if item.is_first and calls:
            pages = 1 if item.next_uri is None else pages_expected(item.slice, starts(item.page))
            self.note(item.slice, len(calls) * pages)

    def note(self, slice_: Slice, calls: float) -> None:
        """Record how many calls a slice has, as far as is known while it is read."""
        if calls and (whole_days := _whole_days(slice_)):
            with self._lock:
                self._expected[slice_.name] = calls / whole_days

    def settle(self, slice_: Slice, calls: int) -> None:
        """Record that another process has read a slice to its end, and how many calls it had."""
        with self._lock:
            self._forget(slice_)
            del self.state.begun[slice_.name]
            self.state.done += len(slice_.parts)
            self._learn(slice_, calls)

    @property
    def knows_days(self) -> bool:
        """Whether the calls of a day are known, which tell how many days fill a page."""
        return bool(self._days_read or self._expected)

    def calls_expected(self, since: datetime, until: datetime) -> float:
        """Return how many calls a window has, if its days are like those that were read."""
        return self._calls_read / max(1, self._days_read) * ((until - since) / _ONE_DAY)

    def _learn(self, slice_: Slice, calls: int) -> None:
        if whole_days := _whole_days(slice_):
            self._calls_read += calls
            self._days_read += whole_days

    def _forget(self, slice_: Slice) -> None:
        self._seen.pop(slice_.name, None)
        self._expected.pop(slice_.name, None)

    def _next_days(self, at_once: int, page_size: int) -> Slice | None:
        """Take the next slice of days from the windows that were not read; None if there is none."""
        with self._lock:
            if not self.state.pending_windows:
                return None
            since, until = self.state.pending_windows.pop()
            days = utc_days(since, until)
            start, _ = days[-self._days_wanted(len(days), at_once, page_size)]
            if start > since:
                self.state.pending_windows.append((since, start))
            slice_ = slice_of_days(self.account_sid, start, until)
            self.state.begun[slice_.name] = None
            return slice_

    def _begun(self) -> list[Slice]:
        return [slice_named(self.account_sid, name) for name in self.state.begun]

    def _days_wanted(self, days_left: int, at_once: int, page_size: int) -> int:
        """Return the number of days for the next slice: enough to fill pages, but some for each slice read at once."""
        if not self.knows_days:
            return 1
        expected = self._expected.values()
        calls, days = (self._calls_read, self._days_read) if self._days_read else (sum(expected), len(expected))
        unread = days_left + sum(map(_whole_days, self._begun()))
        share = ceil(unread / at_once)
        # The days that are done first have the fewest calls, and may be Sundays. A slice therefore takes no more days
        # than have been read already, or than its equal share of those that are not read yet.
        a_day = max(1, calls) / days
        full, enough = (pages * page_size // a_day for pages in (_PAGES_AT_LEAST, _PAGES_AT_MOST))
        wanted = min(max(share, full), enough, max(share, self._days_read))
        return max(1, min(days_left, int(wanted)))


def _whole_days(slice_: Slice) -> int:
    """Return how many whole days of calls a slice has."""
    is_of_days = slice_.listing.status is None and not slice_.is_of_recordings
    return (slice_.until - slice_.since) // _ONE_DAY if is_of_days else 0

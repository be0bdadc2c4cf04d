"""The plan of a sweep: which slices are left, and which comes next; pure.

Design rules
- A page commits with the cursor that holds the plan. A run goes on where a killed one stopped, and reads no page again
  but those that were under way.
- A slice that fails leaves the others alone, and stays in the plan. Days that could not be read together are tried one
  by one from then on.
- Days are cut into slices when there is room to read them, as many together as will fill some pages. A page that is not
  full costs as much as a full one, and most accounts have fewer calls a day than a page holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from reconciler.sync.cursors import PlanCursor
from reconciler.sync.fetch import Fetched
from reconciler.sync.slices import MARGIN, NEVER_DIALLED, OPEN, Slice, slice_by_status, slice_named, slice_of_days
from reconciler.times import utc_days

# The size of a slice, as far as the days read so far foretell. Less than a page is a request for little. Of ten pages
# the last one, which is not full, does not matter; and a dead page token makes us read few pages again.
_PAGES_AT_LEAST: Final = 1
_PAGES_AT_MOST: Final = 10

_ONE_DAY: Final = timedelta(days=1)


@dataclass(slots=True)
class Plan:
    """What is left to read of a window. `state` is what a cursor keeps of it, always up to date."""

    account_sid: str
    state: PlanCursor
    _seen: Counter[str] = field(default_factory=Counter)  # calls, of the slices under way
    _calls_read: int = 0
    _days_read: int = 0  # whole ones; today may have just begun

    @classmethod
    def of(cls, account_sid: str, since: datetime, until: datetime) -> Plan:
        """The plan of a window of which nothing was read, up to a second wider at either end."""
        since = since.replace(microsecond=0)
        plan = cls(account_sid, PlanCursor(since=since, until=since, done=0, pending_windows=[], begun={}))
        plan.extend(until)
        return plan

    @classmethod
    def resume(cls, account_sid: str, state: PlanCursor) -> Plan:
        """The plan that a cursor kept.

        Raises:
            ValueError: it names slices that cannot be.

        """
        for name in state.begun:
            slice_named(account_sid, name)
        return cls(account_sid, state)

    def extend(self, until: datetime) -> None:
        """Add the days from the plan's end up to `until`, and the calls that are open by now.

        The new window overlaps the old end by MARGIN: Twilio may not yet have listed calls that began just before it.
        """
        state = self.state
        if until.microsecond:
            until = until.replace(microsecond=0) + timedelta(seconds=1)
        if until <= state.until:
            return
        since = max(state.since, state.until - MARGIN)
        for status in (*OPEN, *NEVER_DIALLED):
            # A slice that was not begun is asked for once, however often a plan is extended.
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
        """The statuses and days that were not read to their end, by name."""
        under_way = [part for name in self.state.begun for part in slice_named(self.account_sid, name).parts]
        return under_way + [
            part for window in self.state.pending_windows for part in slice_of_days(self.account_sid, *window).parts
        ]

    def open_calls(self) -> list[Slice]:
        """The slices of open calls, which are to be read before the others."""
        return [slice_ for slice_ in self._begun() if slice_.listing.status in OPEN]

    def others(self, at_once: int, page_size: int) -> Iterator[Slice]:
        """The other slices, the newest days first, each cut when it is drawn; `at_once` are read at a time.

        Slices under way come first. Slices of which nothing could be read before come last: they may fail again.
        """
        begun = self.state.begun
        others = [slice_ for slice_ in self._begun() if slice_.listing.status not in OPEN]
        yield from [slice_ for slice_ in others if begun[slice_.name] is not None]
        while self.state.pending_windows:
            since, until = self.state.pending_windows.pop()
            days = utc_days(since, until)
            start, _ = days[-self._days_wanted(len(days), at_once, page_size)]
            if start > since:
                self.state.pending_windows.append((since, start))
            slice_ = slice_of_days(self.account_sid, start, until)
            begun[slice_.name] = None
            yield slice_
        yield from [slice_ for slice_ in others if begun.get(slice_.name, "") is None]

    def split(self, slice_: Slice) -> None:
        """Note that a slice could not be read. If it is several days, each of them is tried alone from now on."""
        if len(slice_.parts) > 1:
            self.state.begun.pop(slice_.name, None)
            self.state.begun |= dict.fromkeys(slice_.parts)

    def move(self, item: Fetched) -> None:
        """Note that `item` is about to be merged."""
        name = item.slice.name
        self._seen[name] += len(item.page.observations)
        if item.next_uri is not None:
            self.state.begun[name] = item.next_uri
            return
        del self.state.begun[name]
        self.state.done += len(item.slice.parts)
        calls, whole_days = self._seen.pop(name), (item.slice.until - item.slice.since) // _ONE_DAY
        if item.slice.listing.status is None and whole_days:
            self._calls_read += calls
            self._days_read += whole_days

    def _begun(self) -> list[Slice]:
        return [slice_named(self.account_sid, name) for name in self.state.begun]

    def _days_wanted(self, days_left: int, at_once: int, page_size: int) -> int:
        """How many days the next slice is to have: some for each of those read at once, and full pages."""
        if not self._days_read:
            return 1
        share = days_left // at_once
        # The days with the fewest calls are done first, and may be Sundays. So a slice takes no more days than were
        # read already, or than leaves as many for each of the others.
        a_day = max(1, self._calls_read) / self._days_read
        full, enough = (pages * page_size // a_day for pages in (_PAGES_AT_LEAST, _PAGES_AT_MOST))
        wanted = min(max(share, full), enough, max(share, self._days_read))
        return max(1, min(days_left, int(wanted)))

"""A sweep's plan, and working through it: which slices are left, which are under way, each page one commit.

Design rules
- A page commits with the cursor that holds the plan, so a run goes on where a killed one stopped and reads no page
  again but those that were under way.
- A slice that fails leaves the others alone; what was not read is still in the plan. Days that could not be read
  together are tried one by one from then on.
- Days are cut into slices when there is room to read them, as many together as will fill some pages: a page that is
  not full costs as much as one that is, and most accounts have fewer calls a day than a page holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from reconciler.sync.fetch import Fetched
from reconciler.sync.slices import LIVING, MARGIN, NEVER_DIALLED, Slice, slice_by_status, slice_named, slice_of_days
from reconciler.times import utc_days
from reconciler.twilio.listing import PAGE_SIZE

# Of a slice, as far as the days read so far foretell. Less than a page is a request for little; of ten pages the last
# one, which is not full, is no matter, and what a dead page token makes us read again is not much.
_PAGES_AT_LEAST: Final = 1
_PAGES_AT_MOST: Final = 10

_ONE_DAY: Final = timedelta(days=1)


@dataclass(slots=True)
class Plan:
    """What is left to read of the window `[since, until)`, which is in whole seconds, as the names of slices are.

    `done` counts the statuses and days that were read to their end. `uncut` are the windows of which nothing was begun,
    oldest first; `open` names the slices that were, each with its next page, or None before its first one was read.
    """

    account_sid: str
    since: datetime
    until: datetime
    done: int = 0
    uncut: list[tuple[datetime, datetime]] = field(default_factory=list)
    open: dict[str, str | None] = field(default_factory=dict)
    _seen: Counter[str] = field(default_factory=Counter)  # calls, of the slices under way
    _calls_read: int = 0
    _days_read: int = 0  # whole ones; today may have just begun

    @classmethod
    def of(cls, account_sid: str, since: datetime, until: datetime) -> Plan:
        """The plan of a window of which nothing was read, up to a second wider at either end."""
        since = since.replace(microsecond=0)
        plan = cls(account_sid, since, since)
        plan.extend(until)
        return plan

    @classmethod
    def from_json(cls, account_sid: str, value: Mapping[str, Any]) -> Plan:
        """The plan that `as_json` wrote.

        Raises:
            ValueError, KeyError, TypeError: it did not write this.

        """
        moment = datetime.fromisoformat
        uncut = [(moment(since), moment(until)) for since, until in value["uncut"]]
        for name in value["open"]:
            slice_named(account_sid, name)
        since, until, done = moment(value["since"]), moment(value["until"]), int(value["done"])
        return cls(account_sid, since, until, done, uncut, dict(value["open"]))

    def as_json(self) -> dict[str, Any]:
        """What a cursor keeps of it."""
        return {
            "since": self.since.isoformat(),
            "until": self.until.isoformat(),
            "done": self.done,
            "uncut": [[since.isoformat(), until.isoformat()] for since, until in self.uncut],
            "open": self.open,
        }

    def extend(self, until: datetime) -> None:
        """Add what has passed since its end: the days up to `until`, and who lives by now.

        A little is added again: of what began just before the old end, Twilio may not have known when it was read.
        """
        if until.microsecond:
            until = until.replace(microsecond=0) + timedelta(seconds=1)
        if until <= self.until:
            return
        since = max(self.since, self.until - MARGIN)
        for status in (*LIVING, *NEVER_DIALLED):
            # What was not begun is asked for once, however often a plan is extended.
            unread = [s for s in self._opened() if s.listing.status is status and self.open[s.name] is None]
            for slice_ in unread:
                del self.open[slice_.name]
            first = min([since, *(slice_.since for slice_ in unread)])
            self.open[slice_by_status(self.account_sid, status, first, until).name] = None
        if self.uncut and self.uncut[-1][1] == self.until:
            since, _ = self.uncut.pop()
        self.uncut.append((since, until))
        self.until = until

    @property
    def left(self) -> list[str]:
        """What was not read to its end: statuses and days, by name."""
        under_way = [part for name in self.open for part in slice_named(self.account_sid, name).parts]
        return under_way + [part for window in self.uncut for part in slice_of_days(self.account_sid, *window).parts]

    def living(self) -> list[Slice]:
        """The slices of the living, which are to be read before the others."""
        return [slice_ for slice_ in self._opened() if slice_.listing.status in LIVING]

    def others(self, at_once: int) -> Iterator[Slice]:
        """The other slices, the newest days first, each cut when it is drawn; `at_once` are read at a time.

        Those under way come first, and last those of which nothing could be read before: they may fail again.
        """
        others = [slice_ for slice_ in self._opened() if slice_.listing.status not in LIVING]
        yield from [slice_ for slice_ in others if self.open[slice_.name] is not None]
        while self.uncut:
            since, until = self.uncut.pop()
            days = utc_days(since, until)
            start, _ = days[-self._days_wanted(len(days), at_once)]
            if start > since:
                self.uncut.append((since, start))
            slice_ = slice_of_days(self.account_sid, start, until)
            self.open[slice_.name] = None
            yield slice_
        yield from [slice_ for slice_ in others if self.open.get(slice_.name, "") is None]

    def split(self, slice_: Slice) -> None:
        """Note that a slice could not be read: if it is several days, each of them is tried alone from now on."""
        if len(slice_.parts) > 1:
            self.open.pop(slice_.name, None)
            self.open |= dict.fromkeys(slice_.parts)

    def move(self, item: Fetched) -> None:
        """Note that `item` is about to be merged."""
        name = item.slice.name
        self._seen[name] += len(item.page.observations)
        if item.next_uri is not None:
            self.open[name] = item.next_uri
            return
        del self.open[name]
        self.done += len(item.slice.parts)
        calls, whole_days = self._seen.pop(name), (item.slice.until - item.slice.since) // _ONE_DAY
        if item.slice.listing.status is None and whole_days:
            self._calls_read += calls
            self._days_read += whole_days

    def _opened(self) -> list[Slice]:
        return [slice_named(self.account_sid, name) for name in self.open]

    def _days_wanted(self, days_left: int, at_once: int) -> int:
        """How many days the next slice is to have: something for each of those read at once, and full pages."""
        if not self._days_read:
            return 1
        share = days_left // at_once
        # The days with the fewest calls are done first, and may be Sundays: what is taken at once is no more than was
        # read already, or than leaves as much for each of the others.
        a_day = max(1, self._calls_read) / self._days_read
        full, enough = (pages * PAGE_SIZE // a_day for pages in (_PAGES_AT_LEAST, _PAGES_AT_MOST))
        wanted = min(max(share, full), enough, max(share, self._days_read))
        return max(1, min(days_left, int(wanted)))

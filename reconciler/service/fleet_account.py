"""One account of a backfill by a fleet: which slices its workers read next, and what they have read; pure.

Design rules
- Open calls first: the slices of days wait for them, unless the days are long past (see `sync.order`).
- The first slices have one day each, because nothing is known of the account yet. Few of them are begun before their
  first pages have told how many days fill a page.
- Recordings come after their calls, because a recording's URL goes into the row of its call. When no other slice is
  left to begin, the recordings begin whose calls have been read. The rest waits for the last calls.
- A slice that a worker has cut is replaced by its parts, which all workers share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import ceil
from typing import Final

from reconciler.errors import ReconcilerError
from reconciler.jobs.backfill import BackfillCounts
from reconciler.jobs.backfill_slice import counts_in, name_slice
from reconciler.jobs.recordings import LONGEST
from reconciler.model import JobName
from reconciler.service.backfill_queue import SliceTask
from reconciler.sync.cursors import BackfillCursor, SliceCursor
from reconciler.sync.fetch import Failed
from reconciler.sync.order import Order
from reconciler.sync.plan import Plan
from reconciler.sync.slices import NEVER_DIALLED, Slice, divide_recordings, slice_named, slice_of_recordings
from reconciler.times import next_midnight
from reconciler.twilio.listing import PAGE_SIZE

AHEAD: Final = 2  # tasks for each slice that is read: a worker that has read one finds the next
_DAYS_AT_FIRST: Final = 3  # slices of one day
_AFTER_OPEN_CALLS: Final = 4  # slices: calls that were never dialled, today and yesterday
_FAILURES_ENOUGH: Final = 3  # in a row
_WORTH_DIVIDING: Final = 30 * PAGE_SIZE  # calls; to read their recordings in two slices costs a request
_ONE_DAY: Final = timedelta(days=1)


@dataclass(slots=True)
class Account:
    """One account's part: the plan, what the workers are at, and the counts of the slices that are done."""

    sid: str
    job: JobName
    cursor: BackfillCursor
    plan: Plan
    order: Order
    recordings: deque[Slice]  # that were not begun, newest first
    counts: BackfillCounts
    at_once: int  # requests, at most
    under_way: dict[JobName, Slice] = field(default_factory=dict)
    failures_in_a_row: int = 0
    is_changed: bool = True  # since its plan was committed
    recordings_a_day: float = 0  # of the slice of recordings that was read last
    is_drained: bool = False  # no slice was left to begin, except those that wait for slices under way
    counted: list[JobName] = field(default_factory=list)  # slices whose rows go with the next commit

    @classmethod
    def of(
        cls, sid: str, job: JobName, cursor: BackfillCursor, *, resumed: bool, at_once: int, now: datetime
    ) -> Account:
        """Return the account whose plan is in `cursor`; as many requests are sent `at_once` as one process would send.

        So the slices are those of one process.
        """
        plan, counts = Plan(sid, cursor), BackfillCounts(resumed=resumed)
        counts.slices, counts.slices_done = len(plan.left) + cursor.done, cursor.done
        order = Order(
            plan.others(at_once, PAGE_SIZE),
            first=plan.open_calls(),
            is_independent=lambda slice_: slice_.is_settled(now),
        )
        return cls(sid, job, cursor, plan, order, deque(_newest_first(plan.recordings())), counts, at_once)

    def draw(self) -> SliceTask | None:
        """Return the next slice to read; None if there is none now."""
        if self.failures_in_a_row >= _FAILURES_ENOUGH or len(self.under_way) >= self._room:
            return None
        slice_ = self.order.draw() or self._draw_recordings()
        if slice_ is None:
            self.is_drained = not any(map(self.order.is_first, self.under_way.values()))
            return None
        job = name_slice(self.sid, self.cursor.begun_at, slice_)
        self.under_way[job] = slice_
        self.is_changed = True
        return SliceTask(job, slice_.name, is_urgent=slice_.is_of_recordings)

    @property
    def _room(self) -> int:
        """How many slices may be under way. Twilio's budget leaves no room for more."""
        if self.plan.knows_days:
            return self.at_once * AHEAD
        open_calls = sum(map(self.order.is_first, self.under_way.values()))
        return min(self.at_once * AHEAD, _DAYS_AT_FIRST + (open_calls or _AFTER_OPEN_CALLS))

    def _draw_recordings(self) -> Slice | None:
        """Return the next slice of recordings whose calls have been read; divide one of which only the later have."""
        if not self.recordings:
            return None
        slice_, read_from = self.recordings[0], self._recordings_due_from()
        if read_from is None or read_from <= slice_.since:
            parts = divide_recordings(slice_, self._pages_expected(slice_))
        else:
            is_most = slice_.until - read_from >= read_from - slice_.since
            if not is_most or self.plan.calls_expected(slice_.since, slice_.until) < _WORTH_DIVIDING:
                return None
            windows = (read_from, slice_.until), (slice_.since, read_from)
            parts = tuple(slice_of_recordings(self.sid, *window) for window in windows)
        self.recordings.popleft()
        self.recordings.extendleft(reversed(parts))
        self._replace(slice_, parts)
        return self.recordings.popleft()

    def _pages_expected(self, slice_: Slice) -> int:
        """Return how many pages a slice of recordings has, if its days are like those whose recordings were read."""
        return ceil(self.recordings_a_day * _days(slice_) / PAGE_SIZE)

    def _recordings_due_from(self) -> datetime | None:
        """Return the moment from which on the calls of all recordings have been read; None if all calls have."""
        unread = [
            slice_.until
            for slice_ in self.under_way.values()
            if not slice_.is_of_recordings and slice_.listing.status not in NEVER_DIALLED
        ]
        return next_midnight(max(unread) + LONGEST) if unread else None

    def _replace(self, slice_: Slice, parts: Sequence[Slice]) -> None:
        self.plan.replace(slice_, parts)
        self.counts.slices += len(parts) - len(slice_.parts)

    def note(self, job: JobName, cursor: SliceCursor) -> None:
        """Note how far a slice is that a worker reads. Its counts do not have the last page, which was full."""
        if not any(cursor.begun.values()):
            return  # no page was followed by another
        slice_, counts = self.under_way[job], counts_in(cursor)
        if slice_.is_of_recordings:
            seen = counts.recordings_seen + PAGE_SIZE * 1.5  # at least a part of a page comes
            self.recordings_a_day = seen / _days(slice_)
        else:
            self.plan.note(slice_, counts.seen + PAGE_SIZE)

    def settle(self, job: JobName, cursor: SliceCursor) -> None:
        """Count a slice that was read to its end, or cut."""
        slice_ = self.under_way[job]
        counts = counts_in(cursor)
        self.counts.add(counts)
        if cursor.begun:
            parts = _newest_first([slice_named(self.sid, name) for name in cursor.begun])
            self._replace(slice_, parts)
            self.order.insert(parts, instead_of=slice_)
        else:
            self.plan.settle(slice_, counts.seen)
            self.counts.slices_done += len(slice_.parts)
            if slice_.is_of_recordings:
                self.recordings_a_day = counts.recordings_seen / _days(slice_)
        self.failures_in_a_row = 0
        self._end(job)

    def fail(self, job: JobName, error: ReconcilerError) -> None:
        """Note a slice that could not be read; it stays in the plan."""
        slice_ = self.under_way[job]
        self.plan.split(slice_)
        self.counts.failed.append(Failed(slice_, error))
        self.failures_in_a_row += 1
        self._end(job)

    def _end(self, job: JobName) -> None:
        self.order.end(self.under_way.pop(job))
        self.is_changed, self.is_drained = True, False
        self.counted.append(job)

    def give_up(self) -> None:
        """After too many failures in a row: all slices that were not begun have failed too, the recordings as well."""
        if self.failures_in_a_row >= _FAILURES_ENOUGH and not self.under_way:
            error = self.counts.failed[-1].error
            self.counts.failed += [Failed(slice_, error) for slice_ in (*self.order.rest(), *self.recordings)]
            self.recordings.clear()
            self.failures_in_a_row = 0


def _days(slice_: Slice) -> float:
    return (slice_.until - slice_.since) / _ONE_DAY


def _newest_first(slices: Sequence[Slice]) -> list[Slice]:
    return sorted(slices, key=lambda slice_: slice_.since, reverse=True)

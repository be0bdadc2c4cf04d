"""Calls in order of creation, with fast access to those that were alive in a window of time.

Filters use start_time or end_time, but the order is that of date_created, and a call may start hours after its
creation. Almost all calls live less than an hour: for these a window is a slice of the list, with an hour's margin.
The few longer calls are in a second list as well.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from operator import attrgetter

from reconciler.simulator.calls import Call

LONG_LIFE = 3600

Position = tuple[int, str]

_position = attrgetter("created", "sid")
_created = attrgetter("created")


class Timeline:
    """Calls sorted by (created, sid). The order is total, so a page token names a stable place in it."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._long: list[Call] = []

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls)

    def add(self, calls: Iterable[Call]) -> None:
        """Insert calls in their places; many calls cost one sort."""
        calls = list(calls)
        for target, new in ((self._calls, calls), (self._long, [call for call in calls if _is_long(call)])):
            if len(new) > 1:
                target.extend(new)
                target.sort(key=_position)
            elif new:
                insort(target, new[0], key=_position)

    def remove(self, call: Call) -> None:
        """Remove one call."""
        for target in (self._calls, self._long):
            at = bisect_left(target, _position(call), key=_position)
            if at < len(target) and target[at].sid == call.sid:
                del target[at]

    def newest_first(
        self, since: int | None = None, until: int | None = None, older_than: Position | None = None
    ) -> Iterator[Call]:
        """Yield every call that was alive in [since, until), newest first; others may be among them."""
        early = None if since is None else since - LONG_LIFE
        yield from _descending(self._calls, early, until, older_than)
        if early is not None:
            yield from _descending(self._long, None, early if until is None else min(early, until), older_than)

    def oldest_first(self, newer_than: Position) -> Iterator[Call]:
        """Yield the calls after a position, in order of creation."""
        for index in range(bisect_left(self._calls, newer_than, key=_position), len(self._calls)):
            if _position(self._calls[index]) > newer_than:
                yield self._calls[index]


def _descending(calls: list[Call], since: int | None, until: int | None, older_than: Position | None) -> Iterator[Call]:
    first = 0 if since is None else bisect_left(calls, since, key=_created)
    last = len(calls) if until is None else bisect_left(calls, until, key=_created)
    if older_than is not None:
        last = min(last, bisect_left(calls, older_than, key=_position))
    for index in range(last - 1, first - 1, -1):
        yield calls[index]


def _is_long(call: Call) -> bool:
    return call.ended is None or call.ended - call.created > LONG_LIFE

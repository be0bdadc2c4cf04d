"""The order in which the slices of a sweep are begun, and whose pages may be handled; pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from reconciler.sync.slices import Slice
from reconciler.twilio.budget import START

_LOOKS_AHEAD: Final = 16  # slices; those that may not begin yet come first, and are few


class Order:
    """Which slice is begun next: `first`, then the others, then `last`.

    - `first` is read to its end before others begin, except those that are independent. They are sought among the next
      few.
    - A slice is taken from the others when there is room for it. Until a page has told how many calls the days have
      (`knows_size`), only few are taken.
    - `last` begins when no other slice is left to begin. One of it begins at once, because its first page shows whether
      it must be cut; the rest begins when there is room. Their pages are handled when all others are read.
    - Unless it `reads_parts`, other processes read the parts of a slice that is cut: here they do not begin.
    """

    def __init__(
        self,
        others: Iterable[Slice] = (),
        *,
        first: Sequence[Slice] = (),
        last: Sequence[Slice] = (),
        is_independent: Callable[[Slice], bool] = lambda _: False,
        knows_size: Callable[[], bool] = lambda: True,
        reads_parts: bool = True,
    ) -> None:
        self._first = deque(first)
        self._first_left = {slice_.name for slice_ in first}
        self._others = iter(others)
        self._next: deque[Slice] = deque()  # drawn from the others, and not begun yet
        self._are_others_drawn = False
        self._under_way: set[str] = set()  # all that `last` waits for
        self._last = deque(last)
        self._has_begun_last = False
        self._last_left = {slice_.name for slice_ in last}
        self._is_independent = is_independent
        self._knows_size = knows_size
        self._reads_parts = reads_parts

    def draw(self) -> Slice | None:
        """The next slice; None if there is none, or none that may begin yet."""
        slice_ = self._draw_before_last()
        if slice_ is not None:
            self._under_way.add(slice_.name)
            return slice_
        return None if self._has_begun_last else self.draw_last()

    def draw_last(self) -> Slice | None:
        """The next slice of `last`; None if there is none, or another slice must begin before."""
        if not (self._last and self._are_others_begun):
            return None
        self._has_begun_last = True
        return self._last.popleft()

    def insert(self, slices: Sequence[Slice], *, instead_of: Slice) -> None:
        """Begin these, which replace a slice, before any other of its kind that was not begun."""
        if not self._reads_parts:
            return
        if instead_of.name in self._last_left:
            self._last_left.update(slice_.name for slice_ in slices)
            self._last.extendleft(reversed(slices))
        else:
            self._next.extendleft(reversed(slices))

    def is_first(self, slice_: Slice) -> bool:
        """Whether the slice is one of those that the others wait for."""
        return slice_.name in self._first_left

    def is_turn_of(self, slice_: Slice) -> bool:
        """Whether the slice's pages may be handled: those of `last` wait until all others are read."""
        return (self._are_others_begun and not self._under_way) or slice_.name not in self._last_left

    def end(self, slice_: Slice) -> bool:
        """Note that a slice was read, or failed; True if it was the last that the others waited for."""
        was_first = self.is_first(slice_)
        self._first_left.discard(slice_.name)
        self._under_way.discard(slice_.name)
        return was_first and not self._first_left

    def rest(self) -> Iterator[Slice]:
        """All that was not begun."""
        waiting = [*self._first, *self._next]
        self._first.clear()
        self._next.clear()
        yield from waiting
        yield from self._others
        self._are_others_drawn = True
        yield from self._last
        self._last.clear()

    @property
    def is_blind(self) -> bool:
        """Whether the others wait for a page of those under way, which will tell how large the next ones may be."""
        return len(self._under_way) >= START and not self._knows_size()

    @property
    def _are_others_begun(self) -> bool:
        return self._are_others_drawn and not self._next and not self._first

    def _draw_before_last(self) -> Slice | None:
        if self._first:
            return self._first.popleft()
        if self._next and not self._first_left:
            return self._next.popleft()
        for part in filter(self._is_independent, self._next):  # they replace an independent slice
            self._next.remove(part)
            return part
        while len(self._next) < _LOOKS_AHEAD and not self.is_blind and (slice_ := self._draw_other()) is not None:
            if not self._first_left or self._is_independent(slice_):
                return slice_
            self._next.append(slice_)
        return None

    def _draw_other(self) -> Slice | None:
        slice_ = next(self._others, None)
        self._are_others_drawn = slice_ is None
        return slice_

"""The reading of slices from Twilio: several at once, with each page handled as it arrives.

Design rules
- Slices in `first` are read to their end before others begin. A sweep reads open calls first. A call whose start moves
  to another day during the sweep was open when the sweep began. So no order of the days can lose it. Days long past
  hold no such call, and do not wait.
- Slices in `last` are handled when all others are read, because a recording goes into the row of its call. Their first
  pages are requested earlier, when no other slice is left to begin, and wait.
- At most one page of a slice is under way: the next is requested when the page has been handled. After a kill only the
  pages that were under way are read again. Pages of different slices may be handled at once.
- Slices that were not begun come first, then those with the most pages left. The number of slices begun is limited.
- `decide`, which is pure, decides what follows an error. The loop only does it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from reconciler.errors import OutsideRetention, ReconcilerError, TwilioAnswerError, Unavailable
from reconciler.logs import get_logger
from reconciler.model import Page
from reconciler.sync.order import Order
from reconciler.sync.reading import ENOUGH_AT_LEAST, GiveUp, Nothing, Reading, Retry, Tally, decide
from reconciler.sync.slices import Slice, dates_created, is_newest_first, pages_expected
from reconciler.twilio.budget import START
from reconciler.twilio.client import Session

log = get_logger(__name__)

T = TypeVar("T")


class Fetched(NamedTuple):
    """One page of one slice, with only the calls that belong to the slice.

    - `next_uri`: the next page; None if the slice is done.
    - `is_first`: the page is the first of its listing.
    - `in_order`: the calls of this page and of the one before it are in order, newest first.
    - `instead`: the slices that are read instead of this one. They bring its records, so the page has none.
    """

    slice: Slice
    page: Page
    next_uri: str | None
    is_first: bool = True
    in_order: bool = True
    instead: tuple[Slice, ...] = ()


# Called with the first of several pages, and the number of places that no other slice needs.
Cut = Callable[[Fetched, int], tuple[Slice, ...]]


class Handled(NamedTuple, Generic[T]):
    """A page, and the result of its handling."""

    item: Fetched
    result: T


class Failed(NamedTuple):
    """A slice that could not be read to its end, and the error."""

    slice: Slice
    error: ReconcilerError


def fetch(
    session: Session,
    order: Order,
    *,
    resume_at: Mapping[str, str | None] | None = None,
    cut: Cut,
    on_arrived: Callable[[Fetched], None],
    handle: Callable[[Fetched], T],
    handlers: Executor,
    make_executor: Callable[[int], Executor],
    stop: threading.Event,
) -> Generator[Handled[T] | Failed, None, None]:
    """Read slices in the given order, several at once; yield each page when it is handled.

    - The pages of a slice are handled in their order. While a page is handled, others are fetched.
    - `on_arrived` is called with each page as it arrives. Then `handlers` call `handle` with it, whose error ends the
      reading.
    - `resume_at` maps a slice's name to the page at which to continue.
    - `cut` is called with the first of several pages of a slice. The slices that it returns are read instead. It is
      called in a thread of the pool, and may ask Twilio.
    - When `stop` is set, the reading ends early, between two pages.
    - A slice that fails is yielded as Failed, and the others continue. If as many fail in a row as run at once, the
      remaining ones are Failed without a try. So are all others, if Twilio was away for all that were begun.

    Raises:
        Refused: credentials or permissions do not suffice; no other slice would succeed. A slice of recordings fails
            alone.

    """
    with make_executor(session.concurrency) as pool:
        yield from _Loop(session, pool, resume_at or {}, stop, order, cut, on_arrived, handle, handlers).read()


def fetch_in_order(
    session: Session, slice_: Slice, *, resume_at: str | None, stop: threading.Event
) -> Iterator[Fetched]:
    """Read one slice in the caller's thread; yield its pages, up to the first one that is not in order.

    Raises:
        ReconcilerError: the slice cannot be read.

    """
    reading = Reading(slice_, slice_.listing, resume_at)
    while True:
        try:
            item = _received(reading, session.page(reading.listing, reading.path))
        except ReconcilerError as exc:
            step = decide(reading, exc, Tally(at_once=1))
            if not isinstance(step, Retry):
                raise
            reading = Reading(slice_, step.listing, None, begun_anew=step.begun_anew)
            continue
        yield item
        if item.next_uri is None or not item.in_order or stop.is_set():
            return


def _received(reading: Reading, page: Page) -> Fetched:
    """Return the page for the caller, and move `reading` to the next page.

    Raises:
        TwilioAnswerError: the next page has been read already.

    """
    slice_, is_first = reading.slice, reading.path is None
    if reading.path is not None:
        reading.asked.add(reading.path)
    next_uri = None if slice_.is_past(page) else page.next_uri
    if next_uri is not None and next_uri in reading.asked:
        reading.begun_anew = True  # reading again from the first page would lead round the same circle
        raise TwilioAnswerError("next_page_uri leads round in a circle")
    created = dates_created(page)
    in_order = is_newest_first(created if reading.oldest is None else [reading.oldest, *created])
    reading.oldest = created[-1] if created else reading.oldest
    reading.path = next_uri
    reading.pages_left = pages_expected(slice_, created) - 1
    return Fetched(slice_, slice_.keep(page), next_uri, is_first, in_order)


class Inline(Executor):
    """An executor that works in the thread of its caller, at once."""

    def submit(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call `work` and return its outcome."""
        done: Future[T] = Future()
        try:
            done.set_result(work(*args, **kwargs))
        except Exception as exc:
            done.set_exception(exc)
        return done


class _Loop(Generic[T]):
    """The reading loop, for as many slices at once as the tally says."""

    def __init__(
        self,
        session: Session,
        pool: Executor,
        resume_at: Mapping[str, str | None],
        stop: threading.Event,
        order: Order,
        cut: Cut,
        on_arrived: Callable[[Fetched], None],
        handle: Callable[[Fetched], T],
        handlers: Executor,
    ) -> None:
        self._session = session
        self._pool = pool
        self._resume_at = resume_at
        self._stop = stop
        self._order = order
        self._cut = cut
        self._on_arrived = on_arrived
        self._handle = handle
        self._handlers = handlers
        self._arrived: SimpleQueue[Callable[[], Iterator[Handled[T] | Failed]]] = SimpleQueue()
        self._has_answered = session.client.has_worked
        self._tally = Tally(session.concurrency if self._has_answered else min(START, session.concurrency))
        self._busy = 0  # slices of which a page is asked for, cut or handled
        self._next: list[Reading] = []  # slices whose next page is not asked for yet
        self._waiting: list[tuple[Reading, Fetched]] = []  # pages that wait until their slices' turn comes

    def read(self) -> Iterator[Handled[T] | Failed]:
        """Yield the pages as they are handled."""
        while True:
            self._ask_for_pages()
            if self._waiting and self._order.is_turn_of(self._waiting[0][0].slice):
                yield from self._hand_over(*self._waiting.pop(0))
            elif self._busy:
                yield from self._arrived.get()()
            else:
                return

    def _ask_for_pages(self) -> None:
        """Ask for as many pages as there are places.

        Slices that were not begun come first, then those with the most pages left. So all slices are read to their end
        at about the same time, and no long one is left to be read alone. The pages of `last` have to wait anyway.
        """
        while self._places > 0 and not self._stop.is_set():
            if (reading := self._begin(self._order.draw)) is not None:
                self._ask(reading)
            elif self._next:
                longest = max(self._next, key=lambda reading: reading.pages_left)
                self._next.remove(longest)
                self._ask(longest)
            elif (reading := self._begin(self._order.draw_last)) is not None:
                self._ask(reading)
            else:
                return

    def _begin(self, draw: Callable[[], Slice | None]) -> Reading | None:
        """Begin the slice that is drawn; None if there is none, or no more may be begun."""
        if not self._may_begin:
            return None
        slice_ = draw()
        if slice_ is None:
            self._tally.are_all_begun = not self._order.is_blind  # all that may begin by now
            return None
        self._tally.begun += 1
        return Reading(slice_, slice_.listing, self._resume_at.get(slice_.name))

    @property
    def _places(self) -> int:
        """The number of pages that may be asked for.

        One that waits takes no place, up to half as many as come at once: a page of recordings takes 0.8 MB.
        """
        at_once = self._tally.at_once
        return min(at_once, at_once + at_once // 2 - len(self._waiting)) - self._busy

    @property
    def _may_begin(self) -> bool:
        """Whether one more slice may be begun: each takes room in the cursor."""
        at_once = self._tally.at_once
        if not self._has_answered:  # a few slices show as well as many that Twilio is away, or refuses
            return self._tally.begun < max(ENOUGH_AT_LEAST, at_once)
        return self._busy + len(self._next) < at_once + at_once // 2

    def _receive(self, reading: Reading, asked: Future[Page]) -> Iterator[Handled[T] | Failed]:
        self._busy -= 1
        try:
            item = _received(reading, asked.result())
        except ReconcilerError as exc:
            yield from self._obey(reading, exc)
            return
        self._note_answer()
        self._tally.failures_in_a_row = 0
        self._on_arrived(item)
        if item.is_first and item.next_uri is not None:
            room = max(0, self._places - len(self._next)) if self._tally.are_all_begun else 0
            self._busy += 1
            cut = self._pool.submit(copy_context().run, self._cut, item, room)
            cut.add_done_callback(lambda done: self._arrived.put(partial(self._replace, reading, item, done)))
        else:
            yield from self._hand_over_in_turn(reading, item)

    def _note_answer(self) -> None:
        """Note that Twilio is there, even if what it said was an error."""
        self._has_answered = True
        self._tally.at_once = self._session.concurrency

    def _replace(
        self, reading: Reading, item: Fetched, cut: Future[tuple[Slice, ...]]
    ) -> Iterator[Handled[T] | Failed]:
        """Hand over what replaces a slice that is to be cut, else its first page."""
        self._busy -= 1
        if instead := cut.result():
            yield from self._hand_over(
                reading, item._replace(page=item.page.without_records(), next_uri=None, instead=instead)
            )
        else:
            yield from self._hand_over_in_turn(reading, item)

    def _hand_over_in_turn(self, reading: Reading, item: Fetched) -> Iterator[Handled[T]]:
        if self._order.is_turn_of(item.slice):
            yield from self._hand_over(reading, item)
        else:
            self._waiting.append((reading, item))

    def _hand_over(self, reading: Reading, item: Fetched) -> Iterator[Handled[T]]:
        self._busy += 1
        handled = self._handlers.submit(copy_context().run, self._handle, item)
        if handled.done():
            yield from self._go_on(reading, item, handled)
        else:
            handled.add_done_callback(lambda done: self._arrived.put(partial(self._go_on, reading, item, done)))

    def _go_on(self, reading: Reading, item: Fetched, handled: Future[T]) -> Iterator[Handled[T]]:
        self._busy -= 1
        yield Handled(item, handled.result())
        self._order.insert(item.instead, instead_of=item.slice)  # not earlier: only from here on the plan has them
        if item.next_uri is not None:
            self._next.append(reading)
        else:
            self._end(reading)

    def _end(self, reading: Reading) -> None:
        if self._order.end(reading.slice):
            self._tally.are_all_begun = False

    def _ask(self, reading: Reading) -> None:
        self._busy += 1
        asked = self._pool.submit(self._session.page, reading.listing, reading.path)
        asked.add_done_callback(lambda done: self._arrived.put(partial(self._receive, reading, done)))

    def _obey(self, reading: Reading, error: ReconcilerError) -> Iterator[Handled[T] | Failed]:
        match decide(reading, error, self._tally):
            case Retry(listing, begun_anew):
                if isinstance(error, OutsideRetention):  # a part of the slice is lost
                    _log_failed(f"{reading.listing.since:%F}", error)
                self._ask(Reading(reading.slice, listing, None, begun_anew=begun_anew))
            case Nothing():
                _log_failed(reading.slice.name, error)
                self._note_answer()
                self._tally.failures_in_a_row = 0
                yield from self._hand_over(
                    reading, Fetched(reading.slice, Page([], [], None, reading.slice.until), None)
                )
            case step:
                is_first = self._order.is_first(reading.slice)
                self._end(reading)
                self._tally.failures_in_a_row += 1
                if not isinstance(error, Unavailable):
                    self._note_answer()
                is_silent = self._stop.is_set() or (error.is_refusal and reading.slice.is_of_recordings)
                if not is_silent:
                    log.error("slice.failed", slice=reading.slice.name, error=str(error), kind=type(error).__name__)
                yield Failed(reading.slice, error)
                # What Twilio cannot tell of open calls, it may tell of the days.
                gives_up = isinstance(step, GiveUp) and (not is_first or isinstance(error, Unavailable))
                if gives_up and not self._stop.is_set():
                    yield from (Failed(untried, error) for untried in self._order.rest())


def _log_failed(name: str, error: ReconcilerError) -> None:
    log.warning("slice.failed", slice=name, error=str(error), kind=type(error).__name__)

"""The reading of slices from Twilio: several at once, with each page handled as it arrives.

Design rules
- Slices in `first` are read to their end before others begin. A sweep reads open calls first. A call whose start moves
  to another day during the sweep was open when the sweep began, so no order of the days can lose it. Days long past
  hold no such call, and do not wait.
- Slices in `last` are handled when all others are read, because a recording goes into the row of its call. Their first
  pages are requested earlier, when no other slice is left to begin, and wait.
- At most one page of a slice is under way: the next is requested when the page has been handled. After a kill only the
  pages that were under way are read again. Pages of different slices may be handled at once.
- `decide`, which is pure, decides what follows an error. The loop only does it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, Generic, NamedTuple, TypeVar

from reconciler.errors import (
    FilterIgnored,
    OutsideRetention,
    ReconcilerError,
    Refused,
    Retriable,
    TimeIgnored,
    TwilioAnswerError,
    Unavailable,
)
from reconciler.logs import get_logger
from reconciler.model import Page
from reconciler.sync.order import Order
from reconciler.sync.slices import Slice, dates_created, is_newest_first, slice_of_days
from reconciler.times import midnight
from reconciler.twilio.budget import START
from reconciler.twilio.client import Session
from reconciler.twilio.listing import Listing

_ENOUGH_AT_LEAST: Final = 2  # failures in a row; a single one may be a day that Twilio cannot list

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


@dataclass(slots=True)
class Reading:
    """A slice that is being read: the path of the page asked for last (None: the first page), and all paths so far."""

    slice: Slice
    listing: Listing  # the slice's listing, or one of its later days only
    path: str | None
    asked: set[str] = field(default_factory=set)
    begun_anew: bool = False
    oldest: datetime | None = None  # creation of the last call on the page before


@dataclass(slots=True)
class Tally:
    """The state of all slices: how many are read at once, how many were begun, and how many failed in a row."""

    at_once: int
    begun: int = 0
    are_all_begun: bool = False
    failures_in_a_row: int = 0


class Retry(NamedTuple):
    """The decision to read this listing from its first page; `begun_anew`: a page of the same listing made no sense."""

    listing: Listing
    begun_anew: bool


class Nothing(NamedTuple):
    """The decision that the slice is done: it is older than Twilio's retention, so there is nothing to compare with."""


class Skip(NamedTuple):
    """The decision that the slice has failed; the others continue."""


class GiveUp(NamedTuple):
    """The decision that nothing works any more: the slices that were not begun are not tried."""


def decide(reading: Reading, error: ReconcilerError, tally: Tally) -> Retry | Nothing | Skip | GiveUp:
    """Decide what follows an error; pure. `tally` does not count the error yet.

    Raises:
        ReconcilerError: the error itself, if no other slice would fare better.

    """
    listing = reading.listing
    if isinstance(error, OutsideRetention) and listing.since is not None:
        # Twilio gives this error also if only a part of the window is too old: it may still have the later days.
        later = midnight(listing.since) + timedelta(days=1)
        return Retry(replace(listing, since=later), begun_anew=False) if later < reading.slice.until else Nothing()
    if isinstance(error, TimeIgnored):  # the hours are read from the days around them
        days = slice_of_days(listing.account_sid, reading.slice.since, reading.slice.until)
        return Retry(days.listing, begun_anew=False)
    # A page token names a call, and may be useless once that is deleted. And if Twilio ignored a filter once, the next
    # pages may be those of the whole log. In both cases the slice can still be read from its first page.
    is_of_page = isinstance(error, TwilioAnswerError | FilterIgnored)
    if is_of_page and reading.path is not None and not reading.begun_anew:
        return Retry(listing, begun_anew=True)
    if isinstance(error, Refused) and reading.slice.is_of_recordings:
        return Skip()  # a key may read calls, and no recordings
    if not isinstance(error, Retriable | TwilioAnswerError | OutsideRetention):
        raise error
    failures = tally.failures_in_a_row + 1
    have_all_failed = tally.are_all_begun and failures == tally.begun
    return GiveUp() if have_all_failed or failures >= max(_ENOUGH_AT_LEAST, tally.at_once) else Skip()


def fetch(
    session: Session,
    order: Order,
    *,
    resume_at: Mapping[str, str | None] | None = None,
    cut: Cut,
    handle: Callable[[Fetched], T],
    handlers: Executor,
    make_executor: Callable[[int], Executor],
    stop: threading.Event,
) -> Generator[Handled[T] | Failed, None, None]:
    """Read slices in the given order, several at once; yield each page when it is handled.

    - The pages of a slice are handled in their order. While a page is handled, others are fetched.
    - `handle` is called with each page as it arrives, by `handlers`. An error of it ends the reading.
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
        yield from _Loop(session, pool, resume_at or {}, stop, order, cut, handle, handlers).read()


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
        handle: Callable[[Fetched], T],
        handlers: Executor,
    ) -> None:
        self._session = session
        self._pool = pool
        self._resume_at = resume_at
        self._stop = stop
        self._order = order
        self._cut = cut
        self._handle = handle
        self._handlers = handlers
        self._arrived: SimpleQueue[Callable[[], Iterator[Handled[T] | Failed]]] = SimpleQueue()
        self._has_answered = session.client.has_worked
        self._tally = Tally(session.concurrency if self._has_answered else min(START, session.concurrency))
        self._under_way = 0
        self._waiting: list[tuple[Reading, Fetched]] = []  # pages that wait until their slices' turn comes

    def read(self) -> Iterator[Handled[T] | Failed]:
        """Yield the pages as they are handled."""
        while True:
            self._begin_slices()
            if self._waiting and self._order.is_turn_of(self._waiting[0][0].slice):
                yield from self._hand_over(*self._waiting.pop(0))
            elif self._under_way > len(self._waiting):
                yield from self._arrived.get()()
            else:
                return

    @property
    def _room(self) -> int:
        """The number of slices that may be begun. One whose page waits takes no room, up to as many as run at once."""
        at_once = self._tally.at_once
        room = at_once - self._under_way + min(len(self._waiting), at_once)
        # Until Twilio has answered once, a few slices show as well as many that it is away, or refuses.
        return room if self._has_answered else min(room, max(_ENOUGH_AT_LEAST, at_once) - self._tally.begun)

    def _receive(self, reading: Reading, asked: Future[Page]) -> Iterator[Handled[T] | Failed]:
        try:
            item = _received(reading, asked.result())
        except ReconcilerError as exc:
            yield from self._obey(reading, exc)
            return
        self._note_answer()
        self._tally.failures_in_a_row = 0
        if item.is_first and item.next_uri is not None:
            room = self._room if self._tally.are_all_begun else 0
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
        handled = self._handlers.submit(copy_context().run, self._handle, item)
        if handled.done():
            yield from self._go_on(reading, item, handled)
        else:
            handled.add_done_callback(lambda done: self._arrived.put(partial(self._go_on, reading, item, done)))

    def _go_on(self, reading: Reading, item: Fetched, handled: Future[T]) -> Iterator[Handled[T]]:
        yield Handled(item, handled.result())
        self._order.insert(item.instead, instead_of=item.slice)  # not earlier: only from here on the plan has them
        if item.next_uri is not None and not self._stop.is_set():
            self._ask(reading)
        else:
            self._end(reading)

    def _begin_slices(self) -> None:
        while self._room > 0 and not self._stop.is_set():
            slice_ = self._order.draw()
            if slice_ is None:
                self._tally.are_all_begun = True  # of those that may begin by now
                return
            self._tally.begun += 1
            self._under_way += 1
            self._ask(Reading(slice_, slice_.listing, self._resume_at.get(slice_.name)))

    def _end(self, reading: Reading) -> None:
        self._under_way -= 1
        if self._order.end(reading.slice):
            self._tally.are_all_begun = False

    def _ask(self, reading: Reading) -> None:
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

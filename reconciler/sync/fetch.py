"""Reading slices from Twilio: several at once, each page handed on as it comes.

Design rules
- Slices in `first` are read to their end before any other begins. A sweep reads open calls first: a call whose start
  moves to another day while the sweep runs was open when it began, so no order of reading the days can lose it.
- At most one page of a slice is under way. A page is handed on before the next page of its slice is asked for, so a
  killed run reads no page again but the ones in hand.
- What follows an error is decided by `decide`, which is pure. The loop only obeys.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from queue import SimpleQueue
from typing import Final, NamedTuple

from reconciler.errors import (
    FilterIgnored,
    OutsideRetention,
    ReconcilerError,
    Retriable,
    TwilioAnswerError,
    Unavailable,
)
from reconciler.logs import get_logger
from reconciler.model import Page
from reconciler.sync.slices import Slice, dates_created, is_newest_first
from reconciler.times import midnight
from reconciler.twilio.client import Session
from reconciler.twilio.listing import Listing

_ENOUGH_AT_LEAST: Final = 2  # failures in a row; a single one may be a day with something that Twilio cannot tell

log = get_logger(__name__)


class Fetched(NamedTuple):
    """One page of one slice, without the calls that do not belong to it. `next_uri` None: the slice is done.

    `is_first`: the page is the first of its listing. `in_order`: it and the page before it are newest first.
    """

    slice: Slice
    page: Page
    next_uri: str | None
    is_first: bool = True
    in_order: bool = True


class Failed(NamedTuple):
    """A slice that could not be read to its end, and why."""

    slice: Slice
    error: ReconcilerError


@dataclass(slots=True)
class Reading:
    """A slice being read: the page asked for last (None: the first), and all pages so far."""

    slice: Slice
    listing: Listing  # the slice's, or of its later days
    path: str | None
    asked: set[str] = field(default_factory=set)
    begun_anew: bool = False
    oldest: datetime | None = None  # when the last call of the page before was created


@dataclass(slots=True)
class Tally:
    """How the slices fare: how many were begun, whether all were, and how many failed in a row."""

    at_once: int
    begun: int = 0
    are_all_begun: bool = False
    failures_in_a_row: int = 0


class Retry(NamedTuple):
    """Ask again: for this listing, from its first page."""

    listing: Listing
    begun_anew: bool


class Nothing(NamedTuple):
    """Twilio keeps nothing of this slice any more, so there is nothing left to reconcile it with."""


class Skip(NamedTuple):
    """The slice failed; the others go on."""


class GiveUp(NamedTuple):
    """Nothing works any more; the slices that were not begun are not tried."""


def decide(reading: Reading, error: ReconcilerError, tally: Tally) -> Retry | Nothing | Skip | GiveUp:
    """What follows an error; pure. `tally` does not count the error yet.

    Raises:
        ReconcilerError: the error itself, if no other slice would fare better.

    """
    listing = reading.listing
    if isinstance(error, OutsideRetention) and listing.since is not None:
        # Twilio says this also of a window of which it keeps a part: it may keep the later days.
        later = midnight(listing.since) + timedelta(days=1)
        return Retry(replace(listing, since=later), begun_anew=False) if later < reading.slice.until else Nothing()
    # A page token names a call, and may die with it. And where a filter was ignored once, the pages that follow may be
    # those of the whole log for ever. The slice itself can still be read.
    is_of_page = isinstance(error, TwilioAnswerError | FilterIgnored)
    if is_of_page and reading.path is not None and not reading.begun_anew:
        return Retry(listing, begun_anew=True)
    if not isinstance(error, Retriable | TwilioAnswerError | OutsideRetention):
        raise error
    failures = tally.failures_in_a_row + 1
    have_all_failed = tally.are_all_begun and failures == tally.begun
    return GiveUp() if have_all_failed or failures >= max(_ENOUGH_AT_LEAST, tally.at_once) else Skip()


def fetch(
    session: Session,
    slices: Iterable[Slice],
    *,
    first: Sequence[Slice] = (),
    resume_at: Mapping[str, str | None] | None = None,
    make_executor: Callable[[int], Executor],
    stop: threading.Event,
) -> Iterator[Fetched | Failed]:
    """Read `first`, then `slices`, several at once; hand on each page as it comes, each slice's pages in order.

    `resume_at` maps a slice's name to the page to go on at. A slice is drawn from `slices` when there is room for it.
    While the caller works on a page, pages of other slices are fetched. Ends early, between two pages, when `stop` is
    set.

    A slice that fails is handed on as Failed, and the others go on. When as many fail in a row as run at once, the
    remaining ones are Failed untried. So are all `slices`, if Twilio was away for all of `first`.

    Raises:
        Refused: credentials or permissions; nothing else would fare better.

    """
    at_once = session.concurrency
    with make_executor(at_once) as pool:
        loop = _Loop(session, pool, resume_at or {}, at_once, stop)
        yield from loop.read(first)
        if loop.away is None:
            yield from loop.read(slices)
        else:
            yield from (Failed(untried, loop.away) for untried in slices)


def fetch_in_order(
    session: Session, slice_: Slice, *, resume_at: str | None, stop: threading.Event
) -> Iterator[Fetched]:
    """Read one slice in the caller's thread; ends at a page that is not in order.

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
    """The page as it is handed on; `reading` moves to the page after it.

    Raises:
        TwilioAnswerError: the page after it was read already.

    """
    slice_, is_first = reading.slice, reading.path is None
    if reading.path is not None:
        reading.asked.add(reading.path)
    next_uri = None if slice_.is_past(page) else page.next_uri
    if next_uri is not None and next_uri in reading.asked:
        reading.begun_anew = True  # from the first page it would lead round again
        raise TwilioAnswerError("next_page_uri leads round in a circle")
    created = dates_created(page)
    in_order = is_newest_first(created if reading.oldest is None else [reading.oldest, *created])
    reading.oldest = created[-1] if created else reading.oldest
    reading.path = next_uri
    return Fetched(slice_, slice_.keep(page), next_uri, is_first, in_order)


class _Loop:
    """Reads slices, as many at once as the tally says; `away` is why it gave up, if Twilio was away at last."""

    def __init__(
        self,
        session: Session,
        pool: Executor,
        resume_at: Mapping[str, str | None],
        at_once: int,
        stop: threading.Event,
    ) -> None:
        self._session = session
        self._pool = pool
        self._resume_at = resume_at
        self._stop = stop
        self._arrived: SimpleQueue[tuple[Reading, Future[Page]]] = SimpleQueue()
        self._waiting: Iterator[Slice] = iter(())
        self._tally = Tally(at_once)
        self._under_way = 0
        self.away: Unavailable | None = None

    def read(self, slices: Iterable[Slice]) -> Iterator[Fetched | Failed]:
        """Hand on the pages of `slices` as they come."""
        self._waiting = iter(slices)
        self._tally = Tally(self._tally.at_once, failures_in_a_row=self._tally.failures_in_a_row)
        while True:
            self._begin_slices()
            if not self._under_way:
                return
            reading, done = self._arrived.get()
            try:
                item = _received(reading, done.result())
            except ReconcilerError as exc:
                yield from self._obey(reading, exc)
                continue
            self._tally.failures_in_a_row = 0
            yield item
            if item.next_uri is not None and not self._stop.is_set():
                self._ask(reading)
            else:
                self._under_way -= 1

    def _begin_slices(self) -> None:
        while self._under_way < self._tally.at_once and not self._stop.is_set():
            slice_ = next(self._waiting, None)
            if slice_ is None:
                self._tally.are_all_begun = True
                return
            self._tally.begun += 1
            self._under_way += 1
            self._ask(Reading(slice_, slice_.listing, self._resume_at.get(slice_.name)))

    def _ask(self, reading: Reading) -> None:
        asked = self._pool.submit(self._session.page, reading.listing, reading.path)
        asked.add_done_callback(lambda done: self._arrived.put((reading, done)))

    def _obey(self, reading: Reading, error: ReconcilerError) -> Iterator[Fetched | Failed]:
        match decide(reading, error, self._tally):
            case Retry(listing, begun_anew):
                if not begun_anew:  # a part of the slice is lost
                    _log_failed(f"{reading.listing.since:%F}", error)
                self._ask(Reading(reading.slice, listing, None, begun_anew=begun_anew))
            case Nothing():
                _log_failed(reading.slice.name, error)
                self._tally.failures_in_a_row = 0
                self._under_way -= 1
                yield Fetched(reading.slice, Page([], [], None, reading.slice.until), None)
            case step:
                self._under_way -= 1
                self._tally.failures_in_a_row += 1
                if not self._stop.is_set():
                    log.error("slice.failed", slice=reading.slice.name, error=str(error), kind=type(error).__name__)
                yield Failed(reading.slice, error)
                if isinstance(step, GiveUp) and not self._stop.is_set():
                    if isinstance(error, Unavailable) and not self._under_way:
                        self.away = error
                    yield from (Failed(untried, error) for untried in self._waiting)


def _log_failed(name: str, error: ReconcilerError) -> None:
    log.warning("slice.failed", slice=name, error=str(error), kind=type(error).__name__)

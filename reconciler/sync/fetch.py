"""The reading of slices from Twilio: several at once, with each page handed to the caller as it arrives.

Design rules
- Slices in `first` are read to their end before any other begins. A sweep reads open calls first. A call whose start
  moves to another day during the sweep was open when the sweep began, so no order of the days can lose it.
- At most one page of a slice is under way. A page is handed to the caller before the next page of its slice is
  requested. After a kill only the pages that were under way are read again.
- `decide`, which is pure, decides what follows an error. The loop only does it.
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

_ENOUGH_AT_LEAST: Final = 2  # failures in a row; a single one may be a day that Twilio cannot list

log = get_logger(__name__)


class Fetched(NamedTuple):
    """One page of one slice, with only the calls that belong to the slice.

    - `next_uri`: the next page; None if the slice is done.
    - `is_first`: the page is the first of its listing.
    - `in_order`: the calls of this page and of the one before it are in order, newest first.
    """

    slice: Slice
    page: Page
    next_uri: str | None
    is_first: bool = True
    in_order: bool = True


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
    """The decision to read this listing again from its first page."""

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
    # A page token names a call, and may be useless once that is deleted. And if Twilio ignored a filter once, the next
    # pages may be those of the whole log. In both cases the slice can still be read from its first page.
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
    """Read `first`, then `slices`, several at once; yield each page as it arrives, the pages of a slice in order.

    - `resume_at` maps a slice's name to the page at which to continue.
    - A slice is taken from `slices` when there is room for it. While the caller works on a page, others are fetched.
    - When `stop` is set, the reading ends early, between two pages.
    - A slice that fails is yielded as Failed, and the others continue. If as many fail in a row as run at once, the
      remaining ones are Failed without a try. So are all `slices`, if Twilio was away for all of `first`.

    Raises:
        Refused: credentials or permissions do not suffice; no other slice would succeed.

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


class _Loop:
    """The reading loop for `tally.at_once` slices at once. `away`: the error, if it gave up on an absent Twilio."""

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
        """Yield the pages of `slices` as they arrive."""
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

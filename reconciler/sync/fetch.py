"""Reading every call of a time window: cut into slices, fetched ahead, handed on page by page.

Design rules
- A slice is one UTC day, or adjacent ones in which few calls are, read by StartTime; beside the days, a sweep reads
  by Status what a time filter cannot show: calls that live (their start_time still moves) and calls that were never
  dialled (they have none).
- The living are read before the days. A call whose start moves to another day while the sweep runs was alive when
  it began, so no order of reading the days can lose it.
- Several slices are under way at once, at most one page of each. A page is handed on before the next page of its
  slice is asked for, so that a killed sweep reads no page again but the ones in hand.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
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
from reconciler.sync.slices import Slice
from reconciler.times import midnight
from reconciler.twilio.client import Session
from reconciler.twilio.listing import Listing

_ENOUGH_AT_LEAST: Final = 2  # failures in a row; a single one may be a day with something that Twilio cannot tell

log = get_logger(__name__)


class Fetched(NamedTuple):
    """One page of one slice, without what does not belong to it. `next_uri` None: the slice is read to its end."""

    slice: Slice
    page: Page
    next_uri: str | None


class Failed(NamedTuple):
    """A slice that could not be read to its end, and why."""

    slice: Slice
    error: ReconcilerError


def fetch(
    source: Session,
    slices: Iterable[Slice],
    *,
    living: Sequence[Slice] = (),
    resume_at: Mapping[str, str | None] | None = None,
    concurrency: int,
    stop: threading.Event,
) -> Iterator[Fetched | Failed]:
    """Read the `living`, then `slices`, several at once, and hand on each page as it comes, each slice's in order.

    `resume_at` maps a slice's name to the page to go on at. While the caller works on a page, pages of other
    slices are being fetched, at most `concurrency` in all; a slice is drawn from `slices` when there is room for it.
    Ends early, between two pages, when `stop` is set. The living are read to their end before any other is begun.

    A slice that fails is handed on as Failed and the others go on; when as many fail in a row as run at once,
    nothing works any more and the remaining ones are not tried: neither are the days, when Twilio was away for
    all of the living.

    Raises:
        Refused: credentials or permissions; nothing else would fare better.

    """
    with ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="fetch") as pool:
        reading = _Reading(source, pool, resume_at or {}, concurrency, stop)
        yield from reading.read(living)
        if reading.away is None:
            yield from reading.read(slices)
        else:
            yield from (Failed(untried, reading.away) for untried in slices)


@dataclass(slots=True)
class _UnderWay:
    """A slice being read: the page asked for last (None: its first), all pages so far, whether it was begun anew."""

    slice: Slice
    listing: Listing  # the slice's, or of its later days
    path: str | None
    asked: set[str] = field(default_factory=set)
    begun_anew: bool = False


class _Reading:
    """Reads slices, `concurrency` at a time; `away` is why it gave up, if Twilio was away for all it tried last."""

    def __init__(
        self, source: Session, pool: Executor, places: Mapping[str, str | None], concurrency: int, stop: threading.Event
    ) -> None:
        self._source = source
        self._pool = pool
        self._places = places
        self._concurrency = concurrency
        self._stop = stop
        self._arrived: SimpleQueue[tuple[_UnderWay, Future[Page]]] = SimpleQueue()
        self._waiting: Iterator[Slice] = iter(())
        self._begun = 0
        self._are_all_begun = False
        self._under_way = 0
        self._failures_in_a_row = 0
        self.away: Unavailable | None = None

    def read(self, slices: Iterable[Slice]) -> Iterator[Fetched | Failed]:
        """Hand on the pages of `slices` as they come."""
        self._waiting, self._begun, self._are_all_begun = iter(slices), 0, False
        while True:
            while self._under_way < self._concurrency and not self._stop.is_set():
                slice_ = next(self._waiting, None)
                if slice_ is None:
                    self._are_all_begun = True
                    break
                self._begun += 1
                self._under_way += 1
                self._ask(_UnderWay(slice_, slice_.listing, self._places.get(slice_.name)))
            if not self._under_way:
                return
            work, done = self._arrived.get()
            try:
                page = done.result()
            except OutsideRetention as exc:
                # Also said of a window of which a part is kept: its later days may be.
                day_later = None if work.listing.since is None else midnight(work.listing.since) + timedelta(days=1)
                if day_later is not None and day_later < work.slice.until:
                    log.warning(
                        "slice.failed", slice=f"{work.listing.since:%F}", error=str(exc), kind="OutsideRetention"
                    )
                    self._ask(_UnderWay(work.slice, replace(work.listing, since=day_later), None))
                    continue
                # Twilio keeps nothing of this window any more: there is nothing left to reconcile it with.
                log.warning("slice.failed", slice=work.slice.name, error=str(exc), kind="OutsideRetention")
                page = Page([], [], None, work.slice.until)
            except (TwilioAnswerError, FilterIgnored) as exc:
                # A page token names a call, and may die with it; and where a filter was ignored once, the pages that
                # follow may be those of the whole log for ever. The slice itself can still be read.
                if work.path is None or work.begun_anew:
                    yield from self._fail(work, exc)
                else:
                    self._ask(_UnderWay(work.slice, work.listing, None, begun_anew=True))
                continue
            except Retriable as exc:
                yield from self._fail(work, exc)
                continue
            self._failures_in_a_row = 0
            next_uri = None if work.slice.is_past(page) else page.next_uri
            if next_uri is not None and next_uri in work.asked:
                yield from self._fail(work, TwilioAnswerError("next_page_uri leads round in a circle"))
                continue
            yield Fetched(work.slice, work.slice.keep(page), next_uri)
            if next_uri is not None and not self._stop.is_set():
                work.path = next_uri
                self._ask(work)
            else:
                self._under_way -= 1

    def _ask(self, work: _UnderWay) -> None:
        if work.path is not None:
            work.asked.add(work.path)
        asked = self._pool.submit(self._source.page, work.listing, work.path)
        asked.add_done_callback(lambda done: self._arrived.put((work, done)))

    def _fail(self, work: _UnderWay, error: ReconcilerError) -> Iterator[Failed]:
        self._under_way -= 1
        self._failures_in_a_row += 1
        if not self._stop.is_set():
            log.error("slice.failed", slice=work.slice.name, error=str(error), kind=type(error).__name__)
        yield Failed(work.slice, error)
        have_all_failed = self._are_all_begun and self._failures_in_a_row == self._begun
        have_enough_failed = self._failures_in_a_row >= max(_ENOUGH_AT_LEAST, self._concurrency)
        if (have_all_failed or have_enough_failed) and not self._stop.is_set():
            if isinstance(error, Unavailable) and not self._under_way:
                self.away = error
            yield from (Failed(untried, error) for untried in self._waiting)

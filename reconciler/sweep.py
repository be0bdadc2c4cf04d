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
from datetime import datetime, timedelta
from itertools import pairwise
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
from reconciler.listing import Listing
from reconciler.logs import get_logger
from reconciler.model import Observation, Status
from reconciler.source import Source
from reconciler.times import midnight, next_midnight, utc_days
from reconciler.wire import Page

# Past the end of its day a slice asks for a little more: `<` may or may not include its instant, and clocks differ.
# Its end is a midnight for another reason: if only dates count, `<` some hour of a day would leave out all of it.
MARGIN: Final = timedelta(minutes=10)

# Statuses of calls that a StartTime filter may not show, and which therefore are asked for by Status.
LIVING: Final = (Status.QUEUED, Status.RINGING, Status.IN_PROGRESS)
NEVER_DIALLED: Final = (Status.CANCELED, Status.FAILED)

_ENOUGH_AT_LEAST: Final = 2  # failures in a row; a single one may be a day with something that Twilio cannot tell

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Slice:
    """One listing of a sweep, and which of its calls belong to it: those of UTC days, or of a status."""

    name: str  # unique within a sweep, and stable: a cursor refers to it
    listing: Listing
    since: datetime
    until: datetime
    down_to: datetime | None = None  # nothing created before it is looked for; None: read the listing to its end
    parts: tuple[str, ...] = ()  # what is told and counted of it, if it was cut from a window: days, or a status

    def keep(self, page: Page) -> Page:
        """`page` with only the calls that belong to this slice."""
        return page._replace(observations=[o for o in page.observations if self._holds(o)])

    def count(self, page: Page) -> int:
        """How many calls of `page` are this slice's to count: a living call that has started is in a day as well."""
        is_living = self.listing.status in LIVING
        return len({o.call_sid for o in page.observations if not is_living or o.start_time is None})

    def is_past(self, page: Page) -> bool:
        """Whether nothing of this slice can come after `page`.

        Listings come newest first by date_created (observed, not promised): the page that, in that order, reaches
        beyond `down_to` is the last one of use.
        """
        if self.down_to is None:
            return False
        created = dates_created(page)
        return bool(created) and is_newest_first(created) and created[-1] < self.down_to

    def _holds(self, observation: Observation) -> bool:
        if self.listing.status in LIVING:
            return True
        time = observation.window_time
        if self.listing.status is not None:
            # What was dialled is in one of the days.
            return observation.start_time is None and (time is None or self.since <= time < self.until)
        return time is None or self.since <= time < self.until


class Fetched(NamedTuple):
    """One page of one slice, without what does not belong to it. `next_uri` None: the slice is read to its end."""

    slice: Slice
    page: Page
    next_uri: str | None


class Failed(NamedTuple):
    """A slice that could not be read to its end, and why."""

    slice: Slice
    error: ReconcilerError


def dates_created(page: Page) -> list[datetime]:
    """When the calls of a page were created, in its order."""
    return [o.date_created for o in page.observations if o.date_created is not None]


def is_newest_first(times: Sequence[datetime]) -> bool:
    """Whether no time is later than the one before it."""
    return all(newer >= older for newer, older in pairwise(times))


def slice_by_status(account_sid: str, status: Status, since: datetime, until: datetime) -> Slice:
    """The living calls of that status, or those that were never dialled and were created in `[since, until)`."""
    # A listing by Status has no window of its own.
    down_to = None if status in LIVING else since - MARGIN
    name = f"{status.value}@{_name_days(since, until)}"
    return Slice(name, Listing(account_sid, status=status), since, until, down_to, parts=(name,))


def slice_of_days(account_sid: str, since: datetime, until: datetime) -> Slice:
    """The calls that started in `[since, until)`."""
    listing = Listing(account_sid, since=since, until=next_midnight(until) + MARGIN)
    parts = tuple(_name_days(*day) for day in reversed(utc_days(since, until)))
    return Slice(_name_days(since, until), listing, since, until, parts=parts)


def slice_named(account_sid: str, name: str) -> Slice:
    """The slice whose name a cursor kept.

    Raises:
        ValueError: there is none of that name.

    """
    status, _, days = name.rpartition("@")
    since, until = map(datetime.fromisoformat, days.split("/"))
    return (
        slice_by_status(account_sid, Status(status), since, until)
        if status
        else slice_of_days(account_sid, since, until)
    )


def _name_days(since: datetime, until: datetime) -> str:
    return f"{since:%FT%TZ}/{until:%FT%TZ}"


def fetch(
    source: Source,
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
        self, source: Source, pool: Executor, places: Mapping[str, str | None], concurrency: int, stop: threading.Event
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

"""Reading every call of a time window: cut into slices, fetched ahead, handed on page by page.

Design rules
- A slice is one UTC day, read by StartTime; beside the days, a sweep reads by Status what a time filter cannot
  show: calls that live (their start_time still moves) and calls that were never dialled (they have none).
- The living are read before the days. A call whose start moves to another day while the sweep runs was alive when
  it began, so no order of reading the days can lose it.
- Several slices are under way at once, at most one page of each. A page is handed on before the next page of its
  slice is asked for, so that a killed sweep reads no page again but the ones in hand.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from queue import SimpleQueue
from typing import Final, NamedTuple

from reconciler.errors import OutsideRetention, ReconcilerError, Retriable, TwilioAnswerError, Unavailable
from reconciler.logs import get_logger
from reconciler.model import Observation, Status
from reconciler.source import Listing, Source
from reconciler.times import next_midnight, utc_days
from reconciler.wire import Page

# Past the end of its day a slice asks for a little more: `<` may or may not include its instant, and clocks differ.
# Its end is a midnight for another reason: if only dates count, `<` some hour of a day would leave out all of it.
MARGIN: Final = timedelta(minutes=10)

# Statuses of calls that a StartTime filter may not show, and which therefore are asked for by Status.
LIVING: Final = (Status.QUEUED, Status.RINGING, Status.IN_PROGRESS)
NEVER_DIALLED: Final = (Status.CANCELED, Status.FAILED)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Slice:
    """One listing of a sweep, and which of its calls belong to it."""

    name: str  # unique within a sweep, and stable: a cursor refers to it
    listing: Listing
    since: datetime
    until: datetime

    def keep(self, page: Page) -> Page:
        """`page` with only the calls that belong to this slice."""
        return page._replace(observations=[o for o in page.observations if self._holds(o)])

    def count(self, page: Page) -> int:
        """How many calls of `page` this slice is the one to count: a living call that has started is in a day as well."""
        is_living = self.listing.status in LIVING
        return len({o.call_sid for o in page.observations if not is_living or o.start_time is None})

    def is_past(self, page: Page) -> bool:
        """Whether nothing of this slice can come after `page`.

        Listings come newest first by date_created (observed, not promised). A listing by Status has no window of
        its own, so it ends where a whole page, in that order, lies before the sweep's.
        """
        if self.listing.status is None or self.listing.status in LIVING:
            return False
        created = [o.date_created for o in page.observations if o.date_created is not None]
        in_order = all(newer >= older for newer, older in zip(created, created[1:], strict=False))
        return bool(created) and in_order and created[0] < self.since

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


def slices_of(account_sid: str, since: datetime, until: datetime) -> list[Slice]:
    """What to read for the window `[since, until)`: the living first, then the days from the newest to the oldest."""
    by_status = [
        Slice(f"{status.value}@{until:%FT%TZ}", Listing(account_sid, status=status), since, until)
        for status in (*LIVING, *NEVER_DIALLED)
    ]
    days = [
        Slice(
            f"{start:%FT%TZ}/{end:%FT%TZ}",
            Listing(account_sid, since=start, until=next_midnight(end) + MARGIN),
            start,
            end,
        )
        for start, end in reversed(utc_days(since, until))
    ]
    return by_status + days


def fetch(
    source: Source,
    slices: Sequence[Slice],
    *,
    resume_at: Mapping[str, str] | None = None,
    concurrency: int,
    stop: threading.Event,
) -> Iterator[Fetched | Failed]:
    """Read `slices`, several at once, and hand on each page as it comes, each slice's in order.

    `resume_at` maps a slice's name to the page to go on at. While the caller works on a page, pages of other
    slices are being fetched, at most `concurrency` in all. Ends early, between two pages, when `stop` is set. The
    living are read to their end before any day is begun.

    A slice that fails is handed on as Failed and the others go on; when as many fail in a row as run at once,
    nothing works any more and the remaining ones are not tried: neither are the days, when Twilio was away for
    all of the living.

    Raises:
        Refused: credentials or permissions; nothing else would fare better.

    """
    places = resume_at or {}
    living = [s for s in slices if s.listing.status in LIVING]
    others = [s for s in slices if s.listing.status not in LIVING]
    with ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="fetch") as pool:
        away = yield from _fetch_group(source, living, places, pool, concurrency, stop)
        if away is None:
            yield from _fetch_group(source, others, places, pool, concurrency, stop)
        else:
            yield from (Failed(untried, away) for untried in others)


def _fetch_group(
    source: Source,
    slices: Sequence[Slice],
    places: Mapping[str, str],
    pool: ThreadPoolExecutor,
    concurrency: int,
    stop: threading.Event,
) -> Generator[Fetched | Failed, None, Unavailable | None]:
    """Read one group of slices; returns why, if Twilio was away for all that were tried last."""
    waiting = deque(slices)
    arrived: SimpleQueue[tuple[Slice, Future[Page]]] = SimpleQueue()
    under_way = 0
    failures_in_a_row = 0

    def ask(slice_: Slice, path: str | None) -> None:
        pool.submit(source.page, slice_.listing, path).add_done_callback(lambda done: arrived.put((slice_, done)))

    while waiting or under_way:
        while waiting and under_way < concurrency and not stop.is_set():
            slice_ = waiting.popleft()
            ask(slice_, places.get(slice_.name))
            under_way += 1
        if not under_way:
            return None
        slice_, done = arrived.get()
        try:
            page = done.result()
        except OutsideRetention as exc:
            # Twilio keeps nothing of this window any more: there is nothing left to reconcile it with.
            log.warning("slice.failed", slice=slice_.name, error=str(exc), kind="OutsideRetention")
            page = Page([], [], None, slice_.until)
        except (Retriable, TwilioAnswerError) as exc:
            under_way -= 1
            failures_in_a_row += 1
            if not stop.is_set():
                log.error("slice.failed", slice=slice_.name, error=str(exc), kind=type(exc).__name__)
            yield Failed(slice_, exc)
            if failures_in_a_row >= concurrency:
                yield from (Failed(untried, exc) for untried in waiting)
                waiting.clear()
            all_failed = failures_in_a_row >= min(concurrency, len(slices)) and not under_way
            if all_failed and isinstance(exc, Unavailable) and not stop.is_set():
                return exc
            continue
        failures_in_a_row = 0
        next_uri = None if slice_.is_past(page) else page.next_uri
        yield Fetched(slice_, slice_.keep(page), next_uri)
        if next_uri is not None and not stop.is_set():
            ask(slice_, next_uri)
        else:
            under_way -= 1
    return None

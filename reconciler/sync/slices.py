"""Slices of a window: each has a listing, and decides which of the listed records belong to it; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import ceil
from typing import Final

from reconciler.model import Observation, Page, Said, Status
from reconciler.times import next_midnight, utc_days
from reconciler.twilio.listing import Listing, RecordingListing

# Twilio lists a call or an end some time after the moment that it states, and clocks differ.
MARGIN: Final = timedelta(minutes=10)

# Listings overlap by a second: Twilio's bounds may or may not include their instant. A listing of days ends at a
# midnight: if Twilio compares only dates, `<` some hour of a day would leave out that whole day.
_EDGE: Final = timedelta(seconds=1)
# A start moves while a call waits for its answer: minutes, not days.
_STARTS_MOVE_FOR: Final = timedelta(days=1)
_HOURS: Final = "hours"
_RECORDINGS: Final = "recordings"
_WORTH_CUTTING: Final = 5  # pages
_WORTH_CUTTING_WITH_ROOM: Final = 3
_PAGES_A_PART: Final = 2  # without room
_FULL: Final = 0.85  # of these pages; parts differ, and one that holds more than it should needs one page more
_ONE_DAY: Final = timedelta(days=1)

# A StartTime filter may not show calls of these statuses, so a sweep asks for them by Status.
OPEN: Final = (Status.QUEUED, Status.RINGING, Status.IN_PROGRESS)
NEVER_DIALLED: Final = (Status.CANCELED, Status.FAILED)

_EVER: Final = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class Slice:
    """One listing, and the rule that selects its records: calls of UTC days or of a status, or recordings."""

    name: str  # unique within a sweep, and stable: a cursor refers to it
    listing: Listing
    since: datetime
    until: datetime
    down_to: datetime | None = None  # records created before it are not needed; None: read the listing to its end
    parts: tuple[str, ...] = ()  # its days, or its status; these are counted one by one

    def keep(self, page: Page) -> Page:
        """Return `page` with only the records that belong to this slice."""
        recordings = [r for r in page.recordings if r.date_created is None or self.since <= r.date_created < self.until]
        return page._replace(observations=[o for o in page.observations if self._holds(o)], recordings=recordings)

    def is_settled(self, now: datetime) -> bool:
        """Whether these are days long past: no open call can still move into or out of them."""
        return self.listing.status is None and self.until <= now - _STARTS_MOVE_FOR

    @property
    def is_of_recordings(self) -> bool:
        """Whether this is a slice of recordings, not of calls."""
        return isinstance(self.listing, RecordingListing)

    def count(self, page: Page) -> int:
        """Return how many calls of `page` count for this slice. An open call that has started counts for its day."""
        is_open = self.listing.status in OPEN
        return len({o.call_sid for o in page.observations if not is_open or o.start_time is None})

    def is_past(self, page: Page) -> bool:
        """Whether no record of this slice can come after `page`.

        Twilio lists newest first by date_created (observed, not promised). If a page is in that order and reaches
        beyond `down_to`, later pages are not needed.
        """
        if self.down_to is None:
            return False
        created = dates_created(page)
        return bool(created) and is_newest_first(created) and created[-1] < self.down_to

    def _holds(self, observation: Observation) -> bool:
        if self.listing.status in OPEN:
            return True
        time = observation.window_time
        if self.listing.status is not None:
            # A call that was dialled belongs to one of the days.
            return observation.start_time is None and (time is None or self.since <= time < self.until)
        return time is None or self.since <= time < self.until


def dates_created(page: Page) -> list[datetime]:
    """Return the times at which the records of a page were created, in the order of the page."""
    said: list[Said] = [*page.observations, *page.recordings]
    return [each.date_created for each in said if each.date_created is not None]


def starts(page: Page) -> list[datetime]:
    """Return the times at which the calls of a page started."""
    return [call.start_time for call in page.observations if call.start_time is not None]


def is_newest_first(times: Sequence[datetime]) -> bool:
    """Whether no time is later than the one before it."""
    return all(newer >= older for newer, older in pairwise(times))


def slice_by_status(account_sid: str, status: Status, since: datetime, until: datetime) -> Slice:
    """Return the slice of the open calls of a status, or of its never dialled calls created in `[since, until)`."""
    # A listing by Status has no window of its own.
    down_to = None if status in OPEN else since - MARGIN
    name = f"{status.value}@{_name_days(since, until)}"
    return Slice(name, Listing(account_sid, status=status), since, until, down_to, parts=(name,))


def slice_of_days(account_sid: str, since: datetime, until: datetime) -> Slice:
    """Return the slice of the calls that started in `[since, until)`."""
    listing = Listing(account_sid, since=since, until=next_midnight(until) + _EDGE)
    parts = tuple(_name_days(*day) for day in reversed(utc_days(since, until)))
    return Slice(_name_days(since, until), listing, since, until, parts=parts)


def slice_of_recordings_up_to(account_sid: str, since: datetime, until: datetime) -> Slice:
    """Return the slice of the recordings created from `since` up to and with the second of `until`, any moments."""
    until = until.replace(microsecond=0) + timedelta(seconds=1)
    return slice_of_recordings(account_sid, since.replace(microsecond=0), until)


def slice_of_recordings(account_sid: str, since: datetime, until: datetime) -> Slice:
    """Return the slice of the recordings that were created in `[since, until)`, both whole seconds."""
    listing = RecordingListing(account_sid, since=since, until=next_midnight(until) + _EDGE)
    name = f"{_RECORDINGS}@{_name_days(since, until)}"
    return Slice(name, listing, since, until, down_to=since, parts=(name,))


def slice_of_hours(account_sid: str, since: datetime, until: datetime) -> Slice:
    """The calls that started in `[since, until)`, for a Twilio that counts the time in its filters."""
    listing = Listing(account_sid, since=since - _EDGE, until=until + _EDGE, is_exact=True)
    name = f"{_HOURS}@{_name_days(since, until)}"
    return Slice(name, listing, since, until, parts=(name,))


def cut_into_hours(slice_: Slice, page: Page, *, at_once: int, room: int) -> tuple[Slice, ...]:
    """The hours to read a busy day by, several at once; empty if that would gain nothing; see `_parts_worth`.

    `page` is its first page. The rest of the day is taken to be as busy as the page.
    """
    is_days = slice_.listing.since is not None and slice_.until - slice_.since <= _ONE_DAY + MARGIN
    seconds = int((slice_.until - slice_.since).total_seconds())
    count = min(at_once, seconds, _parts_worth(slice_, starts(page), room)) if is_days else 0
    if count < 2:
        return ()
    edges = [slice_.since + timedelta(seconds=seconds * number // count) for number in range(count)] + [slice_.until]
    return tuple(slice_of_hours(slice_.listing.account_sid, *hours) for hours in reversed(list(pairwise(edges))))


def cut_recordings(slice_: Slice, page: Page, *, room: int) -> tuple[Slice, ...]:
    """The parts, of whole UTC days, to read a slice of many recordings by; empty if that would gain nothing.

    Several are read at once, and the proof of a day needs no more than a part in memory. See `_parts_worth`.
    """
    parts = divide_recordings(slice_, _parts_worth(slice_, dates_created(page), room))
    return parts if len(parts) > 1 else ()


def divide_recordings(slice_: Slice, count: int) -> tuple[Slice, ...]:
    """Divide a slice of recordings into so many parts of whole UTC days, newest first; fewer if it has fewer days."""
    days = utc_days(slice_.since, slice_.until)
    count = max(1, min(len(days), count))
    starts = [days[len(days) * number // count][0] for number in range(count)]
    spans = list(pairwise([*starts, slice_.until]))
    return tuple(slice_of_recordings(slice_.listing.account_sid, *span) for span in reversed(spans))


def _parts_worth(slice_: Slice, times: Sequence[datetime], room: int) -> int:
    """Return by how many parts to read a slice; `times` are those of its first page. 0: it is not worth cutting.

    To cut costs requests: the first page is asked for again, and each part ends with a page that is not full. Where
    other slices wait, only a long slice is cut. Where `room` is left for more slices, each page may be a part.
    """
    pages = pages_expected(slice_, times)
    if pages < (_WORTH_CUTTING_WITH_ROOM if room else _WORTH_CUTTING):
        return 0
    pages_a_part = ceil(pages / room) if room else _PAGES_A_PART
    return ceil(pages / (pages_a_part * _FULL))


def pages_expected(slice_: Slice, times: Sequence[datetime]) -> float:
    """Return how many pages a slice has if all of it is as busy as its first page; `times` are those of that page.

    1: the page tells nothing of the rest.
    """
    oldest, newest = min(times, default=slice_.until), min(max(times, default=slice_.until), slice_.until)
    return 1 + (oldest - slice_.since) / (newest - oldest) if newest > oldest else 1


def slice_of_newest(account_sid: str, *, down_to: datetime, page_size: int) -> Slice:
    """Return the slice of all calls, newest first, down to those created before `down_to`."""
    return Slice("newest", Listing(account_sid, page_size=page_size), *_EVER, down_to=down_to)


def slice_of_ended(account_sid: str, *, since: datetime, page_size: int) -> Slice:
    """Return the slice of all calls that ended since `since`, however long ago they began."""
    return Slice("ended", Listing(account_sid, ended_since=since, page_size=page_size), *_EVER)


def slice_named(account_sid: str, name: str) -> Slice:
    """Return the slice whose name is in a cursor.

    Raises:
        ValueError: no slice can have that name.

    """
    status, _, days = name.rpartition("@")
    since, until = map(datetime.fromisoformat, days.split("/"))
    if not status:
        return slice_of_days(account_sid, since, until)
    if status == _HOURS:
        return slice_of_hours(account_sid, since, until)
    if status == _RECORDINGS:
        return slice_of_recordings(account_sid, since, until)
    return slice_by_status(account_sid, Status(status), since, until)


def _name_days(since: datetime, until: datetime) -> str:
    return f"{since:%FT%TZ}/{until:%FT%TZ}"

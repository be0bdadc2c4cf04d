"""Slices of a window: what to ask Twilio for, and which calls belong to the slice; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Final

from reconciler.model import Observation, Page, Status
from reconciler.times import next_midnight, utc_days
from reconciler.twilio.listing import Listing

# A slice asks for a little more than its day: Twilio's `<` may or may not include its instant, and clocks differ. It
# asks up to a midnight: if Twilio counts only dates, `<` some hour of a day would leave out all of that day.
MARGIN: Final = timedelta(minutes=10)

# A StartTime filter may not show calls of these statuses, so a sweep asks for them by Status.
OPEN: Final = (Status.QUEUED, Status.RINGING, Status.IN_PROGRESS)
NEVER_DIALLED: Final = (Status.CANCELED, Status.FAILED)


_EVER: Final = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class Slice:
    """One listing, and which of its calls belong to it: those of UTC days, or of a status."""

    name: str  # unique within a sweep, and stable: a cursor refers to it
    listing: Listing
    since: datetime
    until: datetime
    down_to: datetime | None = None  # calls created before it do not matter; None: read the listing to its end
    parts: tuple[str, ...] = ()  # the days, or the status, that it was cut from; told and counted one by one

    def keep(self, page: Page) -> Page:
        """`page` with only the calls that belong to this slice."""
        return page._replace(observations=[o for o in page.observations if self._holds(o)])

    def count(self, page: Page) -> int:
        """How many calls of `page` this slice counts: an open call that has started is in a day as well."""
        is_open = self.listing.status in OPEN
        return len({o.call_sid for o in page.observations if not is_open or o.start_time is None})

    def is_past(self, page: Page) -> bool:
        """Whether no call of this slice can come after `page`.

        Twilio lists newest first by date_created (observed, not promised). A page in that order that reaches beyond
        `down_to` is the last one of use.
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
            # A call that was dialled is in one of the days.
            return observation.start_time is None and (time is None or self.since <= time < self.until)
        return time is None or self.since <= time < self.until


def dates_created(page: Page) -> list[datetime]:
    """When the calls of a page were created, in its order."""
    return [o.date_created for o in page.observations if o.date_created is not None]


def is_newest_first(times: Sequence[datetime]) -> bool:
    """Whether no time is later than the one before it."""
    return all(newer >= older for newer, older in pairwise(times))


def slice_by_status(account_sid: str, status: Status, since: datetime, until: datetime) -> Slice:
    """The open calls of that status, or the never dialled calls of it that were created in `[since, until)`."""
    # A listing by Status has no window of its own.
    down_to = None if status in OPEN else since - MARGIN
    name = f"{status.value}@{_name_days(since, until)}"
    return Slice(name, Listing(account_sid, status=status), since, until, down_to, parts=(name,))


def slice_of_days(account_sid: str, since: datetime, until: datetime) -> Slice:
    """The calls that started in `[since, until)`."""
    listing = Listing(account_sid, since=since, until=next_midnight(until) + MARGIN)
    parts = tuple(_name_days(*day) for day in reversed(utc_days(since, until)))
    return Slice(_name_days(since, until), listing, since, until, parts=parts)


def slice_of_newest(account_sid: str, *, down_to: datetime, page_size: int) -> Slice:
    """All calls, back to those created before `down_to`."""
    return Slice("newest", Listing(account_sid, page_size=page_size), *_EVER, down_to=down_to)


def slice_of_ended(account_sid: str, *, since: datetime, page_size: int) -> Slice:
    """All calls that ended since, however long ago they began."""
    return Slice("ended", Listing(account_sid, ended_since=since, page_size=page_size), *_EVER)


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

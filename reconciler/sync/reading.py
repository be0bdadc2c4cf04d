"""A slice that is being read, and the decision that follows an error; pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from reconciler.errors import (
    FilterIgnored,
    OutsideRetention,
    ReconcilerError,
    Refused,
    Retriable,
    TimeIgnored,
    TwilioAnswerError,
)
from reconciler.sync.slices import Slice, slice_of_days
from reconciler.times import midnight
from reconciler.twilio.listing import Listing

ENOUGH_AT_LEAST: Final = 2  # failures in a row; a single one may be a day that Twilio cannot list


@dataclass(slots=True)
class Reading:
    """A slice that is being read: the path of the page asked for last (None: the first page), and all paths so far."""

    slice: Slice
    listing: Listing  # the slice's listing, or one of its later days only
    path: str | None
    asked: set[str] = field(default_factory=set)
    begun_anew: bool = False
    oldest: datetime | None = None  # creation of the last call on the page before
    pages_left: float = 0.0  # after the last page, if the rest is as busy


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
    return GiveUp() if have_all_failed or failures >= max(ENOUGH_AT_LEAST, tally.at_once) else Skip()

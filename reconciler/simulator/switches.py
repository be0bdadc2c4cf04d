"""What is contested about Twilio, as switches: the reconciler must be right whichever way they stand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal


@dataclass(frozen=True, slots=True)
class Switches:
    """How this Twilio behaves where the sources disagree or are silent; the defaults are the likeliest.

    Attributes:
        time_filters: whether datetimes in StartTime, EndTime and DateCreated count, or only their UTC date.
        end_time_filters: the same for EndTime alone; None: as `time_filters` says.
        before_is_inclusive: whether `<` includes the very midnight (with "day": the whole day) it names.
        null_start_matches_filters: whether a call without start_time (or end_time) passes a filter on it.
        ignore_filters: every filter is ignored in silence and the whole log comes back.
        duplicates_in_listing: share of calls that one listing shows again, on the same or on the next page.
        listing_lag: how old the state is that listings show; younger calls are missing from them.
        fetch_lag: how old the state is that GET of one call shows ("eventually consistent").
        deleted_cursor: what a page token does whose call has been deleted meanwhile: the listing goes on from its
            place, comes to an empty end, or the token is refused.
        retention_days: a window beginning earlier than so many days ago is refused with 400/20004.
        recording_created: date_created of a recording: when it is ready, seconds after the call, or when it began;
            then it is listed as in-progress before, and behind the cursor of whoever reads the newest ones.
        suspended_answer: what a suspended account gets with its own credentials: 401/20003 or 403/20403.
        absolute_next_page_uri: prefix of every next_page_uri, say "https://elsewhere.example".
        extra_keys: unknown keys appear in records and in the envelope.
        date_header: whether answers carry a Date header.
        gzip: whether answers are compressed for clients that offer it.

    """

    time_filters: Literal["instant", "day"] = "instant"
    end_time_filters: Literal["instant", "day"] | None = None
    before_is_inclusive: bool = False
    null_start_matches_filters: bool = False
    ignore_filters: bool = False
    duplicates_in_listing: float = 0.0
    listing_lag: timedelta = timedelta(0)
    fetch_lag: timedelta = timedelta(0)
    deleted_cursor: Literal["continue", "empty", "refuse"] = "continue"
    retention_days: int | None = None
    recording_created: Literal["ready", "start"] = "ready"
    suspended_answer: Literal[401, 403] = 403
    absolute_next_page_uri: str | None = None
    extra_keys: bool = False
    date_header: bool = True
    gzip: bool = False

"""Switches for contested points of Twilio's behaviour. The reconciler must be right in every position of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal


@dataclass(frozen=True, slots=True)
class Switches:
    """The behaviour where the sources disagree or say nothing. The defaults are the likeliest.

    Attributes:
        time_filters: whether StartTime, EndTime and DateCreated compare instants, or only UTC dates.
        end_time_filters: the same for EndTime alone; None: the value of `time_filters`.
        before_is_inclusive: whether `<` includes its own midnight (with "day": its whole day).
        null_start_matches_filters: whether a call without start_time (or end_time) passes a filter on it.
        ignore_filters: whether every filter is ignored in silence, so that listings hold all calls.
        duplicates_in_listing: share of calls that one listing shows again, on the same or on the next page.
        listing_lag: age of the state that listings show; younger calls are missing.
        fetch_lag: age of the state that a GET of one call shows ("eventually consistent").
        deleted_cursor: the effect of a page token whose call was deleted. The listing continues from its place, ends
        with an empty page, or refuses the token. retention_days: a window that begins more than so many days ago is
        refused with 400/20004. recording_created: date_created of a recording: the second it is ready, or the second it
        began. With "start" Twilio lists it as in-progress first, and a reader of the newest recordings has already
        passed its place. suspended_answer: the answer to a suspended account's own credentials: 401/20003 or 403/20403.
        largest_page: the most calls that a page holds, whatever PageSize a request asks for. absolute_next_page_uri:
        prefix of every next_page_uri, for example "https://elsewhere.example". extra_keys: whether unknown keys appear
        in records and in the envelope. date_header: whether answers carry a Date header. gzip: whether answers are
        compressed for clients that accept gzip.

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
    largest_page: int = 1000
    absolute_next_page_uri: str | None = None
    extra_keys: bool = False
    date_header: bool = True
    gzip: bool = False

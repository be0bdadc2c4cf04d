"""The filters of GET Calls.json. Names are exact and case-sensitive; Twilio ignores other names in silence.

Names and meaning: OpenAPI `ListCall`. `>` is "on or after" and `<` is "before"; a bare date means its midnight in
UTC; `StartTime=<date>` means that day, and equality with an instant finds nothing (twilio/twilio-node#975).
Sources for the ignored names: twilio/sample-code#100, twilio/twilio-php#693.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from reconciler.simulator.calls import LIVING, Call
from reconciler.simulator.switches import Switches
from reconciler.simulator.wire import DAY

NAMES = frozenset(
    {"To", "From", "ParentCallSid", "Status"}
    | {f"{field}{operator}" for field in ("StartTime", "EndTime") for operator in ("", "<", ">")}
)

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


class BadFilter(ValueError):
    """A filter's value cannot be read. The message is Twilio's."""


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open span of time, since <= time < until, in seconds since 1970. None is unbounded."""

    since: int | None = None
    until: int | None = None

    def __contains__(self, at: int) -> bool:
        return (self.since is None or self.since <= at) and (self.until is None or at < self.until)

    def __and__(self, other: Span) -> Span:
        since = [bound for bound in (self.since, other.since) if bound is not None]
        until = [bound for bound in (self.until, other.until) if bound is not None]
        return Span(max(since, default=None), min(until, default=None))


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters of one listing."""

    status: str | None = None
    from_: str | None = None
    to: str | None = None
    parent_call_sid: str | None = None
    start: Span | None = None
    end: Span | None = None
    null_matches: bool = False

    @classmethod
    def parse(cls, params: Sequence[tuple[str, str]], switches: Switches) -> Filters:
        """Return the filters among query parameters. Empty values and unknown names are ignored.

        Raises:
            BadFilter: a time cannot be read.

        """
        if switches.ignore_filters:
            return cls()
        given = {name: value for name, value in params if name in NAMES and value}
        return cls(
            status=given.get("Status"),
            from_=given.get("From"),
            to=given.get("To"),
            parent_call_sid=given.get("ParentCallSid"),
            start=parse_span("StartTime", given, switches),
            end=parse_span("EndTime", given, switches),
            null_matches=switches.null_start_matches_filters,
        )

    def matches(self, call: Call, at: int) -> bool:
        """Whether the call, as it is at `at`, passes every filter."""
        return (
            (self.status is None or call.status_at(at) == self.status)
            and (self.from_ is None or call.from_ == self.from_)
            and (self.to is None or call.to == self.to)
            and (self.parent_call_sid is None or call.parent_call_sid == self.parent_call_sid)
            and (self.start is None or self._passes(call.start_at(at), self.start))
            and (self.end is None or self._passes(call.end_at(at), self.end))
        )

    def lifetime(self, at: int) -> Span:
        """Return a span in which every matching call was alive at some moment."""
        if self.status in LIVING:
            return Span(at, at + 1)
        window = None if self.null_matches else self.start or self.end
        return (window or Span()) & Span(None, at + 1)

    def begins_before(self, at: int) -> bool:
        """Whether the window begins before `at`; the retention check uses this."""
        return any(span.since is not None and span.since < at for span in (self.start, self.end) if span is not None)

    def _passes(self, time: int | None, span: Span) -> bool:
        return self.null_matches if time is None else time in span


def parse_span(field: str, given: Mapping[str, str], switches: Switches) -> Span | None:
    """Return the span that `field`, `field<` and `field>` describe; None if none of them is given.

    Raises:
        BadFilter: a time cannot be read.

    """
    spans = [
        _bound(field, operator, given[field + operator], switches)
        for operator in ("", "<", ">")
        if field + operator in given
    ]
    if not spans:
        return None
    whole = Span()
    for span in spans:
        whole = whole & span
    return whole


def _bound(field: str, operator: str, value: str, switches: Switches) -> Span:
    is_date = _DATE.fullmatch(value) is not None
    at = parse_time(field, value)
    counts = (switches.end_time_filters if field == "EndTime" else None) or switches.time_filters
    if counts == "day":
        at, is_date = at - at % DAY, True
    match operator:
        case ">":
            return Span(at, None)
        case "<":
            reach = 0 if not switches.before_is_inclusive else DAY if counts == "day" else 1
            return Span(None, at + reach)
        case _:
            return Span(at, at + DAY if is_date else at)


def parse_time(field: str, value: str) -> int:
    """Return the first whole second at or after `value`, since 1970. A time without a zone is UTC.

    Raises:
        BadFilter: a time cannot be read.

    """
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise BadFilter(f"Invalid {field}") from None
    at = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    return math.ceil(at.timestamp())

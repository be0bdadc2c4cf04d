"""The proof: rows compared with Twilio's own records, field by field; pure.

The proof must not depend on the code it proves. It reads Twilio's records itself, and not with the decoder that wrote
the rows. A row that Twilio does not know is a difference too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any, Final, NamedTuple

from reconciler.simulator.webhooks import Delivery, Webhook

_READ: Final = {
    "sid", "account_sid", "parent_call_sid", "direction", "status", "from", "to", "duration", "price", "price_unit",
    "start_time", "end_time", "answered_by", "date_created",
}  # fmt: skip
_DERIVED: Final = {"from_formatted", "to_formatted", "uri", "subresource_uris", "date_updated"}

_LATE: Final = timedelta(minutes=1)


class Row(NamedTuple):
    """One call as a row of `messages`: ours, or the row that Twilio's record should have given."""

    call_sid: str
    account_sid: str | None
    parent_call_sid: str | None
    direction: str | None
    status: str
    from_number: str | None
    to_number: str | None
    duration: int | None
    price: Decimal | None
    price_unit: str | None
    start_time: datetime | None
    end_time: datetime | None
    answered_by: str | None
    date_created: datetime | None
    other_fields: Mapping[str, Any] | None


class State(Enum):
    """How a row differs from Twilio's record."""

    MISSING = "missing"  # there is no row
    WRONG = "wrong"  # a value differs from Twilio's, for example an earlier status
    INCOMPLETE = "incomplete"  # every value we hold is right, but some are still empty
    RIGHT = "right"


class Compared(NamedTuple):
    """One call: our row, Twilio's, and the fields in which they differ."""

    ours: Row | None
    theirs: Row
    differing: tuple[str, ...]
    state: State


class Road(NamedTuple):
    """Counts of webhooks by their fate on the way. `overtaken`: arrived after a later webhook of the same call."""

    sent: int
    lost: int
    doubled: int
    late: int
    overtaken: int


@dataclass(slots=True)
class Comparison:
    """All calls at one moment. `strangers` is the number of rows that Twilio does not know."""

    calls: list[Compared]
    strangers: int
    states: Counter[State] = field(init=False)
    days: dict[date, Counter[State]] = field(init=False)

    def __post_init__(self) -> None:
        self.states = Counter(call.state for call in self.calls)
        days: dict[date, Counter[State]] = {}
        for call in self.calls:
            if call.theirs.date_created is not None:
                days.setdefault(call.theirs.date_created.date(), Counter())[call.state] += 1
        self.days = dict(sorted(days.items()))

    @property
    def held(self) -> int:
        """The number of rows in the database."""
        return len(self.calls) - self.states[State.MISSING] + self.strangers

    @property
    def differences(self) -> int:
        """The number of fields that differ. In a missing or surplus row all of them count."""
        return sum(len(call.differing) for call in self.calls) + self.strangers * len(Row._fields)

    @property
    def compared(self) -> int:
        """The number of fields that were compared."""
        return (len(self.calls) + self.strangers) * len(Row._fields)

    @property
    def charged(self) -> Decimal:
        """The sum of the charges in our rows. Twilio writes a charge as a negative price."""
        return -sum((call.ours.price for call in self.calls if call.ours and call.ours.price), Decimal(0))


def examine(rows: Iterable[Row], records: Iterable[Mapping[str, Any]]) -> Comparison:
    """Compare all rows with all of Twilio's records."""
    ours = {row.call_sid: row for row in rows}
    calls = [compare(ours.pop(theirs.call_sid, None), theirs) for theirs in map(twilio_says, records)]
    return Comparison(calls, len(ours))


def compare(ours: Row | None, theirs: Row) -> Compared:
    """Compare our row of a call, None if it is missing, with Twilio's."""
    if ours is None:
        return Compared(None, theirs, Row._fields, State.MISSING)
    if theirs.start_time is None and theirs.duration is None and ours.duration == 0:
        # A call that was never dialled: its webhook gave the duration 0, REST gives null. Null replaces no value.
        theirs = theirs._replace(duration=0)
    differing = tuple(name for name, a, b in zip(Row._fields, ours, theirs, strict=True) if a != b)
    if not differing:
        return Compared(ours, theirs, (), State.RIGHT)
    is_wrong = any(getattr(ours, name) is not None for name in differing)
    return Compared(ours, theirs, differing, State.WRONG if is_wrong else State.INCOMPLETE)


def twilio_says(record: Mapping[str, Any]) -> Row:
    """Return Twilio's record of a call as a row; `""` and null are the same."""

    def time(name: str) -> datetime | None:
        return parsedate_to_datetime(record[name]).astimezone(UTC) if record[name] else None

    return Row(
        call_sid=record["sid"],
        account_sid=record["account_sid"],
        parent_call_sid=record["parent_call_sid"] or None,
        direction=record["direction"],
        status=record["status"],
        from_number=record["from"] or None,
        to_number=record["to"] or None,
        duration=int(record["duration"]) if record["duration"] else None,
        price=Decimal(record["price"]) if record["price"] else None,
        price_unit=record["price_unit"],
        start_time=time("start_time"),
        end_time=time("end_time"),
        answered_by=record["answered_by"] or None,
        date_created=time("date_created"),
        other_fields=_others(record),
    )


def _others(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a record holds beyond the columns; None if that is nothing.

    The names left out follow from the rest of the record, as does the version of the API, which is that of 2010.
    """
    others = {name: value for name, value in record.items() if name not in _READ and name not in _DERIVED and value}
    if others.get("api_version") == "2010-04-01":
        del others["api_version"]
    return others or None


def describe_road(sent: Sequence[Webhook], arrived: Sequence[Delivery]) -> Road:
    """Count what happened to the webhooks in `sent`. `arrived` is in the order of arrival."""
    distinct = {id(delivery.webhook) for delivery in arrived}
    newest: dict[str | None, datetime] = {}
    overtaken = 0
    for delivery in arrived:
        sid, at = delivery.webhook.call_sid, delivery.webhook.sent_at
        overtaken += at < newest.get(sid, at)
        newest[sid] = max(at, newest.get(sid, at))
    late = sum(delivery.received_at - delivery.webhook.sent_at > _LATE for delivery in arrived)
    return Road(len(sent), len(sent) - len(distinct), len(arrived) - len(distinct), late, overtaken)

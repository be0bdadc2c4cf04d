"""The proof: rows held against Twilio's own records, field by field; pure.

It must not believe what it proves: records are read here, and not by the decoder that wrote the rows, and a row that
Twilio knows nothing of is a difference too.
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

_LATE: Final = timedelta(minutes=1)


class Row(NamedTuple):
    """A call, as it stands in `messages` or as Twilio's record would stand there."""

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


class State(Enum):
    """How a row stands to Twilio's record."""

    MISSING = "missing"  # there is no row
    WRONG = "wrong"  # a value is not Twilio's, say a status that was left behind
    INCOMPLETE = "incomplete"  # what we hold is right, but something is still empty
    RIGHT = "right"


class Compared(NamedTuple):
    """One call on both sides, and the fields in which they differ."""

    ours: Row | None
    theirs: Row
    differing: tuple[str, ...]
    state: State


class Road(NamedTuple):
    """What became of webhooks on their way; `overtaken` ones came after a later one of the same call."""

    sent: int
    lost: int
    doubled: int
    late: int
    overtaken: int


@dataclass(slots=True)
class Comparison:
    """All calls at one moment. `strangers` are rows that Twilio knows nothing of."""

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
        """How many rows there are."""
        return len(self.calls) - self.states[State.MISSING] + self.strangers

    @property
    def differences(self) -> int:
        """Fields that differ; of a row too few or too many, all of them do."""
        return sum(len(call.differing) for call in self.calls) + self.strangers * len(Row._fields)

    @property
    def compared(self) -> int:
        """Fields that were compared."""
        return (len(self.calls) + self.strangers) * len(Row._fields)

    @property
    def charged(self) -> Decimal:
        """The sum of the prices we hold. Twilio writes a charge as a negative price."""
        return -sum((call.ours.price for call in self.calls if call.ours and call.ours.price), Decimal(0))


def examine(rows: Iterable[Row], records: Iterable[Mapping[str, Any]]) -> Comparison:
    """Compare all rows with all of Twilio's records."""
    ours = {row.call_sid: row for row in rows}
    calls = [compare(ours.pop(theirs.call_sid, None), theirs) for theirs in map(twilio_says, records)]
    return Comparison(calls, len(ours))


def compare(ours: Row | None, theirs: Row) -> Compared:
    """Hold our row of a call against Twilio's."""
    if ours is None:
        return Compared(None, theirs, Row._fields, State.MISSING)
    if theirs.start_time is None and theirs.duration is None and ours.duration == 0:
        # The seconds of a call that was never dialled: none says REST, 0 said its webhook, and none replaces no value.
        theirs = theirs._replace(duration=0)
    differing = tuple(name for name, a, b in zip(Row._fields, ours, theirs, strict=True) if a != b)
    if not differing:
        return Compared(ours, theirs, (), State.RIGHT)
    is_wrong = any(getattr(ours, name) is not None for name in differing)
    return Compared(ours, theirs, differing, State.WRONG if is_wrong else State.INCOMPLETE)


def twilio_says(record: Mapping[str, Any]) -> Row:
    """Twilio's record of a call as a row; `""` and null are the same."""

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
    )


def describe_road(sent: Sequence[Webhook], arrived: Sequence[Delivery]) -> Road:
    """Count what happened to the webhooks between `sent` and `arrived`, which is in the order of arrival."""
    distinct = {id(delivery.webhook) for delivery in arrived}
    newest: dict[str | None, datetime] = {}
    overtaken = 0
    for delivery in arrived:
        sid, at = delivery.webhook.call_sid, delivery.webhook.sent_at
        overtaken += at < newest.get(sid, at)
        newest[sid] = max(at, newest.get(sid, at))
    late = sum(delivery.received_at - delivery.webhook.sent_at > _LATE for delivery in arrived)
    return Road(len(sent), len(sent) - len(distinct), len(arrived) - len(distinct), late, overtaken)

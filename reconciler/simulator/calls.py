"""Simulated calls: each has a script of times, and renders Twilio's record of itself at any of them.

Rules, with their sources:
- REST statuses are queued, ringing, in-progress and the five final ones. Only webhooks say `initiated` and
  `answered` (OpenAPI `call_enum_status`, https://www.twilio.com/docs/voice/api/call-resource).
- start_time moves. It is null while the call is queued, then the moment of dialling. When an outbound call is
  answered, start_time becomes the moment of answer (tests/data/real_calls.jsonl).
- duration is end - start for completed calls, "0" and not null for busy, no-answer and failed (same file).
- a price appears some time after the end and does not move date_updated, which stays equal to end_time (same file).
- a call that was canceled in the queue was never dialled: its start, end and duration stay null (docs: "empty if
  the call has not yet been dialed"; no such record is public).
- SIP trunking calls are listed only when they are over (https://help.twilio.com/articles/223132267).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

import msgspec

from reconciler.simulator.wire import (
    call_uri,
    formatted,
    instant,
    parse_rfc2822,
    rfc2822,
    seconds,
    subresource_uris,
)

TRUNK_SID = f"TK{1:032x}"  # the trunk of a trunk call whose script names no other
FINAL = frozenset({"completed", "busy", "no-answer", "canceled", "failed"})
LIVING = frozenset({"queued", "ringing", "in-progress"})

Record = dict[str, Any]


class Call(Protocol):
    """The part of a call that listings use. `at` is in seconds since 1970."""

    @property
    def sid(self) -> str:
        """`CA` and 32 hexadecimal digits."""

    @property
    def parent_call_sid(self) -> str | None:
        """The SID of the call whose <Dial> created this one."""

    @property
    def from_(self) -> str:
        """The caller."""

    @property
    def to(self) -> str:
        """The callee."""

    @property
    def status(self) -> str:
        """The final status of the script, also while the call is still going on."""

    @property
    def created(self) -> int:
        """date_created, by which listings are ordered."""

    @property
    def ended(self) -> int | None:
        """The second at which the call reaches its final status; None if it never does."""

    @property
    def deleted(self) -> int | None:
        """The second from which on listings and fetches no longer show the call; None if they always will."""

    def is_visible(self, at: int) -> bool:
        """Whether listings and fetches show the call at `at`."""

    def status_at(self, at: int) -> str:
        """The REST status."""

    def start_at(self, at: int) -> int | None:
        """start_time."""

    def end_at(self, at: int) -> int | None:
        """end_time."""

    def render(self, at: int) -> Record:
        """Twilio's record, in wire form."""


class SimulatedCall(msgspec.Struct, frozen=True, gc=False):
    """One call and its whole life. Times are in seconds since 1970; None means never.

    `fields` replace values of the record for which there is no rule here, such as caller_name or annotation.

    Calls are frozen because an account's indexes depend on them: change a call with `SimulatedAccount.change`.
    `gc=False` keeps a million calls from slowing down the garbage collector; calls hold no cycles.
    """

    sid: str
    account_sid: str
    direction: str
    from_: str
    to: str
    status: str
    created: int
    dialled: int | None = None
    answered: int | None = None
    ended: int | None = None
    price: str | None = None
    priced: int | None = None
    deleted: int | None = None
    parent_call_sid: str | None = None
    phone_number_sid: str | None = None
    trunk_sid: str = ""
    answered_by: str | None = None
    fields: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.status not in FINAL:
            raise ValueError(f"a call cannot end as {self.status!r}; one of {sorted(FINAL)}")

    @property
    def date_created(self) -> datetime:
        """The time of creation, aware, in UTC."""
        return instant(self.created)

    @property
    def is_trunking(self) -> bool:
        """Whether the call belongs to Elastic SIP Trunking: it sends no webhooks and is listed only after its end."""
        return self.direction.startswith("trunking")

    def is_visible(self, at: int) -> bool:
        """Whether listings and fetches show the call at `at`."""
        if self.deleted is not None and self.deleted <= at:
            return False
        if self.is_trunking:
            return self.ended is not None and self.ended <= at
        return self.created <= at

    def status_at(self, at: int) -> str:
        """The REST status at `at`."""
        if self.ended is not None and self.ended <= at:
            return self.status
        if self.answered is not None and self.answered <= at:
            return "in-progress"
        if self.dialled is not None and self.dialled <= at:
            return "ringing"
        return "queued"

    def start_at(self, at: int) -> int | None:
        """start_time as shown at `at`. It moves to the moment of answer, except for inbound calls."""
        if self.dialled is None or self.dialled > at:
            return None
        if self.answered is not None and self.answered <= at and self.direction != "inbound":
            return self.answered
        return self.dialled

    def end_at(self, at: int) -> int | None:
        """end_time as shown at `at`."""
        if self.dialled is None or self.ended is None or self.ended > at:
            return None
        return self.ended

    def duration_at(self, at: int) -> int | None:
        """The duration as shown at `at`, in whole seconds; 0 for a call that nobody answered."""
        start, end = self.start_at(at), self.end_at(at)
        if start is None or end is None:
            return None
        return end - start if self.status == "completed" else 0

    def updated_at(self, at: int) -> int:
        """date_updated as shown at `at`: the latest change of status. A price does not move it."""
        for time in (self.ended, self.answered, self.dialled):
            if time is not None and time <= at:
                return time
        return self.created

    def record(self, at: datetime) -> Record:
        """Return Twilio's record of this call at `at`, in wire form: every value is a string, null or a map of URIs."""
        return self.render(seconds(at))

    def render(self, at: int) -> Record:
        """Return the same as `record`, for `at` in seconds since 1970."""
        start, end, duration = self.start_at(at), self.end_at(at), self.duration_at(at)
        priced = self.priced is not None and self.priced <= at
        base = call_uri(self.account_sid, self.sid)
        inbound = self.direction == "inbound"
        waited = (self.dialled or self.created) - self.created
        record: Record = {
            "account_sid": self.account_sid,
            "annotation": None,
            "answered_by": self.answered_by if self.answered is not None and self.answered <= at else None,
            "api_version": "2010-04-01",
            "caller_name": None if inbound else "",
            "date_created": rfc2822(self.created),
            "date_updated": rfc2822(self.updated_at(at)),
            "direction": self.direction,
            "duration": None if duration is None else str(duration),
            "end_time": None if end is None else rfc2822(end),
            "forwarded_from": self._forwarded_from(at),
            "from": self.from_,
            "from_formatted": formatted(self.from_),
            "group_sid": None,
            "parent_call_sid": self.parent_call_sid,
            "phone_number_sid": self.phone_number_sid,
            "price": self.price if priced else None,
            "price_unit": "USD",
            # A second or two before dialling is not queueing: 83 of 84 real records say "0".
            "queue_time": str(waited * 1000) if waited > 4 and start is not None else "0",
            "sid": self.sid,
            "start_time": None if start is None else rfc2822(start),
            "status": self.status_at(at),
            "subresource_uris": subresource_uris(base),
            "to": self.to,
            "to_formatted": formatted(self.to),
            "trunk_sid": self.trunk_sid,
            "uri": f"{base}.json",
        }
        return record if self.fields is None else {**record, **self.fields}

    def _forwarded_from(self, at: int) -> str | None:
        """forwarded_from as Twilio fills it: inbound and answered outbound-api calls have their own `to` there."""
        answered = self.answered is not None and self.answered <= at
        return self.to if self.direction == "inbound" or (self.direction == "outbound-api" and answered) else None


def scripted(
    sid: str,
    account_sid: str,
    date_created: datetime,
    *,
    direction: str = "outbound-api",
    from_: str = "+12025550100",
    to: str = "+13125550123",
    status: str = "completed",
    queued_for: int | None = 0,
    rings_for: int | None = 6,
    talks_for: int | None = 30,
    never_dialled: bool = False,
    price: str | None = "-0.01400",
    priced_after: int | None = 20,
    parent_call_sid: str | None = None,
    phone_number_sid: str | None = None,
    trunk_sid: str | None = None,
    answered_by: str | None = None,
    fields: Mapping[str, Any] | None = None,
) -> SimulatedCall:
    """Return a call with three phases: queued, ringing and, if it completes, talking. Each takes some seconds.

    - None instead of seconds: the call stays in that phase for ever.
    - `never_dialled`: the call ends in the queue, as when it is canceled there.
    - `priced_after`: seconds from the end of a completed call to its price. Calls with another status have no price,
      except failed calls to SIP destinations: Twilio gives these the price "0.00000".
    """
    if trunk_sid is None:
        trunk_sid = TRUNK_SID if direction.startswith("trunking") else ""
    created = seconds(date_created)
    is_answered = status == "completed"
    dialled, answered, ended = _phases(
        created, queued_for, rings_for, talks_for, never_dialled, is_answered=is_answered
    )
    if status != "completed":
        price = "0.00000" if status == "failed" and to.startswith("sip:") else None
    return SimulatedCall(
        sid=sid, account_sid=account_sid, direction=direction, from_=from_, to=to, status=status, created=created,
        dialled=dialled, answered=answered, ended=ended, price=price,
        priced=None if price is None or ended is None or priced_after is None else ended + priced_after,
        parent_call_sid=parent_call_sid, phone_number_sid=phone_number_sid, trunk_sid=trunk_sid,
        answered_by=answered_by, fields=fields,
    )  # fmt: skip


def _phases(
    created: int, queued_for: int | None, rings_for: int | None, talks_for: int | None, never_dialled: bool, *,
    is_answered: bool,
) -> tuple[int | None, int | None, int | None]:  # fmt: skip
    """Return the seconds at which the call is dialled, answered and over; None for each that never happens."""
    queue_ends = None if queued_for is None else created + queued_for
    if never_dialled or queue_ends is None:
        return None, None, queue_ends
    ringing_ends = None if rings_for is None else queue_ends + rings_for
    if not is_answered:
        return queue_ends, None, ringing_ends
    ended = None if ringing_ends is None or talks_for is None else ringing_ends + talks_for
    return queue_ends, ringing_ends, ended


class VerbatimCall:
    """A real record, served unchanged at any time after its creation.

    Only the account's SID is replaced, in `account_sid` and in the URIs. A record without date_created (the
    answer to POST /Calls) is listed last, because Twilio lists newest first.
    """

    __slots__ = ("_end", "_record", "_start", "created", "deleted", "ended", "sid", "status")

    def __init__(self, record: Mapping[str, Any], account_sid: str) -> None:
        text = msgspec.json.encode(record).decode()
        theirs = str(record["account_sid"])
        self._record: Record = msgspec.json.decode(text.replace(theirs, account_sid))
        self.sid: str = str(record["sid"])
        self.status: str = str(record["status"])
        self.created: int = _when(record["date_created"]) or 0
        self._start: int | None = _when(record["start_time"])
        self._end: int | None = _when(record["end_time"])
        self.ended: int | None = self._end if self.status in FINAL else None
        self.deleted: int | None = None

    @property
    def parent_call_sid(self) -> str | None:
        """The SID of the call whose <Dial> created this one."""
        parent: str | None = self._record["parent_call_sid"]
        return parent

    @property
    def from_(self) -> str:
        """The caller."""
        return str(self._record["from"])

    @property
    def to(self) -> str:
        """The callee."""
        return str(self._record["to"])

    def is_visible(self, at: int) -> bool:
        """Whether listings and fetches show the call at `at`."""
        return self.created <= at and (self.deleted is None or at < self.deleted)

    def status_at(self, at: int) -> str:
        """The recorded status, at any time."""
        del at
        return self.status

    def start_at(self, at: int) -> int | None:
        """The recorded start_time, at any time."""
        del at
        return self._start

    def end_at(self, at: int) -> int | None:
        """The recorded end_time, at any time."""
        del at
        return self._end

    def record(self, at: datetime) -> Record:
        """The record as it was loaded."""
        return self.render(seconds(at))

    def render(self, at: int) -> Record:
        """The record as it was loaded."""
        del at
        return dict(self._record)


def _when(date: str | None) -> int | None:
    return None if date is None else parse_rfc2822(date)

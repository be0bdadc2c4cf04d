"""Twilio's wire form of calls, decoded strictly: bytes in, observations and dead letters out; no I/O.

Design rules
- A page that is what the documents promise is decoded once, typed, in compiled code. Only a page that is not
  is taken apart record by record, and only the records that cannot be read become dead letters.
- Unknown keys are tolerated: Twilio adds and keeps fields unannounced
  (https://www.twilio.com/docs/usage/api, "versioning"; `annotation` left the specification and still arrives).
- `""` and null are the same, numbers arrive as strings, and no number ever passes through a float.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from reconciler.errors import BadObservation, Unavailable
from reconciler.model import FINAL, DeadLetter, Observation, Via, parse_status

CALL_SID: Final = re.compile(r"CA[0-9a-fA-F]{32}")
ACCOUNT_SID: Final = re.compile(r"AC[0-9a-fA-F]{32}")

# Widths of the Viewer's columns (sql/004 and before); from and to are text.
_MAX_LENGTH: Final = {"direction": 50, "price_unit": 10, "answered_by": 100, "from": 100_000, "to": 100_000}
# Twilio was founded in 2008. A date far from that is a broken record, and would poison windows and cursors.
_YEARS: Final = range(2000, 2100)
_MAX_SECONDS: Final = 2**31 - 1  # messages.duration is an integer
_PRICE_EXPONENTS: Final = range(-20, 12)

_MONTHS: Final = {
    name: number
    for number, name in enumerate("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), start=1)
}


class _Call(msgspec.Struct, gc=False):
    """The fields of a Call resource that we keep."""

    sid: str
    status: str
    account_sid: str | None = None
    parent_call_sid: str | None = None
    direction: str | None = None
    from_: str | None = msgspec.field(name="from", default=None)
    to: str | None = None
    duration: str | None = None
    price: str | None = None
    price_unit: str | None = None
    start_time: str | None = None
    end_time: str | None = None
    answered_by: str | None = None
    date_created: str | None = None
    date_updated: str | None = None


class _Listing(msgspec.Struct, gc=False):
    calls: list[_Call]
    next_page_uri: str | None = None


class Page(NamedTuple):
    """One page of a listing; `next_uri` names the page after it, None on the last one."""

    observations: list[Observation]
    dead_letters: list[DeadLetter]
    next_uri: str | None
    observed_at: datetime

    def __repr__(self) -> str:
        return f"<Page of {len(self.observations)} calls>"


_decode_listing = msgspec.json.Decoder(_Listing).decode


def decode_page(body: bytes, *, observed_at: datetime) -> Page:
    """Decode one page of `Calls.json`, all of whose records were said at `observed_at`.

    Raises:
        Unavailable: this is not a listing: cut short, HTML, or other JSON. Worth asking again.

    """
    try:
        listing = _decode_listing(body)
        return Page([_observation(call, observed_at) for call in listing.calls], [], listing.next_page_uri, observed_at)
    except (msgspec.MsgspecError, UnicodeDecodeError, BadObservation):
        return _decode_leniently(body, observed_at)


def decode_call(body: bytes, *, observed_at: datetime) -> Observation:
    """Decode one Call resource.

    Raises:
        Unavailable: this is not JSON.
        BadObservation: it is, but cannot be read as a call.

    """
    return read_record(_parse(body), observed_at=observed_at)


def read_record(record: object, *, observed_at: datetime) -> Observation:
    """Read one record, whose numbers may be numbers or strings.

    Raises:
        BadObservation: with the reason; no value that could be a phone number is in it.

    """
    try:
        call = msgspec.convert(record, _Call)
    except msgspec.ValidationError as exc:
        raise BadObservation(str(exc)) from None
    return _observation(call, observed_at)


def bury(record: object, *, reason: str) -> DeadLetter:
    """The dead letter that keeps `record` and tells why."""
    text = json.dumps(record, sort_keys=True)  # ASCII only: a NUL or a lone surrogate stays an escape, which jsonb takes
    sid = record.get("sid") if isinstance(record, dict) else None
    return DeadLetter(
        dedupe_key=f"rest:{hashlib.sha256(text.encode()).hexdigest()}",
        call_sid=sid if isinstance(sid, str) and CALL_SID.fullmatch(sid) else None,
        record=text,
        reason=reason,
    )


def _decode_leniently(body: bytes, observed_at: datetime) -> Page:
    envelope = _parse(body)
    if not isinstance(envelope, dict) or not isinstance(envelope.get("calls"), list):
        raise Unavailable("Twilio's answer is JSON, but not a listing of calls")
    next_uri = envelope.get("next_page_uri")
    if not isinstance(next_uri, str | None):
        raise Unavailable("Twilio's answer has a next_page_uri that is not text")
    page = Page([], [], next_uri, observed_at)
    for record in envelope["calls"]:
        try:
            page.observations.append(read_record(record, observed_at=observed_at))
        except BadObservation as exc:
            page.dead_letters.append(bury(record, reason=str(exc)))
    return page


def _parse(body: bytes) -> Any:
    """JSON with every number as text: what Twilio itself does, and no float can come of it."""
    try:
        return json.loads(body, parse_float=str, parse_int=str, parse_constant=str)
    except (ValueError, RecursionError):
        raise Unavailable("Twilio's answer is not JSON, or was cut short") from None


def _observation(call: _Call, observed_at: datetime) -> Observation:
    status = parse_status(call.status)
    if status is None:
        raise BadObservation(f"unknown status {_quoted(call.status)}")
    if not CALL_SID.fullmatch(call.sid):
        raise BadObservation("sid is not CA and 32 hexadecimal digits")
    start_time = _time(call.start_time, "start_time")
    end_time = _time(call.end_time, "end_time")
    date_created = _time(call.date_created, "date_created")
    told_at = _time(call.date_updated, "date_updated") or start_time or date_created or observed_at
    return Observation(
        call.sid,
        _sid(call.account_sid, ACCOUNT_SID, "account_sid"),
        _sid(call.parent_call_sid, CALL_SID, "parent_call_sid"),
        _text(call.direction, "direction"),
        status,
        _text(call.from_, "from"),
        _text(call.to, "to"),
        _seconds(call.duration),
        _price(call.price),
        _text(call.price_unit, "price_unit"),
        start_time,
        end_time,
        _text(call.answered_by, "answered_by"),
        date_created,
        (end_time or told_at) if status in FINAL else told_at,
        observed_at,
        Via.REST,
    )


def _text(value: str | None, field: str) -> str | None:
    if not value:
        return None
    if len(value) > _MAX_LENGTH[field]:
        raise BadObservation(f"{field} is longer than {_MAX_LENGTH[field]} characters")
    if "\0" in value:
        raise BadObservation(f"{field} holds a NUL, which PostgreSQL cannot store")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadObservation(f"{field} holds half of a surrogate pair") from None
    return value


def _sid(value: str | None, form: re.Pattern[str], field: str) -> str | None:
    if not value:
        return None
    if not form.fullmatch(value):
        raise BadObservation(f"{field} is not {form.pattern[:2]} and 32 hexadecimal digits")
    return value


def _seconds(value: str | None) -> int | None:
    if not value:
        return None
    # isdecimal alone also holds for digits of other scripts, and int() has a limit on length.
    if not (value.isascii() and value.isdecimal() and len(value) <= 10 and int(value) <= _MAX_SECONDS):
        raise BadObservation(f"duration {_quoted(value)} is not a number of seconds")
    return int(value)


def _price(value: str | None) -> Decimal | None:
    if not value:
        return None
    try:
        price = Decimal(value)
    except InvalidOperation:
        raise BadObservation(f"price {_quoted(value)} is not a number") from None
    if not price.is_finite() or price.adjusted() not in _PRICE_EXPONENTS:
        raise BadObservation(f"price {_quoted(value)} is not an amount of money")
    return price


def _time(value: str | None, field: str) -> datetime | None:
    if not value:
        return None
    try:
        return parse_rfc2822(value)
    except ValueError:
        raise BadObservation(f"{field} {_quoted(value)} is not a date we can believe") from None


@lru_cache(maxsize=4096)  # the same instants recur: end_time is date_updated, start_time often date_created
def parse_rfc2822(value: str) -> datetime:
    """An aware UTC datetime from `Tue, 10 Jun 2026 20:11:27 +0000`, the only form Twilio sends, or any RFC 2822 date.

    Raises:
        ValueError: it is none, has no zone, or lies outside 2000 to 2099.

    """
    if len(value) == 31 and value.endswith(" +0000") and value[8:11] in _MONTHS:
        time = datetime(
            int(value[12:16]), _MONTHS[value[8:11]], int(value[5:7]),
            int(value[17:19]), int(value[20:22]), int(value[23:25]), tzinfo=UTC,
        )  # fmt: skip
    else:
        try:
            parsed = parsedate_to_datetime(value)
            if parsed.tzinfo is None:
                raise ValueError("no time zone")
            time = parsed.astimezone(UTC)
        except (TypeError, IndexError, OverflowError) as exc:
            raise ValueError("not a date") from exc
    if time.year not in _YEARS:
        raise ValueError("not a year of Twilio's")
    return time


def _quoted(value: str) -> str:
    """A value in a reason: short, and harmless to a log, a terminal and jsonb."""
    return ascii(value[:30])

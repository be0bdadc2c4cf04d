"""Twilio's wire form of calls, decoded strictly: bytes in, observations and dead letters out; no I/O.

Design rules
- A page in the documented form is decoded once, typed, in compiled code. Any other page is read record by record, and
  only the records that cannot be read become dead letters.
- What an observation has no field for is kept too (`other_fields`), whatever its name: Twilio adds and keeps fields
  without notice (https://www.twilio.com/docs/usage/api, "versioning"; `annotation` left the specification and still
  arrives). Nothing in it makes a record unreadable.
- `""` and null are the same. Numbers arrive as strings, and no number passes through a float.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any, Final, TypeVar

import msgspec

from reconciler.errors import BadObservation, Unavailable
from reconciler.model import ACCOUNT_SID, CALL_SID, FINAL, DeadLetter, Observation, Page, Via, parse_status
from reconciler.twilio.values import quoted, read_price, read_seconds, read_sid, read_text, read_time


class _Columns(msgspec.Struct, gc=False):
    """The fields of a Call resource that an observation has fields for."""

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


class _Call(_Columns, gc=False, forbid_unknown_fields=True):
    """The documented fields of a Call resource (https://www.twilio.com/docs/voice/api/call-resource)."""

    phone_number_sid: str | None = None
    trunk_sid: str | None = None
    forwarded_from: str | None = None
    caller_name: str | None = None
    queue_time: str | None = None
    group_sid: str | None = None
    annotation: str | None = None
    api_version: str | None = None
    # These follow from the others: addresses made of the SIDs, and how `from` and `to` are displayed.
    uri: msgspec.Raw = msgspec.Raw()
    subresource_uris: msgspec.Raw = msgspec.Raw()
    from_formatted: msgspec.Raw = msgspec.Raw()
    to_formatted: msgspec.Raw = msgspec.Raw()


T = TypeVar("T")

_NAMES: Final = _Columns.__struct_encode_fields__
_DERIVED: Final = ("uri", "subresource_uris", "from_formatted", "to_formatted")


def _place(name: str) -> tuple[int, bytes]:
    """Return the sort key by which PostgreSQL orders the names of a jsonb."""
    written = name.encode()
    return len(written), written


_OTHER: Final = tuple(sorted({*_Call.__struct_encode_fields__} - {*_NAMES, *_DERIVED}, key=_place))
_others_of = attrgetter(*_OTHER)
_encode = msgspec.json.Encoder().encode

# Every call has this version, except those made with the API of 2008.
_USUAL_VERSION: Final = "2010-04-01"
_DEEPEST: Final = 50  # levels of a field that nobody documented
# No text of PostgreSQL can hold a NUL or half of a surrogate pair.
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")


class _Listing(msgspec.Struct, gc=False):
    calls: list[_Call]
    next_page_uri: str | None = None


_decode_listing = msgspec.json.Decoder(_Listing).decode


def decode_page(body: bytes, *, observed_at: datetime) -> Page:
    """Decode one page of `Calls.json`; `observed_at` becomes the time of all its observations.

    Raises:
        Unavailable: the body is no listing: cut short, HTML, or other JSON. A repeat may help.

    """
    try:
        listing = _decode_listing(body)
        observations = [_observation(call, _others(_others_of(call)), observed_at) for call in listing.calls]
        return Page(observations, [], listing.next_page_uri, observed_at)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BadObservation):
        records, next_uri = parse_listing(body, "calls")
        found, dead_letters = read_each(records, partial(read_record, observed_at=observed_at))
        return Page(found, dead_letters, next_uri, observed_at)


def decode_call(body: bytes, *, observed_at: datetime) -> Page:
    """Decode one Call resource into a page with one observation, or one dead letter if it cannot be read.

    Raises:
        Unavailable: the body is not JSON.

    """
    found, dead_letters = read_each([parse(body)], partial(read_record, observed_at=observed_at))
    return Page(found, dead_letters, None, observed_at)


def read_record(record: object, *, observed_at: datetime) -> Observation:
    """Read one record, whose values are text or null, as Twilio sends them.

    Raises:
        BadObservation: the record cannot be read; the reason holds no phone number.

    """
    if not isinstance(record, dict):
        raise BadObservation("the record is no JSON object")
    try:
        # Unknown keys are left out first: msgspec fails on a key with half of a surrogate pair.
        call = msgspec.convert({name: record[name] for name in _NAMES if name in record}, _Columns)
    except msgspec.ValidationError as exc:
        raise BadObservation(str(exc)) from None
    others = {name: record[name] for name in record if name not in _NAMES and name not in _DERIVED}
    return _observation(call, _as_json(others), observed_at)


def dead_letter_of(record: object, *, reason: str) -> DeadLetter:
    """Return the dead letter of `record` with the reason."""
    # ASCII only: a NUL or a lone surrogate, which no text of PostgreSQL can hold, stays an escape.
    text = json.dumps(record, sort_keys=True)
    sids = (record.get("sid"), record.get("call_sid")) if isinstance(record, dict) else ()
    return DeadLetter(
        dedupe_key=f"rest:{hashlib.sha256(text.encode()).hexdigest()}",
        call_sid=next((sid for sid in sids if isinstance(sid, str) and CALL_SID.fullmatch(sid)), None),
        record=text,
        reason=reason,
    )


def dead_letter_of_observation(observation: Observation, reason: str) -> DeadLetter:
    """Return the dead letter of a record that could be read but not written, in the form of Twilio's record."""
    o = observation
    record = {
        **json.loads(o.other_fields or "{}"),
        "sid": o.call_sid,
        "account_sid": o.account_sid,
        "parent_call_sid": o.parent_call_sid,
        "direction": o.direction,
        "status": o.status.value,
        "from": o.from_number,
        "to": o.to_number,
        "duration": None if o.duration is None else str(o.duration),
        "price": None if o.price is None else str(o.price),
        "price_unit": o.price_unit,
        "start_time": o.start_time and format_datetime(o.start_time),
        "end_time": o.end_time and format_datetime(o.end_time),
        "answered_by": o.answered_by,
        "date_created": o.date_created and format_datetime(o.date_created),
        "date_updated": format_datetime(o.status_at),
    }
    return dead_letter_of(record, reason=reason)


def parse_listing(body: bytes, kind: str) -> tuple[list[object], str | None]:
    """Return the records of a page in any form, and its next_page_uri; `kind` is the key of the records.

    Raises:
        Unavailable: the body is no listing: cut short, HTML, or other JSON. A repeat may help.

    """
    envelope = parse(body)
    if not isinstance(envelope, dict) or not isinstance(envelope.get(kind), list):
        raise Unavailable(f"Twilio's answer is JSON, but not a listing of {kind}")
    next_uri = envelope.get("next_page_uri")
    if not isinstance(next_uri, str | None):
        raise Unavailable("Twilio's answer has a next_page_uri that is not text")
    return envelope[kind], next_uri


def read_each(records: Iterable[object], read: Callable[[object], T]) -> tuple[list[T], list[DeadLetter]]:
    """Read each record; return what was read, and the dead letters of the records that cannot be read.

    Raises:
        Unavailable: a record is nested deeper than can be kept.

    """
    found: list[T] = []
    dead_letters: list[DeadLetter] = []
    for record in records:
        try:
            found.append(read(record))
        except BadObservation as exc:
            dead_letters.append(_dead_letter_of(record, str(exc)))
    return found, dead_letters


def _dead_letter_of(record: object, reason: str) -> DeadLetter:
    try:
        return dead_letter_of(record, reason=reason)
    except RecursionError:
        raise Unavailable("Twilio's answer is nested deeper than can be kept") from None


def parse(body: bytes) -> Any:
    """Decode JSON with every number as text, as Twilio sends them; no float can arise.

    A byte that is not UTF-8 becomes half of a surrogate pair. It makes only its own record unreadable.

    Raises:
        Unavailable: the body is not JSON.

    """
    try:
        text = body.decode("utf-8-sig", "surrogateescape")
        return json.loads(text, parse_float=str, parse_int=str, parse_constant=str)
    except (ValueError, RecursionError):
        raise Unavailable("Twilio's answer is not JSON, or was cut short") from None


@lru_cache(maxsize=1024)
def _others(values: tuple[str | None, ...]) -> str | None:
    """Return `other_fields` of a record in the documented form; the calls of a number have many of them in common.

    The text is that of a jsonb, with its order of names and its spaces. The merge then compares it without parsing it.
    """
    others = {name: value for name, value in zip(_OTHER, values, strict=True) if value}
    if others.get("api_version") == _USUAL_VERSION:
        del others["api_version"]
    if not others:
        return None
    text = _as_text(others)
    return _as_json(others) if "\\u0000" in text else text


def _as_json(others: Mapping[str, Any]) -> str | None:
    """Return `other_fields`; None if nothing of it has a value. Characters that PostgreSQL cannot hold are replaced."""
    kept = {
        _storable(name, 0): value
        for name, item in others.items()
        if not (name == "api_version" and item == _USUAL_VERSION)
        and (value := _storable(item, _DEEPEST)) not in (None, "")
    }
    return _as_text(_in_order(kept)) if kept else None


def _as_text(others: Mapping[str, Any]) -> str:
    return msgspec.json.format(_encode(others), indent=0).decode()


def _in_order(items: Mapping[str, Any]) -> dict[str, Any]:
    return {name: items[name] for name in sorted(items, key=_place)}


def _storable(value: Any, levels: int) -> Any:
    """Return a JSON value that PostgreSQL can hold; null in place of a value nested deeper than `levels`."""
    match value:
        case str():
            return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)
        case dict() if levels:
            return _in_order({_storable(name, 0): _storable(item, levels - 1) for name, item in value.items()})
        case list() if levels:
            return [_storable(item, levels - 1) for item in value]
        case dict() | list():
            return None
    return value


def _observation(call: _Columns, other_fields: str | None, observed_at: datetime) -> Observation:
    # A page has a thousand calls, so speed counts: repeated values are read once (`_common`).
    status = parse_status(call.status)
    if status is None:
        raise BadObservation(f"unknown status {quoted(call.status)}")
    if not CALL_SID.fullmatch(call.sid):
        raise BadObservation("sid is not CA and 32 hexadecimal digits")
    account_sid, direction, price_unit, answered_by = _common(
        call.account_sid, call.direction, call.price_unit, call.answered_by
    )
    start, end, created, updated = call.start_time, call.end_time, call.date_created, call.date_updated
    start_time = read_time(start, "start_time")
    end_time = read_time(end, "end_time")
    # Most calls start in the second of their creation, and change last when they end: equal times are parsed once.
    date_created = start_time if created == start else read_time(created, "date_created")
    updated_at = end_time if updated == end else read_time(updated, "date_updated")
    told_at = updated_at or start_time or date_created or observed_at
    return Observation(
        call.sid,
        account_sid,
        read_sid(call.parent_call_sid, CALL_SID, "parent_call_sid"),
        direction,
        status,
        read_text(call.from_, "from"),
        read_text(call.to, "to"),
        read_seconds(call.duration),
        read_price(call.price),
        price_unit,
        start_time,
        end_time,
        answered_by,
        date_created,
        (end_time or told_at) if status in FINAL else told_at,
        observed_at,
        Via.REST,
        other_fields,
    )


@lru_cache(maxsize=1024)
def _common(
    account_sid: str | None, direction: str | None, price_unit: str | None, answered_by: str | None
) -> tuple[str | None, str | None, str | None, str | None]:
    """Read the fields that have the same few values in all calls of an account."""
    return (
        read_sid(account_sid, ACCOUNT_SID, "account_sid"),
        read_text(direction, "direction"),
        read_text(price_unit, "price_unit"),
        read_text(answered_by, "answered_by"),
    )

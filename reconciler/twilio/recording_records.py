"""Twilio's wire form of recordings, decoded strictly: bytes in, recordings and dead letters out; no I/O.

OpenAPI `api.v2010.account.recording`. The same rules hold as for calls, see `records`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any, Final

import msgspec

from reconciler.errors import BadObservation
from reconciler.model import (
    CALL_SID,
    CONFERENCE_SID,
    RECORDING_SID,
    DeadLetter,
    Observation,
    Page,
    Recording,
    RecordingPayload,
    RecordingState,
    Said,
)
from reconciler.twilio.records import (
    dead_letter_of,
    dead_letter_of_observation,
    parse,
    parse_listing,
    read_each,
)
from reconciler.twilio.values import quoted, read_sid, read_text, read_time

_STATES: Final = {
    "in-progress": RecordingState.UNFINISHED,
    "paused": RecordingState.UNFINISHED,
    "stopped": RecordingState.UNFINISHED,
    "processing": RecordingState.UNFINISHED,
    "completed": RecordingState.READY,
    "absent": RecordingState.ABSENT,
    "deleted": RecordingState.DELETED,
}
_STATUSES: Final = {state: status for status, state in reversed(_STATES.items())}

# The fields of a record in the payload of its event, as the inbox job names those of a callback.
_TOLD: Final = {
    "media_url": "recording_url",
    "duration": "duration",
    "channels": "channels",
    "source": "source",
    "start_time": "start_time",
}


class _Recording(msgspec.Struct, gc=False):
    """The fields of a Recording resource that we keep."""

    sid: str
    status: str
    call_sid: str | None = None
    conference_sid: str | None = None
    date_created: str | None = None
    start_time: str | None = None
    duration: str | None = None
    channels: int | str | None = None
    source: str | None = None
    media_url: str | None = None


_NAMES: Final = _Recording.__struct_encode_fields__


class _Listing(msgspec.Struct, gc=False):
    recordings: list[_Recording]
    next_page_uri: str | None = None


_decode_listing = msgspec.json.Decoder(_Listing).decode


def decode_recordings(body: bytes, *, observed_at: datetime) -> Page:
    """Decode one page of `Recordings.json`.

    Raises:
        Unavailable: the body is no such listing. A repeat may help.

    """
    try:
        listing = _decode_listing(body)
        found = [_recording(each, observed_at) for each in listing.recordings]
        return Page([], [], listing.next_page_uri, observed_at, found)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BadObservation):
        records, next_uri = parse_listing(body, "recordings")
        found, dead_letters = read_each(records, partial(read_recording_record, observed_at=observed_at))
        return Page([], dead_letters, next_uri, observed_at, found)


def decode_recording(body: bytes, *, observed_at: datetime) -> Page:
    """Decode one Recording resource into a page with one recording, or one dead letter if it cannot be read.

    Raises:
        Unavailable: the body is not JSON.

    """
    found, dead_letters = read_each([parse(body)], partial(read_recording_record, observed_at=observed_at))
    return Page([], dead_letters, None, observed_at, found)


def is_recording_record(record: object) -> bool:
    """Whether a record that Twilio sent is that of a recording, not of a call."""
    return isinstance(record, dict) and str(record.get("sid")).startswith("RE")


def read_recording_record(record: object, *, observed_at: datetime) -> Recording:
    """Read one record, whose values are text or null, as Twilio sends them.

    Raises:
        BadObservation: the record cannot be read.

    """
    if not isinstance(record, dict):
        raise BadObservation("the record is no JSON object")
    try:
        recording = msgspec.convert({name: record[name] for name in _NAMES if name in record}, _Recording)
    except msgspec.ValidationError as exc:
        raise BadObservation(str(exc)) from None
    return _recording(recording, observed_at)


def dead_letter_of_refused(item: Said, reason: str) -> DeadLetter:
    """Return the dead letter of a record that could be read but not written, in the form of Twilio's record."""
    return (
        dead_letter_of_observation(item, reason)
        if isinstance(item, Observation)
        else _dead_letter_of_recording(item, reason)
    )


def _dead_letter_of_recording(recording: Recording, reason: str) -> DeadLetter:
    told = {field: getattr(recording.payload, name) for field, name in _TOLD.items()}
    record: dict[str, Any] = {
        **told,
        "sid": recording.recording_sid,
        "call_sid": recording.call_sid,
        "conference_sid": recording.conference_sid,
        "status": _STATUSES[recording.state],
        "date_created": recording.date_created and format_datetime(recording.date_created),
    }
    return dead_letter_of(record, reason=reason)


def _recording(record: _Recording, observed_at: datetime) -> Recording:
    state = _STATES.get(record.status)
    if state is None:
        raise BadObservation(f"unknown status {quoted(record.status)}")
    if not RECORDING_SID.fullmatch(record.sid):
        raise BadObservation("sid is not RE and 32 hexadecimal digits")
    date_created = read_time(record.date_created, "date_created")
    media_url = read_text(record.media_url, "media_url")
    told = {name: read_text(str(getattr(record, field) or ""), name) for field, name in _TOLD.items()}
    return Recording(
        record.sid,
        read_sid(record.call_sid, CALL_SID, "call_sid"),
        read_sid(record.conference_sid, CONFERENCE_SID, "conference_sid"),
        state,
        date_created,
        observed_at if state is RecordingState.DELETED else _ready_at(record, date_created or observed_at),
        media_url if state is RecordingState.READY else None,
        RecordingPayload(record.sid, **told),
    )


def _ready_at(record: _Recording, created: datetime) -> datetime:
    """Return when a recording was ready: its creation or its end, whichever is later. Its callback comes then."""
    start, duration = read_time(record.start_time, "start_time"), record.duration or ""
    if start is None or not (duration.isascii() and duration.isdecimal() and len(duration) <= 9):
        return created
    return max(created, start + timedelta(seconds=int(duration)))

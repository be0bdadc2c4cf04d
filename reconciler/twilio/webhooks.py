"""Twilio's webhooks as the inbox holds them, read into observations and recordings; pure, no I/O.

A voice webhook says less than a REST record and says it in other words
(https://www.twilio.com/docs/voice/twiml#request-parameters): it is put into a record's words here, and then read
by the same strict reader.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from reconciler.errors import BadObservation
from reconciler.model import CALL_SID, Observation, Via
from reconciler.twilio.dates import parse_rfc2822
from reconciler.twilio.records import read_record

# A parameter's name in a REST record. CallDuration is seconds; the webhook's Duration is billed minutes.
_CALL: Final = {
    "CallSid": "sid",
    "AccountSid": "account_sid",
    "ParentCallSid": "parent_call_sid",
    "CallStatus": "status",
    "Direction": "direction",
    "From": "from",
    "To": "to",
    "CallDuration": "duration",
    "AnsweredBy": "answered_by",
}

# The action of <Dial> is told on the parent's CallSid but speaks of the leg that was dialled; its From and To are
# the parent's (https://www.twilio.com/docs/voice/twiml/dial#action).
_CHILD_LEG: Final = {
    "DialCallSid": "sid",
    "AccountSid": "account_sid",
    "CallSid": "parent_call_sid",
    "DialCallStatus": "status",
    "DialCallDuration": "duration",
}

CLOCKS_DIFFER: Final = timedelta(hours=1)  # Twilio's and the receiver's, at most

_RECORDING_SID: Final = re.compile(r"RE[0-9a-fA-F]{32}")
# What a recording callback says beside its SIDs (https://www.twilio.com/docs/voice/api/recording#recordingstatuscallback).
_RECORDING: Final = {
    "RecordingUrl": "recording_url",
    "RecordingDuration": "duration",
    "RecordingChannels": "channels",
    "RecordingSource": "source",
    "RecordingStartTime": "start_time",
}


class Recording(NamedTuple):
    """A recording that is ready."""

    call_sid: str
    recording_sid: str
    event_time: datetime
    payload: dict[str, str]


def read_webhook(event_type: str, payload: Mapping[str, Any], *, received_at: datetime) -> Observation | None:
    """What the webhook says about a call, or None if it speaks of no status: a recording, a dial without a leg.

    Raises:
        BadObservation: it should say something and cannot be read; with the reason.

    """
    match event_type:
        case "call-status" | "call-inbound":
            names = _CALL
        case "dial-action":
            if not payload.get("DialCallSid"):
                return None
            names = _CHILD_LEG
        case "recording-complete":
            return None
        case _:
            raise BadObservation(f"unknown event_type {event_type[:30]!a}")
    record = {field: payload[parameter] for parameter, field in names.items() if parameter in payload}
    if event_type == "dial-action":
        record["direction"] = "outbound-dial"
    said_at = _said_at(payload.get("Timestamp")) or received_at
    if said_at > received_at + CLOCKS_DIFFER:
        # Nothing is said after it was received: believed, it would outrank whatever is said until then.
        said_at = received_at
    observation = read_record(record, observed_at=said_at)
    return observation._replace(via=Via.WEBHOOK, status_at=said_at)


def read_recording(
    payload: Mapping[str, Any], *, call_sid: str | None, recording_sid: str | None, received_at: datetime
) -> Recording | None:
    """What a recording callback says, or None if the recording is not ready; the SIDs given stand in for absent ones.

    Raises:
        BadObservation: it names no call or no recording; with the reason.

    """
    if payload.get("RecordingStatus") != "completed":
        return None
    call_sid = payload.get("CallSid") or call_sid
    recording_sid = payload.get("RecordingSid") or recording_sid
    if not isinstance(call_sid, str) or not CALL_SID.fullmatch(call_sid):
        raise BadObservation("CallSid is not CA and 32 hexadecimal digits")
    if not isinstance(recording_sid, str) or not _RECORDING_SID.fullmatch(recording_sid):
        raise BadObservation("RecordingSid is not RE and 32 hexadecimal digits")
    said = {
        name: payload[parameter] for parameter, name in _RECORDING.items() if isinstance(payload.get(parameter), str)
    }
    # A recording callback has no Timestamp.
    return Recording(call_sid, recording_sid, received_at, {"recording_sid": recording_sid, **said})


def _said_at(timestamp: object) -> datetime | None:
    if timestamp is None or timestamp == "":
        return None
    try:
        if isinstance(timestamp, str):
            return parse_rfc2822(timestamp)
    except ValueError:
        pass
    raise BadObservation("Timestamp is not a date we can believe")

"""Twilio's webhooks as the inbox holds them, read into observations and recordings; pure, no I/O.

A voice webhook has fewer fields than a REST record, under other names
(https://www.twilio.com/docs/voice/twiml#request-parameters). This module translates the names; the reader of records
then reads the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from reconciler.errors import BadObservation
from reconciler.model import (
    CALL_SID,
    CONFERENCE_SID,
    RECORDING_SID,
    Observation,
    Recording,
    RecordingPayload,
    RecordingState,
    Via,
)
from reconciler.twilio.dates import parse_rfc2822
from reconciler.twilio.records import read_record
from reconciler.twilio.values import read_sid

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

# The action of <Dial> has the parent's CallSid, From and To, and the status of the leg that was dialled
# (https://www.twilio.com/docs/voice/twiml/dial#action).
_CHILD_LEG: Final = {
    "DialCallSid": "sid",
    "AccountSid": "account_sid",
    "CallSid": "parent_call_sid",
    "DialCallStatus": "status",
    "DialCallDuration": "duration",
}

CLOCKS_DIFFER: Final = timedelta(minutes=5)  # Twilio's clock and the receiver's, at most

# The parameters of a recording callback beside its SIDs
# (https://www.twilio.com/docs/voice/api/recording#recordingstatuscallback).
_RECORDING: Final = {
    "RecordingUrl": "recording_url",
    "RecordingDuration": "duration",
    "RecordingChannels": "channels",
    "RecordingSource": "source",
    "RecordingStartTime": "start_time",
}

# Twilio's other callbacks about a call: each has one of these parameters, and none has a CallStatus. They are about
# conferences and their participants (https://www.twilio.com/docs/voice/twiml/conference#attributes-statusCallback),
# queues, recordings, transcriptions, media streams, SIPREC and payments.
_OTHER_CALLBACKS: Final = frozenset(
    {
        "ConferenceSid", "StatusCallbackEvent", "QueueSid", "RecordingSid", "TranscriptionSid", "TranscriptionEvent",
        "StreamSid", "SiprecSid", "PaymentSid",
    }
)  # fmt: skip


def read_webhook(event_type: str, payload: Mapping[str, Any], *, received_at: datetime) -> Observation | None:
    """Return the observation in a voice webhook; None if it has no status, like a recording or a <Dial> without a leg.

    Raises:
        BadObservation: the webhook cannot be read; the message is the reason.

    """
    match event_type:
        case "call-status" | "call-inbound":
            return _read_voice(payload, received_at)
        case "dial-action":
            # A <Dial> that reached nobody has no child leg.
            return _read_call(payload, _CHILD_LEG, received_at) if payload.get("DialCallSid") else None
        case "recording-complete":
            return None
    raise BadObservation(f"unknown event_type {event_type[:30]!a}")


def read_recording(
    payload: Mapping[str, Any], *, call_sid: str | None, recording_sid: str | None, received_at: datetime
) -> Recording | None:
    """Return the recording, if it is ready, else None; the given SIDs replace missing ones.

    A conference's recording belongs to no single call: its callback has a ConferenceSid and no CallSid
    (https://www.twilio.com/docs/voice/twiml/conference#attributes-recordingStatusCallback). A recording of neither a
    call nor a conference makes no event: each row of `call_events` names its subject.

    Raises:
        BadObservation: a SID is malformed, or the recording's is missing; the message is the reason.

    """
    if payload.get("RecordingStatus") != "completed":
        return None
    recording_sid = payload.get("RecordingSid") or recording_sid
    if not isinstance(recording_sid, str) or not RECORDING_SID.fullmatch(recording_sid):
        raise BadObservation("RecordingSid is not RE and 32 hexadecimal digits")
    call_sid = read_sid(payload.get("CallSid") or call_sid, CALL_SID, "CallSid")
    conference_sid = read_sid(payload.get("ConferenceSid"), CONFERENCE_SID, "ConferenceSid")
    if call_sid is None and conference_sid is None:
        return None
    said = {
        name: payload[parameter] for parameter, name in _RECORDING.items() if isinstance(payload.get(parameter), str)
    }
    return Recording(
        recording_sid,
        call_sid,
        conference_sid,
        RecordingState.READY,
        None,
        received_at,  # a recording callback has no Timestamp
        said.get("recording_url") or None,
        RecordingPayload(recording_sid, **said),
    )


def _read_voice(payload: Mapping[str, Any], received_at: datetime) -> Observation | None:
    if payload.get("CallStatus"):
        return _read_call(payload, _CALL, received_at)
    if payload.get("AnsweredBy"):
        # Asynchronous machine detection. Twilio listens after the call was answered: it was in progress
        # (https://www.twilio.com/docs/voice/answering-machine-detection).
        return _read_call({**payload, "CallStatus": "in-progress"}, _CALL, received_at)
    if _OTHER_CALLBACKS.isdisjoint(payload):
        return _read_call(payload, _CALL, received_at)  # raises an error that names the missing parameter
    return None


def _read_call(payload: Mapping[str, Any], names: Mapping[str, str], received_at: datetime) -> Observation:
    record = {field: payload[parameter] for parameter, field in names.items() if parameter in payload}
    if names is _CHILD_LEG:
        record["direction"] = "outbound-dial"
    said_at = _said_at(payload.get("Timestamp")) or received_at
    if said_at > received_at + CLOCKS_DIFFER:
        # No webhook is sent after it was received. Such a time would outrank every observation until then.
        said_at = received_at
    observation = read_record(record, observed_at=said_at)
    return observation._replace(via=Via.WEBHOOK, status_at=said_at)


def _said_at(timestamp: object) -> datetime | None:
    if timestamp is None or timestamp == "":
        return None
    try:
        if isinstance(timestamp, str):
            return parse_rfc2822(timestamp)
    except ValueError:
        pass
    raise BadObservation("Timestamp is not a plausible date")

"""Twilio's voice webhooks as the inbox holds them, read into observations; pure, no I/O.

A webhook says less than a REST record and says it in other words
(https://www.twilio.com/docs/voice/twiml#request-parameters): it is put into a record's words here, and then read
by the same strict reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from reconciler.errors import BadObservation
from reconciler.model import Observation, Via
from reconciler.wire import parse_rfc2822, read_record

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
    raise BadObservation("Timestamp is not a date we can believe")

"""Payloads as Twilio posts them and the Viewer keeps them in the inbox."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.harness.names import ACCOUNT, sid
from tests.harness.rows import T0

GRACE = timedelta(minutes=5)  # the Viewer's own worker has this long to take up a row


def webhook(status: str = "completed", *, call: int = 1, minute: float = 0, **more: Any) -> dict[str, Any]:
    """The parameters of a status callback sent `minute` minutes after T0."""
    sent_at = T0 + timedelta(minutes=minute)
    return {
        "CallSid": sid(call),
        "AccountSid": ACCOUNT,
        "CallStatus": status,
        "Direction": "inbound",
        "From": "+15005550100",
        "To": "+15005550101",
        "Timestamp": sent_at.strftime("%a, %d %b %Y %H:%M:%S +0000"),
        **more,
    }


def recording(status: str = "completed", *, call: int = 1, number: int = 1) -> dict[str, Any]:
    """The parameters of a recording callback."""
    return {
        "CallSid": sid(call),
        "AccountSid": ACCOUNT,
        "RecordingSid": f"RE{number:032x}",
        "RecordingStatus": status,
        "RecordingUrl": "https://api.twilio.com/recordings/1",
        "RecordingDuration": "12",
    }

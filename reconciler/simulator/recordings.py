"""Recordings: which calls have one, and Twilio's record of it. Shape: OpenAPI `api.v2010.account.recording`.

Most recordings follow from a call and from the account's settings (`Callbacks`); tests add others. A recording
outlives its call. Lists and fetches leave out a deleted recording; for 40 days those with IncludeSoftDeleted still
show it (OpenAPI `ListRecording`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from zlib import crc32

import msgspec

from reconciler.simulator.calls import Record, SimulatedCall
from reconciler.simulator.switches import Switches
from reconciler.simulator.wire import API, DAY, rfc2822

PROCESSING = 3  # seconds from the end of the call until its recording is ready
SOFT_DELETED_FOR = 40 * DAY


class Callbacks(msgspec.Struct, frozen=True):
    """Settings of an account: which calls it records, and which callbacks it asks for besides status callbacks.

    Attributes:
        recorded: share of the completed parent legs that are recorded.
        recorded_trunks: share of the completed trunk calls that are recorded; trunks send no other webhook.
        conferences: share of the answered parent legs that join a conference. The conference is recorded and sends a
            callback for each participant.
        asynchronous_detection: whether machine detection sends its result in a callback of its own.

    """

    recorded: float = 0.1
    recorded_trunks: float = 0.0
    conferences: float = 0.0
    asynchronous_detection: bool = False


class Recording(msgspec.Struct, frozen=True):
    """One recording. Times are seconds since 1970. `call_sid` is the parent leg; None for a conference."""

    sid: str
    account_sid: str
    call_sid: str | None
    started: int
    ended: int
    source: str
    conference_sid: str | None = None
    status: str = "completed"
    price: str | None = "-0.00250"
    channels: int = 1

    @property
    def ready(self) -> int:
        """The second at which the recording is ready and Twilio sends its callback."""
        return self.ended + PROCESSING

    @property
    def duration(self) -> int:
        """The duration in whole seconds."""
        return self.ended - self.started

    @property
    def media_url(self) -> str:
        """The URL of the audio; RecordingUrl in the callback is the same."""
        return f"https://api.twilio.com{API}/Accounts/{self.account_sid}/Recordings/{self.sid}"

    def created(self, switches: Switches) -> int:
        """Return date_created, in seconds. Filters and the order of lists use it."""
        return self.started if switches.recording_created == "start" else self.ready

    def render(self, at: int, switches: Switches, *, deleted: bool = False) -> Record:
        """Return Twilio's record in a list of the account."""
        base = f"{API}/Accounts/{self.account_sid}/Recordings/{self.sid}"
        is_ready = self.ready <= at
        return {
            "account_sid": self.account_sid, "api_version": "2010-04-01", "call_sid": self.call_sid,
            "channels": self.channels, "conference_sid": self.conference_sid,
            "date_created": rfc2822(self.created(switches)),
            "date_updated": rfc2822(self.ready if is_ready else self.created(switches)),
            "duration": str(self.duration) if is_ready else None, "encryption_details": None, "error_code": None,
            "media_url": self.media_url, "price": self.price if is_ready else None, "price_unit": "USD",
            "sid": self.sid, "source": self.source, "start_time": rfc2822(self.started),
            "status": "deleted" if deleted else self.status if is_ready else "in-progress",
            "subresource_uris": {
                "add_on_results": f"{base}/AddOnResults.json", "transcriptions": f"{base}/Transcriptions.json",
            },
            "uri": f"{base}.json",
        }  # fmt: skip


def recordings_of(call: SimulatedCall, asked: Callbacks) -> Iterator[Recording]:
    """Yield the recordings of a call: its own, and that of the conference it joins."""
    if call.status != "completed" or call.ended is None or call.parent_call_sid is not None:
        return
    started = call.answered or call.created
    share = asked.recorded_trunks if call.is_trunking else asked.recorded
    if _is_picked(call, share):
        source = "Trunking" if call.is_trunking else "DialVerb" if call.direction == "inbound" else "OutboundAPI"
        yield Recording(_sid("RE", call.sid), call.account_sid, call.sid, started, call.ended, source)
    if (conference_sid := conference_of(call, asked)) is not None:
        sid = _sid("RE", conference_sid)
        yield Recording(sid, call.account_sid, None, started, call.ended, "Conference", conference_sid)


def conference_of(call: SimulatedCall, asked: Callbacks) -> str | None:
    """Return the SID of the conference that a call joins; None if it joins none."""
    if call.is_trunking or call.parent_call_sid is not None or call.answered is None:
        return None
    sid = _sid("CF", call.sid)
    return sid if crc32(sid.encode()) < asked.conferences * 0x1_0000_0000 else None


def _is_picked(call: SimulatedCall, share: float) -> bool:
    return crc32(call.sid.encode()) < share * 0x1_0000_0000


def _sid(prefix: str, of: str) -> str:
    return prefix + hashlib.md5(of.encode(), usedforsecurity=False).hexdigest()

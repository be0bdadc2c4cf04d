"""The webhooks Twilio would send of an account's calls, and the road on which some of them are lost.

Shapes: tests/data/webhook_samples.json. Which call sends what
(https://www.twilio.com/docs/voice/api/call-resource#statuscallbackevent, https://www.twilio.com/docs/voice/twiml):
- an inbound call asks the voice URL for TwiML (CallStatus `ringing`, no Timestamp, no SequenceNumber) and sends one
  status callback at its end, because a number's status callback URL fires once;
- an outbound-api call sends initiated, ringing, in-progress (the event `answered`) and its final status;
- a child leg is silent unless its noun has a statusCallback; its <Dial> reports to the parent's action URL;
- a recording callback names the parent leg and carries neither CallStatus nor Timestamp;
- SIP trunking calls send none (https://help.twilio.com/articles/223132267).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Literal
from zlib import crc32

from reconciler.simulator.account import SimulatedAccount
from reconciler.simulator.calls import Record, SimulatedCall
from reconciler.simulator.wire import API, instant, rfc2822, seconds

Kind = Literal["voice-url", "status-callback", "dial-action", "recording"]

SIP_RESPONSE_CODES = {"completed": "200", "busy": "486", "no-answer": "487", "failed": "404", "canceled": "487"}
_PATHS: dict[Kind, str] = {
    "voice-url": "/twilio/voice/inbound",
    "status-callback": "/twilio/voice/status",
    "dial-action": "/twilio/voice/dial-action",
    "recording": "/twilio/voice/recording",
}


@dataclass(frozen=True, slots=True)
class Webhook:
    """One form-encoded POST of Twilio, sent at `sent_at`."""

    kind: Kind
    sent_at: datetime
    params: Mapping[str, str]

    @property
    def call_sid(self) -> str:
        """The call it names: the parent for dial actions and recordings."""
        return self.params["CallSid"]

    @property
    def path(self) -> str:
        """Where it goes on the receiver's host."""
        return _PATHS[self.kind]

    def signature(self, auth_token: str, url: str) -> str:
        """X-Twilio-Signature: always with the auth token of the account in AccountSid, never with an API key."""
        text = url + "".join(name + self.params[name] for name in sorted(self.params))
        return base64.b64encode(hmac.new(auth_token.encode(), text.encode(), hashlib.sha1).digest()).decode()


def webhooks(
    account: SimulatedAccount, since: datetime, until: datetime, *, child_callbacks: bool = False,
    recorded: float = 0.1,
) -> list[Webhook]:  # fmt: skip
    """Every webhook of the account sent in [since, until), in the order of sending.

    `child_callbacks` makes child legs send status callbacks too, `recorded` is the share of answered parent calls
    that were recorded. Calls deleted by `until` have sent theirs all the same, but are not looked at.
    """
    sent = (
        webhook
        for call in account.calls_at(until)
        if isinstance(call, SimulatedCall)
        for webhook in _of_call(account, call, child_callbacks, recorded)
        if since <= webhook.sent_at < until
    )
    return sorted(sent, key=lambda webhook: webhook.sent_at)


def events_of(account: SimulatedAccount, sid: str, now: datetime) -> list[Record]:
    """Events.json of one call: what was sent; to be had from 15 minutes after the end of the call."""
    call = account.find(sid)
    if not isinstance(call, SimulatedCall) or call.ended is None or now < instant(call.ended) + timedelta(minutes=15):
        return []
    return [
        {
            "request": {
                "method": "POST",
                "url": f"https://hooks.example.com{webhook.path}",
                "parameters": {_snake(name): value for name, value in webhook.params.items()},
            },
            "response": {
                "response_code": 200,
                "request_duration": 50,
                "content_type": "text/xml",
                "response_body": "<Response/>",
                "date_created": rfc2822(seconds(webhook.sent_at)),
            },
        }
        for webhook in _of_call(account, call, child_callbacks=False, recorded=0)
    ]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook as it reached the receiver."""

    received_at: datetime
    webhook: Webhook


@dataclass(frozen=True, slots=True)
class Channel:
    """The road from Twilio to the receiver: loses, doubles, delays and reorders, the same way for the same seed.

    Each share is that of all webhooks. `late` ones come up to `latest` after they were sent; `reorder` delays by
    up to five seconds, so that neighbours change places. Each other webhook takes a tenth of a second.
    """

    seed: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0
    reorder: float = 0.0
    latest: timedelta = timedelta(hours=1)

    def deliver(self, sent: Iterable[Webhook]) -> list[Delivery]:
        """What arrives, in the order of arrival."""
        rng = Random(self.seed)
        arrived: list[Delivery] = []
        for webhook in sent:
            if rng.random() < self.loss:
                continue
            copies = 2 if rng.random() < self.duplicate else 1
            arrived.extend(Delivery(webhook.sent_at + self._delay(rng), webhook) for _ in range(copies))
        return sorted(arrived, key=lambda delivery: delivery.received_at)

    def _delay(self, rng: Random) -> timedelta:
        if rng.random() < self.late:
            return self.latest * rng.random()
        if rng.random() < self.reorder:
            return timedelta(seconds=5) * rng.random()
        return timedelta(milliseconds=100)


def _of_call(
    account: SimulatedAccount, call: SimulatedCall, child_callbacks: bool, recorded: float
) -> Iterator[Webhook]:
    if call.is_trunking:
        return
    parent = account.find(call.parent_call_sid) if call.parent_call_sid else None
    if call.direction == "inbound":
        yield Webhook("voice-url", instant(call.created), {**_address(call), "CallStatus": "ringing"})
        yield from _status_callbacks(call, only_final=True)
    elif call.direction == "outbound-api" or child_callbacks:
        yield from _status_callbacks(call)
    if isinstance(parent, SimulatedCall) and call.ended is not None:
        yield _dial_action(call, parent)
    if call.parent_call_sid is None and _is_recorded(call, recorded):
        yield _recording(call)


def _status_callbacks(call: SimulatedCall, *, only_final: bool = False) -> Iterator[Webhook]:
    """SequenceNumber counts the events that fire: three for an unanswered call, one for an inbound number."""
    later = [time for time in (call.answered, call.ended) if time is not None]
    steps: list[tuple[str, int | None]] = [
        ("initiated", call.dialled),
        ("ringing", None if call.dialled is None else min([call.dialled + 1, *later])),
        ("in-progress", call.answered),
        (call.status, call.ended),
    ]
    if only_final:
        steps = steps[-1:]
    sequence = 0
    for status, at in steps:
        if at is None or (call.ended is not None and at > call.ended):
            continue
        params = {
            **_address(call),
            "CallStatus": status,
            "Timestamp": rfc2822(at),
            "CallbackSource": "call-progress-events",
            "SequenceNumber": str(sequence),
        }
        if at == call.ended and status == call.status:
            params |= _ending(call, at)
        yield Webhook("status-callback", instant(at), params)
        sequence += 1


def _ending(call: SimulatedCall, at: int) -> dict[str, str]:
    """What only the last callback says. CallDuration is seconds, Duration is billed minutes."""
    talked = call.duration_at(at) or 0
    ending = {
        "CallDuration": str(talked),
        "Duration": str(-(-talked // 60)),
        "SipResponseCode": SIP_RESPONSE_CODES[call.status],
    }
    return ending if call.answered_by is None else {**ending, "AnsweredBy": call.answered_by}


def _dial_action(child: SimulatedCall, parent: SimulatedCall) -> Webhook:
    ended = child.ended or child.created
    # A parent that hung up first is over when its <Dial> reports.
    status = parent.status_at(ended)
    params = {
        **_address(parent),
        "CallStatus": status,
        "DialCallSid": child.sid,
        "DialCallStatus": child.status,
        "DialBridged": "true" if child.answered else "false",
    }
    if child.status == "completed":
        params["DialCallDuration"] = str(child.duration_at(ended) or 0)
    return Webhook("dial-action", instant(ended), params)


def _recording(call: SimulatedCall) -> Webhook:
    ended = call.ended or call.created
    sid = "RE" + hashlib.md5(call.sid.encode(), usedforsecurity=False).hexdigest()
    params = {
        "AccountSid": call.account_sid,
        "CallSid": call.sid,
        "RecordingSid": sid,
        "RecordingUrl": f"https://api.twilio.com{API}/Accounts/{call.account_sid}/Recordings/{sid}",
        "RecordingStatus": "completed",
        "RecordingDuration": str(call.duration_at(ended) or 0),
        "RecordingStartTime": rfc2822(call.answered or call.created),
        "RecordingChannels": "1",
        "RecordingSource": "DialVerb" if call.direction == "inbound" else "OutboundAPI",
        "RecordingTrack": "both",
        "ErrorCode": "0",
    }
    return Webhook("recording", instant(ended + 3), params)


def _is_recorded(call: SimulatedCall, share: float) -> bool:
    completed = call.status == "completed" and call.ended is not None
    return completed and crc32(call.sid.encode()) < share * 0x1_0000_0000


def _address(call: SimulatedCall) -> dict[str, str]:
    """Who calls whom. Child legs come without geography, clients and SIP addresses have none."""
    params = {
        "AccountSid": call.account_sid,
        "ApiVersion": "2010-04-01",
        "CallSid": call.sid,
        "Direction": call.direction,
        "From": call.from_,
        "Caller": call.from_,
        "To": call.to,
        "Called": call.to,
    }
    if call.parent_call_sid is not None:
        return params | {"ParentCallSid": call.parent_call_sid, "CalledVia": call.from_, "ForwardedFrom": call.from_}
    for names, address in ((("From", "Caller"), call.from_), (("To", "Called"), call.to)):
        if address.startswith("+"):
            for name in names:
                params |= {f"{name}City": "", f"{name}State": "", f"{name}Zip": "", f"{name}Country": "US"}
    return params


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")

"""The webhooks Twilio would send of an account's calls, and the road on which some of them are lost.

Shapes: tests/data/webhook_samples.json. Which call sends what
(https://www.twilio.com/docs/voice/api/call-resource#statuscallbackevent, https://www.twilio.com/docs/voice/twiml):
- an inbound call asks the voice URL for TwiML (CallStatus `ringing`, no Timestamp, no SequenceNumber) and sends one
  status callback at its end, because a number's status callback URL fires once;
- an outbound-api call sends initiated, ringing, in-progress (the event `answered`) and its final status;
- a child leg is silent unless its noun has a statusCallback; its <Dial> reports to the parent's action URL;
- a recording callback names the parent leg and carries neither CallStatus nor Timestamp; that of a conference names
  the conference alone;
- machine detection that runs beside the call tells its result in a callback of its own, without CallStatus
  (https://www.twilio.com/docs/voice/answering-machine-detection);
- a conference tells who joins and leaves, with StatusCallbackEvent and without CallStatus
  (https://www.twilio.com/docs/voice/twiml/conference);
- SIP trunking calls send none but of their recordings (https://help.twilio.com/articles/223132267).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain
from random import Random
from typing import Literal

from reconciler.simulator.account import SimulatedAccount
from reconciler.simulator.calls import FINAL, Record, SimulatedCall
from reconciler.simulator.endpoints import HOOKS
from reconciler.simulator.recordings import PROCESSING, Recording, conference_of, recordings_of
from reconciler.simulator.wire import instant, rfc2822, seconds

Kind = Literal["voice-url", "status-callback", "dial-action", "recording", "machine-detection", "participant"]

SIP_RESPONSE_CODES = {"completed": "200", "busy": "486", "no-answer": "487", "failed": "404", "canceled": "487"}
_PATHS: dict[Kind, str] = {
    "voice-url": "/twilio/voice/inbound",
    "status-callback": "/twilio/voice/status",
    "dial-action": "/twilio/voice/dial-action",
    "recording": "/twilio/voice/recording",
    "machine-detection": "/twilio/voice/detection",
    "participant": "/twilio/voice/conference",
}
DETECTION = 3  # seconds that machine detection listens


@dataclass(frozen=True, slots=True)
class Webhook:
    """One form-encoded POST of Twilio, sent at `sent_at`."""

    kind: Kind
    sent_at: datetime
    params: Mapping[str, str]
    configured_url: str | None = None

    @property
    def call_sid(self) -> str | None:
        """The call it names: the parent for dial actions and recordings, none for the recording of a conference."""
        return self.params.get("CallSid")

    @property
    def url(self) -> str:
        """Where it goes: to the URL that was configured, else to the one that all others of its kind go to."""
        return self.configured_url or HOOKS + _PATHS[self.kind]

    @property
    def is_final(self) -> bool:
        """Whether it tells how a call ended."""
        return self.kind == "status-callback" and self.params["CallStatus"] in FINAL

    def signature(self, auth_token: str, url: str) -> str:
        """X-Twilio-Signature: always with the auth token of the account in AccountSid, never with an API key."""
        text = url + "".join(name + self.params[name] for name in sorted(self.params))
        return base64.b64encode(hmac.new(auth_token.encode(), text.encode(), hashlib.sha1).digest()).decode()


def webhooks(
    account: SimulatedAccount, since: datetime, until: datetime, *, child_callbacks: bool = False
) -> list[Webhook]:
    """Every webhook of the account sent in [since, until), in the order of sending.

    `child_callbacks` makes child legs send status callbacks too. What is told of recordings, conferences and machine
    detection stands in `account.callbacks`, which number tells what in `account.endpoints`. Calls deleted by `until`
    have sent theirs all the same, but are not looked at.
    """
    sent = (
        webhook
        for call in account.alive_between(since - timedelta(seconds=PROCESSING + 1), until)
        if isinstance(call, SimulatedCall)
        for webhook in of_call(account, call, child_callbacks=child_callbacks)
    )
    told = (_recording(each) for each in list(account.added_recordings) if each.status == "completed")
    within = (webhook for webhook in chain(sent, told) if since <= webhook.sent_at < until)
    return sorted(within, key=lambda webhook: webhook.sent_at)


def events_of(account: SimulatedAccount, sid: str, now: datetime) -> list[Record]:
    """Events.json of one call: what was sent and answered; to be had from 15 minutes after the end of the call."""
    call = account.find(sid)
    if not isinstance(call, SimulatedCall) or call.ended is None or now < instant(call.ended) + timedelta(minutes=15):
        return []
    return [
        {
            "request": {
                "method": "POST",
                "url": webhook.url,
                "parameters": {_snake(name): value for name, value in webhook.params.items()},
            },
            "response": _response(account, webhook),
        }
        for webhook in of_call(account, call)
        if webhook.kind in ("voice-url", "status-callback", "dial-action")
    ]


def _response(account: SimulatedAccount, webhook: Webhook) -> Record:
    """What the receiver answered: 500 where Monitor says 11200, nothing where no connection came about."""
    failed = next(
        (
            loss.detail
            for loss in account.losses
            if loss.cause == "alert"
            and (loss.call_sid, loss.kind, loss.at) == (webhook.call_sid, webhook.kind, webhook.sent_at)
        ),
        None,
    )
    has_answer = failed in (None, "11200")
    return {
        "response_code": 200 if failed is None else 500 if has_answer else None,
        "request_duration": 50 if has_answer else 10_000,
        "content_type": "text/xml" if has_answer else None,
        "response_body": "<Response/>" if failed is None else "",
        "date_created": rfc2822(seconds(webhook.sent_at)),
    }


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


def of_call(account: SimulatedAccount, call: SimulatedCall, *, child_callbacks: bool = False) -> Iterator[Webhook]:
    """Every webhook that one call sends, in no order."""
    if not call.is_trunking:
        yield from _of_progress(account, call, child_callbacks)
        yield from _of_conference(account, call)
    parent = account.find(call.parent_call_sid) if call.parent_call_sid else None
    if isinstance(parent, SimulatedCall) and call.ended is not None:
        yield _dial_action(call, parent)
    for recording in recordings_of(call, account.callbacks):
        yield _recording(recording)


def _of_progress(account: SimulatedAccount, call: SimulatedCall, child_callbacks: bool) -> Iterator[Webhook]:
    """How the call goes on, as far as a URL is configured for it."""
    if call.direction == "inbound":
        urls = account.endpoints.urls_of(call)
        if urls.voice_url:
            said = {**_address(call), "CallStatus": "ringing"}
            yield Webhook("voice-url", instant(call.created), said, urls.voice_url)
        if urls.status_callback:
            for webhook in _status_callbacks(call, only_final=True):
                yield replace(webhook, configured_url=urls.status_callback)
    elif call.direction == "outbound-api" or child_callbacks:
        yield from _status_callbacks(call)
        if account.callbacks.asynchronous_detection and call.answered_by and call.answered is not None:
            yield _machine_detection(call, call.answered)


def _machine_detection(call: SimulatedCall, answered: int) -> Webhook:
    said = {
        "AccountSid": call.account_sid,
        "AnsweredBy": call.answered_by or "unknown",
        "CallSid": call.sid,
        "MachineDetectionDuration": str(DETECTION * 1000),
    }
    return Webhook("machine-detection", instant(answered + DETECTION), said)


def _of_conference(account: SimulatedAccount, call: SimulatedCall) -> Iterator[Webhook]:
    """The participant joins with the answer and leaves with the end."""
    conference_sid = conference_of(call, account.callbacks)
    if conference_sid is None:
        return
    for number, (event, at) in enumerate((("participant-join", call.answered), ("participant-leave", call.ended)), 1):
        if at is not None:
            said = {
                "AccountSid": call.account_sid, "CallSid": call.sid, "Coaching": "false",
                "ConferenceSid": conference_sid, "EndConferenceOnExit": "true", "FriendlyName": "Front desk",
                "Hold": "false", "Muted": "false", "SequenceNumber": str(number),
                "StartConferenceOnEnter": "true", "StatusCallbackEvent": event, "Timestamp": rfc2822(at),
            }  # fmt: skip
            yield Webhook("participant", instant(at), said)


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


def _recording(recording: Recording) -> Webhook:
    said = {
        "AccountSid": recording.account_sid,
        "RecordingSid": recording.sid,
        "RecordingUrl": recording.media_url,
        "RecordingStatus": "completed",
        "RecordingDuration": str(recording.duration),
        "RecordingStartTime": rfc2822(recording.started),
        "RecordingChannels": "1",
        "RecordingSource": recording.source,
        "RecordingTrack": "both",
        "ErrorCode": "0",
    }
    names = {"ConferenceSid": recording.conference_sid, "CallSid": recording.call_sid}
    said |= {name: sid for name, sid in names.items() if sid is not None}
    return Webhook("recording", instant(recording.ready), said)


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

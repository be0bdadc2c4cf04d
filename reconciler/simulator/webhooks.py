"""The webhooks that Twilio sends for an account's calls, and the channel that loses some of them.

Shapes: tests/data/webhook_samples.json. Rules
(https://www.twilio.com/docs/voice/api/call-resource#statuscallbackevent, https://www.twilio.com/docs/voice/twiml):
- an inbound call asks the voice URL for TwiML (CallStatus `ringing`, no Timestamp, no SequenceNumber). It sends one
  status callback at its end, because a number's status callback URL fires once;
- an outbound-api call sends initiated, ringing, in-progress (the event `answered`) and its final status;
- a child leg sends no webhooks unless its noun has a statusCallback; its <Dial> reports to the parent's action URL;
- a recording callback names the parent leg and carries neither CallStatus nor Timestamp; the callback of a recorded
  conference names only the conference;
- asynchronous machine detection sends its result in a callback of its own, without CallStatus
  (https://www.twilio.com/docs/voice/answering-machine-detection);
- a conference sends a callback for each participant that joins or leaves, with StatusCallbackEvent and without
  CallStatus (https://www.twilio.com/docs/voice/twiml/conference);
- SIP trunking calls send recording callbacks only (https://help.twilio.com/articles/223132267).
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
    """One form-encoded POST that Twilio sends at `sent_at`."""

    kind: Kind
    sent_at: datetime
    params: Mapping[str, str]
    configured_url: str | None = None

    @property
    def call_sid(self) -> str | None:
        """The call in the webhook: the parent for dial actions and recordings, None for a conference's recording."""
        return self.params.get("CallSid")

    @property
    def url(self) -> str:
        """The URL that receives the webhook: the configured one, else the default of its kind."""
        return self.configured_url or HOOKS + _PATHS[self.kind]

    @property
    def is_final(self) -> bool:
        """Whether the webhook carries the final status of a call."""
        return self.kind == "status-callback" and self.params["CallStatus"] in FINAL

    def signature(self, auth_token: str, url: str) -> str:
        """Return X-Twilio-Signature. Twilio signs with the auth token of AccountSid's account, never with a key."""
        text = url + "".join(name + self.params[name] for name in sorted(self.params))
        return base64.b64encode(hmac.new(auth_token.encode(), text.encode(), hashlib.sha1).digest()).decode()


def webhooks(
    account: SimulatedAccount, since: datetime, until: datetime, *, child_callbacks: bool = False
) -> list[Webhook]:
    """Return every webhook of the account that Twilio sends in [since, until), in the order of sending.

    - `child_callbacks`: child legs send status callbacks too.
    - `account.callbacks` decides on recordings, conferences and machine detection, `account.endpoints` on URLs.
    - Calls deleted by `until` are left out, although Twilio would have sent their webhooks.
    """
    sent = (
        webhook
        for call in account.alive_between(since - timedelta(seconds=PROCESSING + 1), until)
        if isinstance(call, SimulatedCall)
        for webhook in of_call(account, call, child_callbacks=child_callbacks)
    )
    recorded = (_recording(each) for each in list(account.added_recordings) if each.status == "completed")
    within = (webhook for webhook in chain(sent, recorded) if since <= webhook.sent_at < until)
    return sorted(within, key=lambda webhook: webhook.sent_at)


def events_of(account: SimulatedAccount, sid: str, now: datetime) -> list[Record]:
    """Return Events.json of one call, its requests and responses; empty until 15 minutes after the call's end."""
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
    """Return the receiver's response: 200, 500 if Monitor lists 11200, or none if there was no connection."""
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
    """A webhook that reached the receiver at `received_at`."""

    received_at: datetime
    webhook: Webhook


@dataclass(frozen=True, slots=True)
class Channel:
    """Loses, doubles, delays and reorders webhooks by chance, the same way for the same seed.

    Each value is a share of all webhooks. `late` webhooks arrive up to `latest` after they were sent. `reorder` delays
    by up to five seconds, so that neighbours change places. Every other webhook takes a tenth of a second.
    """

    seed: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0
    reorder: float = 0.0
    latest: timedelta = timedelta(hours=1)

    def deliver(self, sent: Iterable[Webhook]) -> list[Delivery]:
        """Return the webhooks that arrive, in the order of arrival."""
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
    """Yield every webhook of one call, in no particular order."""
    if not call.is_trunking:
        yield from _of_progress(account, call, child_callbacks)
        yield from _of_conference(account, call)
    parent = account.find(call.parent_call_sid) if call.parent_call_sid else None
    if isinstance(parent, SimulatedCall) and call.ended is not None:
        yield _dial_action(call, parent)
    for recording in recordings_of(call, account.callbacks):
        yield _recording(recording)


def _of_progress(account: SimulatedAccount, call: SimulatedCall, child_callbacks: bool) -> Iterator[Webhook]:
    """Yield the webhooks about the call's progress for which a URL is configured."""
    if call.direction == "inbound":
        urls = account.endpoints.urls_of(call)
        if urls.voice_url:
            params = {**_address(call), "CallStatus": "ringing"}
            yield Webhook("voice-url", instant(call.created), params, urls.voice_url)
        if urls.status_callback:
            for webhook in _status_callbacks(call, only_final=True):
                yield replace(webhook, configured_url=urls.status_callback)
    elif call.direction == "outbound-api" or child_callbacks:
        yield from _status_callbacks(call)
        if account.callbacks.asynchronous_detection and call.answered_by and call.answered is not None:
            yield _machine_detection(call, call.answered)


def _machine_detection(call: SimulatedCall, answered: int) -> Webhook:
    params = {
        "AccountSid": call.account_sid,
        "AnsweredBy": call.answered_by or "unknown",
        "CallSid": call.sid,
        "MachineDetectionDuration": str(DETECTION * 1000),
    }
    return Webhook("machine-detection", instant(answered + DETECTION), params)


def _of_conference(account: SimulatedAccount, call: SimulatedCall) -> Iterator[Webhook]:
    """Yield the callbacks of a conference: the participant joins at the answer and leaves at the end."""
    conference_sid = conference_of(call, account.callbacks)
    if conference_sid is None:
        return
    for number, (event, at) in enumerate((("participant-join", call.answered), ("participant-leave", call.ended)), 1):
        if at is not None:
            params = {
                "AccountSid": call.account_sid, "CallSid": call.sid, "Coaching": "false",
                "ConferenceSid": conference_sid, "EndConferenceOnExit": "true", "FriendlyName": "Front desk",
                "Hold": "false", "Muted": "false", "SequenceNumber": str(number),
                "StartConferenceOnEnter": "true", "StatusCallbackEvent": event, "Timestamp": rfc2822(at),
            }  # fmt: skip
            yield Webhook("participant", instant(at), params)


def _status_callbacks(call: SimulatedCall, *, only_final: bool = False) -> Iterator[Webhook]:
    """Yield the status callbacks. SequenceNumber counts them: three for an unanswered call, one for an inbound one."""
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
    """Return the parameters of the last callback alone. CallDuration is in seconds, Duration in billed minutes."""
    talked = call.duration_at(at) or 0
    ending = {
        "CallDuration": str(talked),
        "Duration": str(-(-talked // 60)),
        "SipResponseCode": SIP_RESPONSE_CODES[call.status],
    }
    return ending if call.answered_by is None else {**ending, "AnsweredBy": call.answered_by}


def _dial_action(child: SimulatedCall, parent: SimulatedCall) -> Webhook:
    ended = child.ended or child.created
    # If the parent hung up first, its status is final when its <Dial> reports.
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
    params = {
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
    params |= {name: sid for name, sid in names.items() if sid is not None}
    return Webhook("recording", instant(recording.ready), params)


def _address(call: SimulatedCall) -> dict[str, str]:
    """Return caller and callee. Child legs, clients and SIP addresses have no geography."""
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

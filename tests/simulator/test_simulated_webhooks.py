"""The webhooks of an account's calls, the road they travel, and the Viewer that receives them."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from reconciler.simulator import Callbacks
from reconciler.simulator.viewer import Habits, receive, work
from reconciler.simulator.webhooks import Channel, Delivery, Webhook, webhooks

DATA = Path(__file__).parent.parent / "data"
NOON = datetime(2026, 6, 10, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SAMPLES = json.loads((DATA / "webhook_samples.json").read_text(encoding="utf-8"))
KINDS = {
    "voice-url request (asks for TwiML)": "voice-url",
    "status callback": "status-callback",
    "Dial action request (asks for TwiML)": "dial-action",
    "recording status callback": "recording",
}


def sample(name):
    """The parameters of one recorded webhook."""
    return next(sample["params"] for sample in SAMPLES["samples"] if sample["name"] == name)


def sent(account, *, recorded=None, **options):
    """Every webhook of the account up to tomorrow; `recorded` is the share of recorded calls."""
    if recorded is not None:
        account.callbacks = Callbacks(recorded=recorded)
    return webhooks(account, NOON - 30 * DAY, NOON + DAY, **options)


def told(webhook):
    """Return kind, status and sequence number of a webhook."""
    return webhook.kind, webhook.params.get("CallStatus"), webhook.params.get("SequenceNumber")


def test_an_outbound_call_sends_four_status_callbacks(account):
    """initiated, ringing, in-progress and completed, numbered from 0; seconds and billed minutes at the end."""
    account.call(NOON, rings_for=6, talks_for=61)
    callbacks = sent(account)
    assert [told(webhook) for webhook in callbacks] == [
        ("status-callback", "initiated", "0"),
        ("status-callback", "ringing", "1"),
        ("status-callback", "in-progress", "2"),
        ("status-callback", "completed", "3"),
    ]
    ending = ("CallDuration", "Duration", "SipResponseCode")
    assert tuple(callbacks[-1].params[name] for name in ending) == ("61", "2", "200")
    assert [webhook.sent_at for webhook in callbacks] == [
        parsedate_to_datetime(webhook.params["Timestamp"]) for webhook in callbacks
    ]


@pytest.mark.parametrize(
    ("status", "code"), [("busy", "486"), ("no-answer", "487"), ("failed", "404"), ("canceled", "487")]
)
def test_an_unanswered_call_ends_with_its_own_status_and_no_seconds(account, status, code):
    """The event `completed` carries CallStatus busy and so on, number 2, CallDuration and Duration 0."""
    account.call(NOON, status=status)
    last = sent(account)[-1]
    assert ("status-callback", status, "2") == told(last)
    assert ("0", "0", code) == tuple(last.params[name] for name in ("CallDuration", "Duration", "SipResponseCode"))


def test_an_inbound_call_asks_for_twiml_and_reports_once(account):
    """The voice URL first, without Timestamp; the number's status callback at the end, number 0."""
    account.call(NOON, direction="inbound")
    first, last = sent(account, recorded=0)
    assert told(first) == ("voice-url", "ringing", None)
    assert "Timestamp" not in first.params
    assert told(last) == ("status-callback", "completed", "0")


def test_a_child_leg_is_silent_and_its_dial_speaks_on_the_parent(account):
    """Only with callbacks of its own does a child leg report; the Dial action names it on the parent."""
    parent = account.call(NOON, direction="inbound", talks_for=60)
    soon = NOON + timedelta(seconds=3)
    child = account.call(soon, direction="outbound-dial", parent_call_sid=parent.sid, talks_for=20)
    quiet = sent(account, recorded=0)
    assert {parent.sid} == {webhook.call_sid for webhook in quiet}
    [dial] = [webhook for webhook in quiet if webhook.kind == "dial-action"]
    assert (child.sid, "completed", "20", "in-progress") == tuple(
        dial.params[name] for name in ("DialCallSid", "DialCallStatus", "DialCallDuration", "CallStatus")
    )
    loud = [webhook for webhook in sent(account, child_callbacks=True) if webhook.call_sid == child.sid]
    assert [webhook.params["CallStatus"] for webhook in loud] == ["initiated", "ringing", "in-progress", "completed"]
    assert {parent.sid} == {webhook.params["ParentCallSid"] for webhook in loud}


def test_a_recording_names_the_call_and_is_no_call_status(account):
    """No CallStatus, no Timestamp; it comes seconds after the end."""
    call = account.call(NOON)
    last = sent(account, recorded=1)[-1]
    assert ("recording", call.sid) == (last.kind, last.call_sid)
    assert not {"CallStatus", "Timestamp", "SequenceNumber"} & last.params.keys()
    assert sample("recording-completed").keys() == last.params.keys()


def test_trunking_calls_send_nothing(account):
    """For SIP trunks the REST API is the only source."""
    account.call(NOON, direction="trunking-terminating")
    assert sent(account, recorded=1) == []


def test_only_what_was_sent_within_the_range(account):
    """Ranges are half-open: a webhook sent at `until` belongs to the next one."""
    account.generate(300, NOON - DAY, NOON)
    whole = sent(account)
    cut = NOON - DAY / 2
    halves = webhooks(account, NOON - 30 * DAY, cut) + webhooks(account, cut, NOON + DAY)
    assert Counter(map(repr, whole)) == Counter(map(repr, halves))


def test_webhooks_are_shaped_like_the_recorded_ones(account):
    """Every parameter we send was seen in a recorded webhook of the same kind, and all that are always there are."""
    account.generate(400, NOON - DAY, NOON)
    known: dict[str, list[set[str]]] = {}
    for recorded in SAMPLES["samples"]:
        known.setdefault(KINDS[recorded["kind"]], []).append(set(recorded["params"]))
    ours = sent(account, child_callbacks=True)
    assert known.keys() == {webhook.kind for webhook in ours}
    for webhook in ours:
        samples = known[webhook.kind]
        assert webhook.params.keys() <= set.union(*samples)
        # Clients and SIP addresses have no geography, and an unanswered <Dial> has no duration.
        at_times = {name for name in set.union(*samples) if name.endswith(("City", "State", "Zip", "Country"))}
        assert webhook.params.keys() >= set.intersection(*samples) - at_times - {"DialCallDuration"}


def test_signatures_are_those_of_the_samples():
    """base64(HMAC-SHA1(auth token, URL + sorted parameters))."""
    for recorded in SAMPLES["samples"]:
        webhook = Webhook("status-callback", NOON, recorded["params"])
        expected = recorded["headers"]["X-Twilio-Signature"]
        assert expected == webhook.signature(SAMPLES["auth_token_for_tests"], recorded["url"])


def test_a_perfect_channel_delivers_everything_in_order(account):
    """Without faults each webhook arrives once, shortly after it was sent."""
    account.generate(200, NOON - DAY, NOON)
    expected = sent(account)
    assert expected == [delivery.webhook for delivery in Channel().deliver(expected)]


def test_a_channel_loses_doubles_delays_and_reorders_the_same_way_every_time(account):
    """Shares are about right, arrival is in order of received_at, and the seed decides."""
    account.generate(1000, NOON - DAY, NOON)
    expected = sent(account)
    channel = Channel(seed=5, loss=0.2, duplicate=0.1, late=0.05, reorder=0.3)
    arrived = channel.deliver(expected)
    assert arrived == channel.deliver(expected)
    assert arrived != Channel(seed=6, loss=0.2, duplicate=0.1, late=0.05, reorder=0.3).deliver(expected)
    distinct = {id(delivery.webhook) for delivery in arrived}
    assert 0.75 < len(distinct) / len(expected) < 0.85
    assert 0.05 < (len(arrived) - len(distinct)) / len(distinct) < 0.15
    times = [delivery.received_at for delivery in arrived]
    assert times == sorted(times)
    assert any(delivery.received_at - delivery.webhook.sent_at > timedelta(minutes=5) for delivery in arrived)
    order = [delivery.webhook.sent_at for delivery in arrived]
    assert order != sorted(order)


def rows(conn):
    """Return the Viewer's row of each call."""
    return dict(conn.execute("SELECT twilio_sid, status FROM messages ORDER BY 1").fetchall())


def test_the_viewer_stores_webhooks_once_and_works_them_off(conn, account):
    """Webhooks become rows of the inbox and then of messages, with the last status; repetitions are dropped."""
    account.generate(300, NOON - DAY, NOON)
    arrived = Channel(seed=1, duplicate=0.3).deliver(sent(account))
    stored = receive(conn, arrived)
    assert len({id(delivery.webhook) for delivery in arrived}) == stored
    assert receive(conn, arrived) == 0
    assert stored == work(conn, now=NOON + DAY)
    assert work(conn, now=NOON + DAY) == 0
    [(inbox,)] = conn.execute("SELECT array_agg(DISTINCT processing_status) FROM twilio_webhook_inbox").fetchall()
    assert inbox == ["completed"]
    loud = [call for call in account.calls_at(NOON + DAY) if call.direction in ("inbound", "outbound-api")]
    assert rows(conn) == {call.sid: call.status for call in loud}


def test_the_viewer_keeps_its_hands_off_calls_that_are_over(conn, account):
    """A well-behaved worker ignores a late ringing, and inserts the values of the webhook."""
    call = account.call(NOON, to="client:bob")
    initiated, ringing, _, completed = sent(account, recorded=0)
    receive(conn, [Delivery(NOON, completed)])
    work(conn, now=NOON)
    receive(conn, [Delivery(NOON, initiated), Delivery(NOON, ringing)])
    work(conn, now=NOON)
    row = conn.execute("SELECT twilio_sid, direction, status, to_number, duration FROM messages").fetchone()
    assert (call.sid, "outbound-api", "completed", "client:bob", 30) == row


def test_clumsy_habits_never_make_its_statements_fail(conn, account):
    """It claims and forgets, regresses, seals and overwrites: its statements still succeed on our schema."""
    account.generate(100, NOON - DAY, NOON)
    arrived = Channel(seed=2, reorder=0.5).deliver(sent(account))
    receive(conn, arrived)
    half = len(arrived) // 2
    clumsy = Habits(regress_statuses=True, seal_wrongly=True, overwrite_metadata=True)
    assert half == work(conn, clumsy, now=NOON + DAY, batch=half)
    claimed = work(conn, Habits(never_release=True), now=NOON + DAY)
    stuck = conn.execute("SELECT count(*) FROM twilio_webhook_inbox WHERE processing_status = 'processing'").fetchone()
    assert (claimed,) == stuck
    assert claimed > 0


def by_kind(webhooks_, kind):
    """The webhooks of one kind."""
    return [webhook for webhook in webhooks_ if webhook.kind == kind]


def test_a_trunk_tells_of_its_recordings_alone(account):
    """The recording of a trunk call has a callback, although the call itself sends none."""
    call = account.call(NOON, direction="trunking-terminating")
    account.callbacks = Callbacks(recorded_trunks=1)
    (only,) = sent(account)
    assert ("recording", call.sid, "Trunking") == (only.kind, only.call_sid, only.params["RecordingSource"])


def test_a_conference_tells_of_its_participants_and_of_its_recording(account):
    """Participant events have no CallStatus; the recording names the conference and no call."""
    call = account.call(NOON, rings_for=6, talks_for=30)
    account.callbacks = Callbacks(recorded=0, conferences=1)
    told = sent(account)
    joined, left = by_kind(told, "participant")
    assert [webhook.params["StatusCallbackEvent"] for webhook in (joined, left)] == [
        "participant-join", "participant-leave",
    ]  # fmt: skip
    assert {call.sid} == {joined.call_sid, left.call_sid}
    assert not {"CallStatus", "RecordingSid"} & (joined.params.keys() | left.params.keys())
    (recording,) = by_kind(told, "recording")
    assert recording.call_sid is None
    assert (joined.params["ConferenceSid"], "Conference") == tuple(
        recording.params[name] for name in ("ConferenceSid", "RecordingSource")
    )
    assert sample("recording-completed").keys() - {"CallSid"} | {"ConferenceSid"} == recording.params.keys()


def test_machine_detection_beside_the_call_tells_its_result_alone(account):
    """AnsweredBy without CallStatus, seconds after the answer; only of calls whose detection found something."""
    call = account.call(NOON, answered_by="machine_start")
    account.call(NOON)
    account.callbacks = Callbacks(recorded=0, asynchronous_detection=True)
    (told,) = by_kind(sent(account), "machine-detection")
    assert told.params == {
        "AccountSid": account.sid, "AnsweredBy": "machine_start", "CallSid": call.sid,
        "MachineDetectionDuration": "3000",
    }  # fmt: skip
    assert NOON + timedelta(seconds=9) == told.sent_at


def test_a_recording_that_follows_from_no_call_is_told_too(account):
    """If a conference has it, the callback names the conference. A failed recording has no callback."""
    made = account.add_recording(NOON, NOON + timedelta(minutes=1), conference_sid="CF1", source="Conference")
    account.add_recording(NOON, NOON + timedelta(minutes=1), call_sid="CA1", status="absent")
    (told,) = sent(account)
    assert (made.sid, "CF1", "60") == tuple(
        told.params[name] for name in ("RecordingSid", "ConferenceSid", "RecordingDuration")
    )


@pytest.mark.parametrize(
    ("to", "configure"),
    [
        ("+12025550100", lambda endpoints, **urls: endpoints.add_number("+12025550100", **urls)),
        ("sip:desk@pbx.example.com:5061;transport=tls", lambda e, **urls: e.add_sip_domain("pbx.example.com", **urls)),
        (f"app:AP{7:032x}", lambda e, **urls: e.add_application("desk", sid=f"AP{7:032x}", **urls)),
        (f"AP{7:032x}", lambda e, **urls: e.add_application("desk", sid=f"AP{7:032x}", **urls)),
    ],
)
def test_an_endpoint_without_a_status_callback_tells_no_end(account, to, configure):
    """The call asks for TwiML; its end goes to the configured URL, or nowhere."""
    account.call(NOON, direction="inbound", to=to)
    kinds = {}
    for name, url in (("none", ""), ("elsewhere", "https://old.example.net/status?tenant=7")):
        configure(account.endpoints, status_callback=url)
        kinds[name] = [(webhook.kind, webhook.url) for webhook in sent(account, recorded=0)]
    asked = ("voice-url", "https://hooks.example.com/twilio/voice/inbound")
    assert {
        "none": [asked], "elsewhere": [asked, ("status-callback", "https://old.example.net/status?tenant=7")],
    } == kinds  # fmt: skip


def test_a_number_with_a_twiml_app_uses_the_urls_of_the_app(account):
    """Its own are ignored."""
    account.call(NOON, direction="inbound", to="+12025550100")
    application = account.endpoints.add_application("desk", voice_url="", status_callback="https://app.example.net/")
    account.endpoints.add_number("+12025550100", status_callback="", application_sid=application.sid)
    assert ["https://app.example.net/"] == [webhook.url for webhook in sent(account, recorded=0)]


def test_the_viewer_takes_what_is_no_call_status_and_writes_no_call_of_it(conn, account):
    """A conference's recording has no call_sid; participants and machine detection are call-status rows."""
    account.call(NOON, answered_by="human")
    account.callbacks = Callbacks(recorded=0, conferences=1, asynchronous_detection=True)
    others = [webhook for webhook in sent(account) if "CallStatus" not in webhook.params]
    receive(conn, [Delivery(NOON, webhook) for webhook in others])
    assert 4 == work(conn, now=NOON)
    stored = conn.execute("SELECT event_type, call_sid IS NULL, processing_status FROM twilio_webhook_inbox ORDER BY 1")
    assert stored.fetchall() == [
        *[("call-status", False, "completed")] * 3, ("recording-complete", True, "completed"),
    ]  # fmt: skip
    assert rows(conn) == {}

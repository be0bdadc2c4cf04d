"""The inbox job settles the rows of the inbox."""

from __future__ import annotations

import threading
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from structlog.testing import capture_logs

from reconciler import retry
from reconciler.database import connection as db
from reconciler.errors import TableFault, Unavailable
from reconciler.simulator.viewer import _EVENT_TYPES
from tests.harness.contexts import run_replay
from tests.harness.names import ACCOUNT, NOW, sid
from tests.harness.recorded import REAL_WEBHOOKS
from tests.harness.rows import T0

from .payloads import GRACE, recording, webhook

RANKS = ("queued", "initiated", "ringing", "in-progress")


def _event_type(kind: str) -> str:
    kinds: dict[str, Any] = {
        "voice-url": "voice-url",
        "status": "status-callback",
        "Dial": "dial-action",
        "recording": "recording",
    }
    return _EVENT_TYPES[kinds[kind.split(maxsplit=1)[0]]]


def test_every_sample_webhook_is_merged(work, put, calls, conn):
    """Each call they speak of ends with the highest status told of it; the recording is an event."""
    told: dict[str, list[str]] = {}
    for sample in REAL_WEBHOOKS:
        params, event_type = sample["params"], _event_type(sample["kind"])
        put(params, event_type=event_type, received_at=NOW - timedelta(hours=1))
        if event_type == "dial-action":
            told.setdefault(params["DialCallSid"], []).append(params["DialCallStatus"])
        elif event_type != "recording-complete":
            told.setdefault(params["CallSid"], []).append(params["CallStatus"])
    worked = work()
    assert (worked.rows, worked.dead_letters) == (len(REAL_WEBHOOKS), 0)
    assert calls() == {
        call: max(statuses, key=lambda s: RANKS.index(s) if s in RANKS else 4) for call, statuses in told.items()
    }
    recorded = conn.execute("SELECT call_sid, payload FROM call_events WHERE event_type = 'recording.ready'").fetchall()
    (sample,) = [s["params"] for s in REAL_WEBHOOKS if "RecordingStatus" in s["params"]]
    assert [(call, payload["recording_sid"]) for call, payload in recorded] == [
        (sample["CallSid"], sample["RecordingSid"])
    ]


def test_the_source_of_what_is_merged_is_the_inbox(work, put, conn):
    """Events say that the inbox saw it, and in which run."""
    put(webhook())
    work()
    (found,) = conn.execute("SELECT source, run_id IS NOT NULL FROM call_events").fetchall()
    assert found == ("reconcile_inbox", True)


def test_a_dial_action_speaks_of_the_child_leg(work, put, calls, conn):
    """The leg that was dialled is a call of its own; the parent is left alone."""
    put(
        webhook("in-progress", DialCallSid=sid(2), DialCallStatus="completed", DialCallDuration="7"),
        event_type="dial-action",
    )
    work()
    assert calls() == {sid(2): "completed"}
    assert conn.execute("SELECT parent_call_sid, direction, duration FROM messages").fetchone() == (
        sid(1), "outbound-dial", 7,
    )  # fmt: skip


def test_a_dial_without_a_leg_says_nothing(work, put, calls, state):
    """Nobody was dialled: there is no call to speak of."""
    id_ = put(webhook("in-progress", DialCallStatus="failed"), event_type="dial-action")
    work()
    assert (calls(), state(id_)) == ({}, "completed")


def test_a_late_webhook_is_an_event_and_changes_no_row(work, put, calls, events):
    """A ringing that is reported after the end still happened, so it is an event (rule 3)."""
    put(webhook("completed", minute=2), minute=2)
    put(webhook("ringing", minute=1), minute=3)
    work()
    assert calls() == {sid(1): "completed"}
    assert events() == [("call.created", "completed"), ("call.status_changed", "ringing")]


def test_the_same_webhook_under_two_keys_is_one_event(work, put, events):
    """A repetition changes nothing, in the same batch or a later one."""
    put(webhook())
    put(webhook())
    work()
    put(webhook())
    assert (work().rows, events()) == (1, [("call.created", "completed")])


def test_a_calls_webhooks_are_merged_in_the_order_received(work, put, events):
    """The ids of the rows do not matter; the same holds across batches."""
    for minute, status in ((4, "completed"), (2, "ringing"), (1, "initiated"), (3, "in-progress")):
        put(webhook(status, minute=minute), minute=minute)
    work(batch=1)
    assert [status for _, status in events()] == ["initiated", "ringing", "in-progress", "completed"]


@pytest.mark.parametrize(
    ("status", "age", "is_due"),
    [
        ("pending", GRACE - timedelta(seconds=1), False),
        ("pending", GRACE + timedelta(seconds=1), True),
        ("processing", GRACE + timedelta(seconds=59), False),
        ("processing", GRACE + timedelta(seconds=61), True),
        ("completed", timedelta(days=1), False),
        ("dead_letter", timedelta(days=1), False),
    ],
)
def test_a_row_is_taken_when_its_worker_had_its_time(work, put, state, status, age, is_due):
    """A row is due when it is pending for longer than the grace, or in processing a minute more. Settled rows stay."""
    id_ = put(webhook(), received_at=NOW - age, processing_status=status)
    assert work().rows == is_due
    assert state(id_) == ("completed" if is_due else status)


def test_without_another_worker_nothing_waits(work, put, state):
    """With no grace a row is due as soon as it is there."""
    id_ = put(webhook(), received_at=NOW - timedelta(milliseconds=1))
    work(grace=timedelta(0))
    assert state(id_) == "completed"


def test_a_row_without_a_plausible_age_is_due(work, put, state):
    """received_at may be null, or before all time, in the Viewer's table."""
    undated, ancient = put(webhook(), minute=None), put(webhook(call=2), received_at="-infinity")
    work()
    assert (state(undated), state(ancient)) == ("completed", "completed")


@pytest.mark.parametrize("received_at", ["infinity", "-infinity", "20000-01-01", "2099-01-01"])
@pytest.mark.parametrize("status", ["pending", "processing", "failed", "dead_letter"])
def test_a_time_of_receipt_that_cannot_be_blocks_nobody(work, put, state, store, conn, received_at, status):
    """Python cannot hold such a time. The row is due, and so are the rows beside it."""
    odd = put(webhook("ringing"), received_at=received_at, processing_status=status)
    good = put(webhook(call=2), processing_status=status)
    if status == "dead_letter":
        assert run_replay(store, clock=lambda: NOW).completed == 2
    else:
        work()
    assert (state(odd), state(good)) == ("completed", "completed")
    assert conn.execute("SELECT observed_at FROM messages WHERE twilio_sid = %s", (sid(1),)).fetchone() == (T0,)


@pytest.mark.parametrize(
    ("retry_count", "age_minutes", "is_due"),
    [(1, 1.9, False), (1, 2.1, True), (5, 31, False), (5, 33, True), (7, 129, True)],
)
def test_what_the_viewer_failed_at_is_retried_with_backoff(work, put, state, retry_count, age_minutes, is_due):
    """Due 2, 4, 8 … minutes after it was received."""
    received_at = NOW - timedelta(minutes=age_minutes)
    id_ = put(webhook(), received_at=received_at, processing_status="failed", retry_count=retry_count, error="boom")
    work()
    assert state(id_) == ("completed" if is_due else "failed")


def test_after_eight_tries_it_is_given_up(work, put, reason):
    """The row keeps the Viewer's own reason."""
    id_ = put(webhook(), processing_status="failed", retry_count=8, error="boom")
    assert work().dead_letters == 1
    assert reason(id_) == "given up after 8 tries: boom"


def test_a_timestamp_from_the_future_is_that_of_the_receipt(work, put, conn):
    """Otherwise it would outrank every REST record until then."""
    put(webhook("ringing", Timestamp="Fri, 01 Jan 2038 00:00:00 +0000"), minute=3)
    work()
    assert conn.execute("SELECT observed_at FROM messages").fetchone() == (T0 + timedelta(minutes=3),)


@pytest.mark.parametrize(("ahead", "is_accepted"), [(timedelta(minutes=4), True), (timedelta(minutes=50), False)])
def test_a_timestamp_may_be_ahead_as_far_as_clocks_differ(work, put, conn, ahead, is_accepted):
    """Fifty minutes ahead of its receipt, a webhook would outrank REST for fifty minutes."""
    sent = (T0 + ahead).strftime("%a, %d %b %Y %H:%M:%S +0000")
    put(webhook("ringing", Timestamp=sent))
    work()
    assert conn.execute("SELECT observed_at FROM messages").fetchone() == (T0 + ahead if is_accepted else T0,)


@pytest.mark.parametrize("source", ["Conference", "StartConferenceRecordingAPI", "Trunking"])
def test_a_recording_of_no_single_call_is_told_of_its_conference(work, put, state, conn, source):
    """Twilio names no CallSid for it, so its event names the conference. Without either it makes none."""
    payload = {**recording(), "CallSid": None, "ConferenceSid": "CF" + 32 * "0", "RecordingSource": source}
    without = {name: value for name, value in payload.items() if value}
    neither = {**payload, "ConferenceSid": "", "RecordingSid": "RE" + 32 * "7"}
    ids = [
        put(said, source="twilio_recording", event_type="recording-complete") for said in (payload, without, neither)
    ]
    worked = work()
    assert ([state(id_) for id_ in ids], worked.dead_letters) == (["completed"] * 3, 0)
    told = conn.execute("SELECT call_sid, event_type, payload ->> 'recording_sid' FROM call_events").fetchall()
    assert told == [(payload["ConferenceSid"], "recording.ready", payload["RecordingSid"])]


DETECTED = {"CallSid": sid(1), "AccountSid": ACCOUNT, "AnsweredBy": "human", "MachineDetectionDuration": "3200"}


@pytest.mark.parametrize("status", ["ringing", "in-progress", "completed", "failed"])
def test_machine_detection_tells_who_answered(work, put, conn, events, status):
    """The callback names no status. The row may be open or over; a call that is over stays so."""
    put(webhook(status))
    put(DETECTED, minute=1)
    assert work().dead_letters == 0
    now = "in-progress" if status == "ringing" else status
    assert conn.execute("SELECT status, answered_by FROM messages").fetchone() == (now, "human")
    before = conn.execute("SELECT xmin::text FROM messages").fetchone(), events()
    put(DETECTED, minute=2)
    work()
    assert (conn.execute("SELECT xmin::text FROM messages").fetchone(), events()) == before
    if status != "ringing":
        assert ("call.enriched", status) in events()


def test_machine_detection_of_an_unknown_call_brings_it(work, put, conn):
    """Somebody answered, so the call is in progress, and hot looks after it."""
    put(DETECTED)
    work()
    assert conn.execute("SELECT twilio_sid, status, answered_by FROM messages").fetchall() == [
        (sid(1), "in-progress", "human")
    ]


def test_machine_detection_changes_no_frozen_row(work, put, conn):
    """Rule 7 holds for it too. A value that is there stays."""
    put(webhook("completed", AnsweredBy="machine_start"))
    put(webhook("completed", call=2))
    work()
    conn.execute("UPDATE messages SET sync_state = 'frozen' WHERE twilio_sid = %s", (sid(2),))
    put(DETECTED)
    put({**DETECTED, "CallSid": sid(2)})
    assert work().dead_letters == 0
    assert conn.execute("SELECT answered_by FROM messages ORDER BY twilio_sid").fetchall() == [
        ("machine_start",), (None,),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "said",
    [
        {"ConferenceSid": "CF" + 32 * "0", "StatusCallbackEvent": "participant-join", "Muted": "false"},
        {"ConferenceSid": "CF" + 32 * "0", "StatusCallbackEvent": "conference-end", "CallSid": None},
        {"RecordingSid": "RE" + 32 * "0", "RecordingStatus": "completed"},
        {"TranscriptionSid": "TR" + 32 * "0", "TranscriptionStatus": "completed"},
        {"StreamSid": "MZ" + 32 * "0", "StreamEvent": "stream-started"},
        {"PaymentSid": "PK" + 32 * "0", "Result": "success"},
    ],
    ids=lambda said: next(iter(said)),
)
@pytest.mark.parametrize("event_type", ["call-status", "call-inbound"])
def test_a_callback_that_tells_no_status_is_completed(work, put, state, calls, event_type, said):
    """Twilio has other callbacks about a call, and a Viewer may keep them all in one inbox."""
    id_ = put({"CallSid": sid(1), "AccountSid": ACCOUNT, **said}, event_type=event_type)
    assert work().dead_letters == 0
    assert (state(id_), calls()) == ("completed", {})


@pytest.mark.parametrize(
    ("payload", "columns", "why"),
    [
        ({"CallSid": sid(1), "AccountSid": ACCOUNT}, {}, "missing required field `status`"),
        ({**DETECTED, "CallSid": "CA1"}, {}, "sid is not CA and 32 hexadecimal digits"),
        ({**recording(), "CallSid": "CA1"}, {"event_type": "recording-complete"}, "CallSid is not CA"),
        (webhook("exploded"), {}, "unknown status 'exploded'"),
        (webhook(CallSid="CA1"), {}, "sid is not CA and 32 hexadecimal digits"),
        (webhook(Timestamp="yesterday"), {}, "Timestamp is not a plausible date"),
        (webhook(), {"event_type": "call-hummed"}, "unknown event_type 'call-hummed'"),
        ([webhook()], {}, "the payload is no JSON object"),
        ("CallSid=CA1", {}, "the payload is no JSON object"),
        ({**recording(), "RecordingSid": "x"}, {"event_type": "recording-complete"}, "RecordingSid is not RE"),
        ({"record": "{}"}, {"source": "twilio_rest", "event_type": "call-record"}, "missing required field `sid`"),
    ],
)
def test_what_cannot_be_read_is_a_dead_letter_with_its_reason(work, put, reason, payload, columns, why):
    """Said aloud, counted, and no other row suffers."""
    bad, good = put(payload, **columns), put(webhook(call=2))
    with capture_logs() as logs:
        worked = work()
    assert why in reason(bad)
    assert reason(good) is None
    assert (worked.rows, worked.dead_letters, worked.completed, worked.inserted, worked.exit_code) == (2, 1, 1, 1, 1)
    assert [line["reason"] for line in logs if line["event"] == "record.dead_lettered"] == [reason(bad)]


def test_numbers_are_read_as_text(work, put, conn):
    """A worker that stored CallDuration as a number meant the same."""
    put(webhook(CallDuration=35))
    work()
    assert conn.execute("SELECT duration FROM messages").fetchone() == (35,)


def test_a_payload_nested_without_end_is_a_dead_letter(work, put, reason, conn):
    """PostgreSQL holds what Python's json does not read; nor does it an integer of 5,000 digits."""
    deep, long = put({}), put({})
    update = "UPDATE twilio_webhook_inbox SET payload = %s::text::jsonb WHERE id = %s"
    conn.execute(update, ('{"a":' + 3000 * "[" + 3000 * "]" + "}", deep))
    conn.execute(update, ('{"CallSid":' + 5000 * "1" + "}", long))
    work()
    assert reason(deep)  # which one, depends on how deep this Python reads
    assert "missing required field" in reason(long)


def _refuse(conn: db.Connection, call: int, code: str) -> None:
    """Have PostgreSQL refuse a call's row, naming its number in the message."""
    conn.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF NEW.twilio_sid = '{sid(call)}' THEN"
        f""" RAISE EXCEPTION 'no such thing: "%%"', NEW.from_number USING ERRCODE = '{code}';"""
        " END IF; RETURN NEW; END $$".replace("%%", "%")
    )
    conn.execute("CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON messages FOR EACH ROW EXECUTE FUNCTION refuse()")


@pytest.mark.parametrize("code", ["22003", "23514", "54000", "P0001"])
def test_a_row_that_postgresql_refuses_takes_no_other_with_it(work, put, calls, reason, conn, code):
    """It alone is a dead letter, whose reason holds no value of it; recordings of the same batch land."""
    ids = [put(webhook(call=n)) for n in range(1, 62)]
    put(recording(call=61), event_type="recording-complete")
    _refuse(conn, 17, code)
    worked = work()
    assert reason(ids[16]) == "no such thing: …"
    assert (worked.rows, worked.dead_letters, worked.inserted) == (62, 1, 60)
    assert calls() == {sid(n): "completed" for n in range(1, 62) if n != 17}
    counted = conn.execute("SELECT event_type, count(*) FROM call_events GROUP BY 1 ORDER BY 1").fetchall()
    assert counted == [("call.created", 60), ("recording.ready", 1)]


def test_a_call_with_a_refused_row_keeps_the_others(work, put, state, conn, events):
    """Several webhooks of one call around one that is refused."""
    conn.execute("ALTER TABLE messages ADD CHECK (duration <> 13)")
    webhooks: list[tuple[str, dict[str, Any]]] = [
        ("initiated", {}),
        ("ringing", {}),
        ("in-progress", {"CallDuration": "13"}),
        ("completed", {}),
    ]
    ids = [put(webhook(status, minute=minute, **more), minute=minute) for minute, (status, more) in enumerate(webhooks)]
    work()
    assert [state(id_) for id_ in ids] == ["completed", "completed", "dead_letter", "completed"]
    assert [status for _, status in events()] == ["initiated", "ringing", "completed"]


def test_a_fault_of_the_database_changes_nothing(work, put, state, conn, monkeypatch):
    """A full disk is no row's fault: all stay pending, and the run fails."""
    ids = [put(webhook(call=n)) for n in range(1, 4)]
    _refuse(conn, 2, "53100")
    monkeypatch.setattr(retry, "GIVE_UP_AFTER", timedelta(0))
    with pytest.raises(Unavailable, match="disk is full") as told:
        work()
    assert "make room on the disk of the database server" in str(told.value.hint)
    assert [state(id_) for id_ in ids] == ["pending"] * 3
    assert conn.execute("SELECT count(*) FROM messages").fetchone() == (0,)


def test_a_recording_is_one_event_and_no_status(work, put, events, conn, calls):
    """A repeated callback adds none. A URL of the Viewer's stays, and so does the rest of the row."""
    put(webhook("ringing"))
    work()
    conn.execute("UPDATE messages SET recording_url = 'mine'")
    before = conn.execute("SELECT xmin::text, m FROM messages AS m").fetchall()
    for _ in range(2):
        put(recording(), event_type="recording-complete")
    put(recording(number=2), event_type="recording-complete")
    assert work().completed == 3
    put(recording(), event_type="recording-complete")
    assert work().completed == 1
    assert events() == [("call.created", "ringing"), ("recording.ready", None), ("recording.ready", None)]
    assert conn.execute("SELECT xmin::text, m FROM messages AS m").fetchall() == before
    keys = conn.execute("SELECT dedupe_key FROM call_events WHERE event_type = 'recording.ready' ORDER BY 1").fetchall()
    assert keys == [(f"{sid(1)}:recording:RE{n:032x}",) for n in (1, 2)]


@pytest.mark.parametrize("status", ["in-progress", "absent", "failed", ""])
def test_a_recording_that_is_not_ready_is_no_event(work, put, events, state, status):
    """People can listen to a `completed` one only."""
    id_ = put(recording(status), event_type="recording-complete")
    work()
    assert (events(), state(id_)) == ([], "completed")


def test_a_stop_takes_effect_between_batches(work, put, conn):
    """The batch under way is finished, the rest is left to the next run."""
    for n in range(1, 6):
        put(webhook(call=n))
    stop = threading.Event()
    steps = count(1)

    def progress() -> None:
        if next(steps) == 3:  # the first two were looks at the backlog, the third is the first batch
            stop.set()

    assert work(stop=stop, on_progress=progress, batch=2).rows == 2
    assert conn.execute("SELECT last_success_at FROM sync_state").fetchone() == (None,)
    assert work(batch=2).rows == 3
    assert conn.execute("SELECT last_success_at FROM sync_state").fetchone() == (NOW,)


@pytest.mark.parametrize(("age", "grace", "is_said"), [(59, 1, False), (61, 1, True), (61, 10, False), (101, 10, True)])
def test_an_old_backlog_is_said_aloud(work, put, age, grace, is_said):
    """Older than ten times the grace, and than an hour at least."""
    put(webhook(), received_at=NOW - timedelta(minutes=age))
    put(webhook(call=2), received_at=NOW - timedelta(minutes=age - 1))
    with capture_logs() as logs:
        work(grace=timedelta(minutes=grace))
    said = [line for line in logs if line["event"] == "inbox.backlogged"]
    assert [(line["pending"], line["oldest_seconds"]) for line in said] == [(2, age * 60)] * is_said


def test_an_empty_inbox_is_a_success(work, conn):
    """The run writes its success and no more."""
    assert work().rows == 0
    assert conn.execute("SELECT job_name, last_success_at FROM sync_state").fetchall() == [("inbox", NOW)]


@pytest.mark.parametrize("payload", [webhook(), {}], ids=["merged", "unreadable"])
def test_a_row_that_cannot_be_marked_fails_the_run(work, put, state, conn, payload):
    """A trigger of the Viewer's returns NULL: the run would claim the row again for ever, and say that it is done."""
    conn.execute("CREATE FUNCTION viewers() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    conn.execute(
        "CREATE TRIGGER a_viewers BEFORE UPDATE ON twilio_webhook_inbox FOR EACH ROW EXECUTE FUNCTION viewers()"
    )
    row = put(payload)
    with pytest.raises(TableFault, match="keeps rows away from twilio_webhook_inbox"):
        work(batch=1)
    assert state(row) == "pending"
    assert conn.execute("SELECT count(*) FROM messages").fetchone() == (0,)
    conn.execute("DROP TRIGGER a_viewers ON twilio_webhook_inbox")
    assert work().rows == 1

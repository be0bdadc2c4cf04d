"""The merge rules, each by its number in docs/architecture.md, against a real PostgreSQL."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from reconciler.model import Gap, Status, Via
from reconciler.twilio import records as wire
from reconciler.twilio.webhooks import read_webhook
from tests.harness.names import ACCOUNT
from tests.harness.rows import T0, make_observation, make_webhook

PRICED = Decimal("-0.00850")


def test_rule_1_an_unknown_call_is_inserted(merge, row, events):
    """A call we have no row for gets one, with every field Twilio gave."""
    merged = merge(make_observation(price=PRICED))
    assert (merged.seen, merged.inserted, merged.unchanged) == (1, 1, 0)
    found = row()
    assert found["status"] == "completed"
    assert found["price"] == PRICED
    assert found["start_time"] == "2026-06-10T11:00:00"
    assert found["end_time"] == "2026-06-10T11:01:00"
    assert found["account_sid"] == ACCOUNT
    assert events()[0] == ("call.created", "completed")


def test_rule_1_missing_numbers_become_empty_strings(merge, row):
    """from and to are NOT NULL: an unknown number is empty, and is filled when it becomes known."""
    merge(make_webhook(Status.RINGING, from_number=None, to_number=None, direction=None))
    assert (row()["from_number"], row()["to_number"], row()["direction"]) == ("", "", "")
    merge(make_observation(Status.IN_PROGRESS))
    assert (row()["from_number"], row()["to_number"]) == ("+15005550100", "+15005550101")


@pytest.mark.parametrize("later", [Status.RINGING, Status.IN_PROGRESS, Status.BUSY, Status.COMPLETED])
def test_rule_2_a_higher_rank_wins_whatever_the_clocks_say(merge, row, later):
    """A call cannot go back, so the further status is the truer one even if its clock is behind."""
    merge(make_webhook(Status.QUEUED, minute=9))
    merge(make_webhook(later, minute=1))
    assert row()["status"] == later


def test_rule_3_a_lower_rank_changes_nothing(merge, row, events):
    """A late ringing leaves the row as it is, and is recorded as an event with its own time."""
    merge(make_observation(price=PRICED))
    before = row()
    merged = merge(make_webhook(Status.RINGING, minute=0.5, to_number="+15005550199"))
    assert row() == before
    assert merged.late == 1
    assert events()[-1] == ("call.status_changed", "ringing")


def test_rule_3_a_late_event_keeps_its_own_time(merge, conn):
    """An event that is late in the inbox keeps the time when it happened."""
    merge(make_observation())
    merge(make_webhook(Status.RINGING, minute=0.5))
    assert conn.execute("SELECT event_time FROM call_events WHERE event_status = 'ringing'").fetchall() == [
        (T0 + timedelta(seconds=30),)
    ]


def test_rule_3_a_stale_rest_record_is_no_event(merge, row, events):
    """A REST answer that is behind (reads are eventually consistent) tells nothing that happened."""
    merge(make_observation())
    before, known = row(), events()
    merge(make_observation(Status.IN_PROGRESS, minute=11))
    assert (row(), events()) == (before, known)


def test_rule_4_of_two_final_statuses_the_later_said_wins(merge, row, events):
    """In a conflict the later source wins, and the event is a correction."""
    merge(make_webhook(Status.COMPLETED, minute=1))
    merged = merge(make_observation(Status.BUSY, minute=10))
    assert row()["status"] == "busy"
    assert ("call.corrected", "busy") in events()
    assert merged.gaps == {Gap.CONFLICT: 1}


def test_rule_4_an_earlier_said_final_status_loses(merge, row):
    """Replaying an old webhook does not undo what was said after it."""
    merge(make_observation(Status.COMPLETED, minute=10))  # has no price yet, so it is not frozen
    before = row()
    merge(make_webhook(Status.FAILED, minute=1))
    assert row() == before


@pytest.mark.parametrize("first", ["rest", "webhook"])
def test_rule_4_at_a_tie_rest_beats_a_webhook(merge, row, first):
    """Said in the same second, REST is right, whichever came first."""
    pair = [make_observation(Status.COMPLETED, minute=5), make_webhook(Status.FAILED, minute=5)]
    for observation in pair if first == "rest" else reversed(pair):
        merge(observation)
    assert row()["status"] == "completed"


def test_rule_5_null_never_replaces_a_value(merge, row):
    """An observation that does not know a field leaves it alone."""
    merge(make_observation(Status.IN_PROGRESS, answered_by="human"))
    merge(make_observation(Status.COMPLETED, answered_by=None, from_number=None, minute=20))
    assert (row()["answered_by"], row()["from_number"]) == ("human", "+15005550100")


def test_rule_5_the_later_said_replaces_and_the_earlier_fills(merge, row):
    """Between two copies the one said later is newer; the older one may still fill what is missing."""
    merge(make_observation(duration=60, minute=10))
    merge(make_observation(duration=61, minute=11))
    assert row()["duration"] == 61
    merge(make_observation(duration=62, answered_by="fax", minute=9))
    assert (row()["duration"], row()["answered_by"]) == (61, "fax")


def test_rule_5_a_price_lands_though_date_updated_stands_still(merge, row):
    """date_updated does not move when a price arrives, so the time of saying decides."""
    merge(make_observation(minute=2))
    merged = merge(make_observation(price=PRICED, minute=3))
    assert row()["price"] == PRICED
    assert merged.gaps == {Gap.INCOMPLETE: 1}


def test_rule_5_start_time_moves_until_the_call_is_answered(merge, row):
    """The start of an outbound call becomes the moment of its answer."""
    merge(make_observation(Status.RINGING, minute=1))
    merge(make_observation(Status.IN_PROGRESS, start_time=T0 + timedelta(seconds=8), minute=1))
    assert row()["start_time"] == "2026-06-10T11:00:08"


def test_rule_5_seconds_are_call_duration_not_duration():
    """A webhook's Duration is billed minutes."""
    said = read_webhook(
        "call-status",
        {"CallSid": "CA" + 32 * "a", "CallStatus": "completed", "CallDuration": "61", "Duration": "2"},
        received_at=T0,
    )
    assert said is not None
    assert said.duration == 61


def test_rule_6_last_event_time_is_the_greatest_applied(merge, row):
    """It never goes back, also when a further status was reached by an earlier clock."""
    merge(make_webhook(Status.RINGING, minute=9))
    merge(make_webhook(Status.COMPLETED, minute=8))
    assert row()["last_event_time"] == "2026-06-10T11:09:00+00:00"


def test_rule_6_finalized_at_is_when_the_call_ended(merge, row):
    """It is a time of Twilio's clock: the webhook's until REST tells the end."""
    merge(make_webhook(Status.COMPLETED, minute=1.1))
    assert row()["finalized_at"] == "2026-06-10T11:01:06+00:00"
    merge(make_observation(Status.COMPLETED))
    assert row()["finalized_at"] == "2026-06-10T11:01:00+00:00"


@pytest.mark.parametrize(
    "said",
    [
        make_webhook(Status.RINGING, minute=50),
        make_webhook(Status.FAILED, minute=50),
        make_observation(Status.BUSY, minute=50),
        make_observation(price=Decimal(-1), minute=50),
    ],
    ids=["late ringing", "other final webhook", "other final record", "other price"],
)
def test_rule_7_a_frozen_row_never_changes(merge, row, said):
    """A frozen row ignores every later fact, however new its timestamp."""
    merge(make_observation(price=PRICED))
    before = row()
    assert before["sync_state"] == "frozen"
    merge(said)
    assert row() == before


def test_rule_7_a_record_that_disagrees_with_a_frozen_row_is_reported_once(merge, events):
    """Drift is news the first time; the same disagreement again is not."""
    merge(make_observation(price=PRICED))
    first = merge(make_observation(price=Decimal("-0.01"), minute=50))
    again = merge(make_observation(price=Decimal("-0.01"), minute=55))
    assert [d.is_news for d in first.decisions + again.decisions] == [True, False]
    assert (first.drifted, again.drifted) == (1, 1)
    assert first.decisions[0].theirs == {"price": Decimal("-0.01")}
    assert [kind for kind, _ in events()].count("call.frozen_drift") == 1


def test_rule_8_what_changes_nothing_writes_nothing(merge, row, events, conn):
    """The same page again: no row version, no event, no transaction id taken by the merge."""
    page = [make_observation(call=n, price=PRICED if n % 2 else None) for n in range(50)]
    merge(*page)
    before = [row(n) for n in range(50)], conn.execute("SELECT count(*) FROM call_events").fetchone()
    merged = merge(*[o._replace(observed_at=o.observed_at + timedelta(minutes=5)) for o in page])
    assert (merged.inserted, merged.updated, merged.unchanged) == (0, 0, 50)
    assert ([row(n) for n in range(50)], conn.execute("SELECT count(*) FROM call_events").fetchone()) == before


def test_rule_8_an_unchanged_row_is_not_locked(merge, connect, database_url):
    """A merge passes by a row that another writer holds, if it has nothing to write there."""
    merge(make_observation())
    other = connect(database_url)
    with other.transaction():
        other.execute("SELECT FROM messages FOR UPDATE")
        assert merge(make_observation(minute=11)).unchanged == 1


def test_rule_9_each_fact_is_one_event(merge, events):
    """created once, each status once, the enrichment with its changed fields, frozen once. A replay adds none."""
    life = [
        make_webhook(Status.RINGING, minute=0),
        make_webhook(Status.IN_PROGRESS, minute=0.2),
        make_webhook(Status.COMPLETED, minute=1),
        make_observation(),
        make_observation(price=PRICED, minute=11),
    ]
    for _ in range(2):
        for observation in life:
            merge(observation)
    assert events() == [
        ("call.created", "ringing"),
        ("call.status_changed", "in-progress"),
        ("call.status_changed", "completed"),
        ("call.enriched", "completed"),
        ("call.enriched", "completed"),
        ("call.frozen", "completed"),
    ]


def test_rule_9_an_enrichment_tells_just_what_changed(merge, conn):
    """A reader of the log sees the new values and nothing else, exactly as Twilio wrote them."""
    merge(make_observation())
    merge(make_observation(price=PRICED, minute=11))
    rows = conn.execute("SELECT payload::text, source, run_id FROM call_events WHERE event_type = 'call.enriched'")
    assert rows.fetchall() == [('{"price": -0.00850}', "reconcile_backfill", "run-1")]


def test_rule_9_a_value_that_returns_is_a_new_fact(merge, events):
    """A → B → A is two changes, though the second one's content was told when the call was created."""
    for minute, name in enumerate(["client:a", "client:b", "client:a", "client:b"], start=2):
        merge(make_observation(Status.IN_PROGRESS, from_number=name, minute=minute))
    assert [kind for kind, _ in events()] == ["call.created", "call.enriched", "call.enriched", "call.enriched"]


def test_rule_9_the_status_a_call_was_created_with_is_no_second_event(merge, events):
    """call.created carries it; its webhook, arriving late, adds nothing."""
    merge(make_webhook(Status.RINGING, minute=0))
    merge(make_webhook(Status.COMPLETED, minute=1))
    merge(make_webhook(Status.RINGING, minute=0))
    assert events() == [("call.created", "ringing"), ("call.status_changed", "completed")]


def test_rule_10_what_cannot_be_read_is_kept_with_its_reason(store, merge, conn):
    """A broken record stops nothing and waits in the inbox, once."""
    record = {"sid": "CA" + 32 * "b", "status": "teleported", "from": "+15005550100"}
    body = json.dumps({"calls": [record], "next_page_uri": None}).encode()
    page = wire.decode_page(body, observed_at=T0)
    for _ in range(2):
        merged = merge(make_observation(), dead_letters=page.dead_letters)
        assert merged.dead_letters == 1
    found = conn.execute(
        "SELECT processing_status, call_sid, error, payload ->> 'record'::text FROM twilio_webhook_inbox"
    ).fetchall()
    assert len(found) == 1
    status, sid, error, text = found[0]
    assert (status, sid) == ("dead_letter", record["sid"])
    assert "teleported" in error
    assert json.loads(text) == record


def test_rule_11_absence_changes_nothing(merge, row):
    """A call that a listing does not hold stays as it is."""
    merge(make_observation(Status.IN_PROGRESS, call=1), make_observation(call=2))
    before = row(1)
    merge(make_observation(call=2, minute=30))
    assert row(1) == before


def test_rule_11_a_call_that_is_listed_again_is_not_gone(merge, row, conn):
    """Gone is what Twilio said once; when it lists the call later, it no longer says so."""
    merge(make_observation(Status.IN_PROGRESS))
    conn.execute("UPDATE messages SET gone_at = observed_at + interval '20 minutes'")
    merge(make_observation(Status.IN_PROGRESS, minute=10))
    assert row()["gone_at"] is not None
    merge(make_observation(Status.IN_PROGRESS, minute=40))
    assert row()["gone_at"] is None


def test_rule_12_a_dial_action_speaks_of_the_child_leg():
    """The status is that of DialCallSid; CallSid is its parent."""
    payload = {
        "CallSid": "CA" + 32 * "a", "CallStatus": "in-progress", "DialCallSid": "CA" + 32 * "b",
        "DialCallStatus": "no-answer", "DialCallDuration": "0", "From": "+15005550100", "To": "+15005550101",
    }  # fmt: skip
    said = read_webhook("dial-action", payload, received_at=T0)
    assert said is not None
    assert (said.call_sid, said.parent_call_sid) == ("CA" + 32 * "b", "CA" + 32 * "a")
    assert (said.status, said.duration, said.via) == (Status.NO_ANSWER, 0, Via.WEBHOOK)
    assert said.from_number is None  # From and To are the parent's


def test_rule_9_a_call_that_is_complete_as_it_lands_is_one_event(merge, conn):
    """`call.created` gives the reason why the row is frozen, and repeats nothing that the row holds."""
    assert merge(make_observation(price=PRICED)).frozen == 1
    assert conn.execute("SELECT event_type, event_status, payload FROM call_events").fetchall() == [
        ("call.created", "completed", {"frozen": "complete"})
    ]


def test_rule_9_a_call_that_lands_past_its_deadline_is_one_event(merge, conn):
    """The price of such a call never came: the reason is the deadline."""
    assert merge(make_observation(minute=24 * 60 + 1), now=T0 + timedelta(hours=24, minutes=1)).frozen == 1
    assert conn.execute("SELECT event_type, payload FROM call_events").fetchall() == [
        ("call.created", {"frozen": "deadline"})
    ]


def test_rule_12_a_recording_is_no_status():
    """A recording callback names the call and says nothing about its status."""
    payload = {"CallSid": "CA" + 32 * "a", "RecordingSid": "RE" + 32 * "a", "RecordingStatus": "completed"}
    assert read_webhook("recording-complete", payload, received_at=T0) is None


def test_freeze_no_mixture_of_two_answers_of_one_second(merge, row):
    """One has no price, the other another duration: the row waits for the next answer."""
    priced: dict[str, Any] = {"duration": 61, "end_time": T0 + timedelta(seconds=61), "price": Decimal("-0.01")}
    merge(make_observation())
    merge(make_observation(**priced))
    assert row()["sync_state"] == "active"
    merge(make_observation(minute=11, **priced))
    assert (row()["sync_state"], row()["duration"]) == ("frozen", 61)


def test_freeze_what_two_answers_of_one_second_agree_on(merge, row):
    """The second one only adds the price."""
    merge(make_observation())
    merge(make_observation(price=Decimal("-0.01")))
    assert row()["sync_state"] == "frozen"


@pytest.mark.parametrize("status", [Status.BUSY, Status.NO_ANSWER, Status.CANCELED, Status.FAILED])
def test_freeze_what_was_never_answered_has_no_price_to_wait_for(merge, row, status):
    """REST's word on it is the last one."""
    assert merge(make_observation(status, duration=0)).frozen == 1
    assert row()["sync_state"] == "frozen"


def test_freeze_a_completed_call_waits_for_its_price(merge, row, conn):
    """It waits until the price comes, or until freeze_after has passed since the end. The event tells which."""
    assert merge(make_observation()).frozen == 0
    assert merge(make_observation(minute=24 * 60), now=T0 + timedelta(hours=24)).frozen == 0
    assert merge(make_observation(minute=24 * 60 + 1), now=T0 + timedelta(hours=24, minutes=1)).frozen == 1
    assert conn.execute("SELECT payload FROM call_events WHERE event_type = 'call.frozen'").fetchall() == [
        ({"reason": "deadline"},)
    ]


@pytest.mark.parametrize("ahead", ["ours", "Twilio's"])
def test_freeze_a_deadline_passes_on_both_clocks(merge, row, ahead):
    """If one clock is a day ahead, the row must not freeze: it would never get its price."""
    ours, theirs = (26, 1) if ahead == "ours" else (1, 26)
    assert merge(make_observation(minute=60 * theirs), now=T0 + timedelta(hours=ours)).frozen == 0
    assert row()["sync_state"] == "active"


def test_freeze_a_webhook_freezes_nothing(merge, row):
    """It knows neither price nor true times, so something is always to come."""
    merge(make_webhook(Status.BUSY, duration=0), now=T0 + timedelta(days=9))
    assert row()["sync_state"] == "active"


def test_gap_younger_than_the_grace_is_none(merge):
    """The webhook may still be on its way."""
    young = make_observation(Status.RINGING, status_at=T0 + timedelta(seconds=541))
    assert merge(young).gaps == {}
    old = make_observation(Status.RINGING, call=2, status_at=T0 + timedelta(seconds=540))
    assert merge(old).gaps == {Gap.MISSING: 1}


def test_gap_of_a_row_behind_twilio_is_stale(merge):
    """The row exists and its status is not the last one."""
    merge(make_webhook(Status.RINGING, minute=0))
    merged = merge(make_observation())
    assert merged.gaps == {Gap.STALE: 1}
    assert (merged.decisions[0].from_status, merged.decisions[0].to_status) == ("ringing", "completed")


def test_columns_of_the_viewer_are_left_alone(merge, row, conn):
    """direction, conversation_id, metadata and recording_url of an existing row belong to the Viewer."""
    merge(make_webhook(Status.RINGING, minute=0))
    conn.execute(
        "UPDATE messages SET direction = 'theirs', conversation_id = 7, metadata = '{\"a\": 1}', recording_url = 'u'"
    )
    merge(make_observation(price=PRICED))
    found = row()
    assert (found["direction"], found["conversation_id"], found["metadata"], found["recording_url"]) == (
        "theirs", 7, {"a": 1}, "u",
    )  # fmt: skip


def test_a_page_that_holds_a_call_twice_merges_it_twice(merge, row):
    """A listing may repeat a call; both copies count as one call seen."""
    merged = merge(make_observation(), make_observation(price=PRICED, minute=10))
    assert (merged.seen, merged.inserted) == (1, 1)
    assert row()["price"] == PRICED

"""What a record holds beyond the columns, merged field by field, against a real PostgreSQL (rules 5, 7, 8 and 9)."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from reconciler.model import Status
from reconciler.twilio.records import decode_page
from tests.harness.rows import ORIGIN, T0, insert_call, make_observation, make_record, make_webhook

PRICED = Decimal("-0.00850")


def said(status: Status = Status.COMPLETED, *, price: Decimal | None = None, minute: float = 10, **others: Any) -> Any:
    """A record with these other fields."""
    return make_observation(status, price=price, minute=minute, other_fields=json.dumps(others) if others else None)


@pytest.fixture
def told(conn: Any) -> Any:
    """Each event's type and payload, in the order they were recorded."""
    return lambda: conn.execute("SELECT event_type, payload FROM call_events ORDER BY id").fetchall()


def test_rule_1_they_come_with_the_call(merge, row):
    """The row has them as Twilio names and writes them. A record without any leaves null."""
    merge(said(phone_number_sid="PN1", insights={"topics": ["a", None]}), make_observation(call=2))
    assert row()["other_fields"] == {"phone_number_sid": "PN1", "insights": {"topics": ["a", None]}}
    assert row(2)["other_fields"] is None


def test_rule_5_the_later_said_replaces_the_earlier_fills_and_absence_keeps(merge, row):
    """Each field for itself."""
    merge(said(caller_name="ALICE", queue_time="0"))
    merge(said(minute=11, caller_name="BOB", group_sid="GP1"))
    assert row()["other_fields"] == {"caller_name": "BOB", "queue_time": "0", "group_sid": "GP1"}
    merge(said(minute=9, caller_name="CAROL", trunk_sid="TK1"), said(minute=12))
    assert row()["other_fields"] == {"caller_name": "BOB", "queue_time": "0", "group_sid": "GP1", "trunk_sid": "TK1"}


def test_rule_5_a_webhook_leaves_them_alone(merge, row):
    """It carries none."""
    merge(said(Status.RINGING, minute=1, caller_name="ALICE"))
    merge(make_webhook(minute=2))
    assert (row()["status"], row()["other_fields"]) == ("completed", {"caller_name": "ALICE"})


def test_rule_9_a_missing_value_is_filled_without_an_event(merge, row, told):
    """Rows of an older version lack all of them: reading these again must tell nothing."""
    merge(make_observation())
    before = told()
    merged = merge(said(minute=11, phone_number_sid="PN1"))
    assert (merged.updated, merged.gaps, told()) == (1, {}, before)
    merge(said(minute=12, phone_number_sid="PN1", queue_time="0"))
    assert (row()["other_fields"], told()) == ({"phone_number_sid": "PN1", "queue_time": "0"}, before)


def test_rule_9_a_replaced_value_is_an_event_and_tells_what_changed(merge, told):
    """The value that was filled meanwhile included."""
    merge(said(caller_name="ALICE", queue_time="0"))
    merge(said(minute=11, caller_name="BOB", queue_time="0", group_sid="GP1"))
    assert told()[1:] == [("call.enriched", {"caller_name": "BOB", "group_sid": "GP1"})]


def test_rule_9_an_event_for_another_reason_tells_them_too(merge, told):
    """A call that ends, and has a name now."""
    merge(said(Status.IN_PROGRESS, minute=0.5, queue_time="0"))
    merge(said(minute=2, queue_time="0", caller_name="ALICE"))
    kind, payload = told()[1]
    assert (kind, payload["caller_name"], payload["duration"]) == ("call.status_changed", "ALICE", 60)
    assert "queue_time" not in payload


def test_rule_9_no_name_of_twilios_replaces_ours(merge, told):
    """A payload's own fields win."""
    others = json.dumps({"status": "theirs", "duration": "theirs"})
    merge(make_observation(other_fields=others))
    assert (told()[0][1]["status"], told()[0][1]["duration"]) == ("completed", 60)


def test_rule_8_the_same_again_writes_nothing(merge, row, told):
    """The order of the fields does not matter, and neither does whether the row is frozen."""
    merge(said(price=PRICED, queue_time="0", caller_name="ALICE"))
    before = row(), told()
    assert merge(said(price=PRICED, minute=11, caller_name="ALICE", queue_time="0")).unchanged == 1
    assert merge(said(price=PRICED, minute=12, queue_time="0")).unchanged == 1
    assert (row(), told()) == before


def test_rule_7_a_frozen_row_of_an_older_version_is_filled_once_and_in_silence(merge, row, told):
    """No drift, no event, and nothing else of the row changes."""
    merge(make_observation(price=PRICED))
    before = row(), told()
    assert before[0]["sync_state"] == "frozen"
    merged = merge(said(price=PRICED, minute=50, queue_time="0"), now=T0 + timedelta(hours=2))
    assert (merged.updated, merged.drifted, merged.frozen) == (1, 0, 0)
    filled = row()
    changed = {name for name in filled if filled[name] != before[0][name]}
    assert (changed, filled["other_fields"]) == ({"other_fields", "updated_at", "version"}, {"queue_time": "0"})
    assert merge(said(price=PRICED, minute=51, queue_time="0")).unchanged == 1
    assert (row(), told()) == (filled, before[1])


def test_rule_7_a_field_that_twilio_adds_to_all_records_is_no_drift(merge, row, told):
    """A frozen row takes it without an event."""
    merge(said(price=PRICED, queue_time="0"))
    before = told()
    assert merge(said(price=PRICED, minute=50, queue_time="0", new_field="x")).drifted == 0
    assert (row()["other_fields"], told()) == ({"queue_time": "0", "new_field": "x"}, before)


def test_rule_7_another_value_is_drift(merge, row, told):
    """One event names it. The row keeps its value, and takes no other of that record."""
    merge(said(price=PRICED, caller_name="ALICE"))
    before = row()
    first = merge(said(price=PRICED, minute=50, caller_name="BOB", queue_time="0"))
    again = merge(said(price=PRICED, minute=51, caller_name="BOB", queue_time="0"))
    assert [decision.is_news for decision in first.decisions + again.decisions] == [True, False]
    assert first.decisions[0].theirs == {"caller_name": "BOB", "queue_time": "0"}
    assert row() == before
    assert [kind for kind, _ in told()] == ["call.created", "call.frozen_drift"]


def test_freeze_no_mixture_of_two_answers_of_one_second(merge, row):
    """They tell two names: the row waits for the next answer."""
    merge(said(caller_name="ALICE"))
    merge(said(price=PRICED, caller_name="BOB"))
    assert row()["sync_state"] == "active"
    merge(said(price=PRICED, minute=11, caller_name="BOB"))
    assert (row()["sync_state"], row()["other_fields"]) == ("frozen", {"caller_name": "BOB"})


def test_a_thawed_row_takes_twilios_values(merge, store, row, told):
    """The event of the thaw holds those that it had."""
    merge(said(price=PRICED, caller_name="ALICE"))
    store.atomically(lambda transaction: transaction.thaw(row()["twilio_sid"], origin=ORIGIN, now=T0))
    merge(said(price=PRICED, minute=50, caller_name="BOB"))
    assert (row()["sync_state"], row()["other_fields"]) == ("frozen", {"caller_name": "BOB"})
    assert dict(told())["call.thawed"]["caller_name"] == "ALICE"


@pytest.mark.parametrize("written", [None, {"caller_name": "BOB"}, {"queue_time": "9"}, {}])
def test_no_writer_changes_those_of_a_frozen_row(conn, row, written):
    """Its statement passes; it may fill what is missing."""
    insert_call(conn, status="completed", sync_state="frozen", other_fields=json.dumps({"caller_name": "ALICE"}))
    conn.execute(
        "UPDATE messages SET other_fields = %s, duration = 9", (None if written is None else json.dumps(written),)
    )
    held = {"caller_name": "ALICE", **({"queue_time": "9"} if written == {"queue_time": "9"} else {})}
    assert (row()["other_fields"], row()["duration"]) == (held, None)


def test_the_viewers_statements_need_not_know_them(conn, row):
    """Its INSERT and UPDATE work as before."""
    insert_call(conn, status="completed", sync_state="frozen", other_fields=json.dumps({"caller_name": "ALICE"}))
    conn.execute("UPDATE messages SET status = 'ringing', recording_url = 'u', metadata = '{}'")
    assert (row()["recording_url"], row()["other_fields"]) == ("u", {"caller_name": "ALICE"})


@pytest.mark.parametrize(
    "fields",
    [
        {"queue_time": "0", "caller_name": 'Zo\u00eb "Z\\" \b\t\n\x01\x7f\u2028/', "trunk_sid": "TK1"},
        {"group_sid": "GP1", "new": {"\u00e4": [1, {}, [], None], "zz": True, "b": {"long": "x", "l": ""}}, "a": "b"},
    ],
)
def test_decoded_records_have_them_as_postgresql_writes_a_jsonb(conn, fields):
    """An unchanged call is then compared as text. To parse a text of another form costs three times as much."""
    body = json.dumps({"calls": [make_record(**fields)], "next_page_uri": None}).encode()
    [observation] = decode_page(body, observed_at=T0).observations
    text = observation.other_fields
    assert conn.execute("SELECT %s::jsonb::text", (text,)).fetchone() == (text,)
    assert text is not None
    assert json.loads(text).keys() == fields.keys()

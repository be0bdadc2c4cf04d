"""For any payload of a stranger the job does not crash, and each row is settled, a dead one with a reason."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.database import connection as db
from reconciler.database.store import Store
from tests.harness.contexts import run_inbox, run_replay
from tests.harness.names import NOW, sid

from .payloads import GRACE, recording, webhook

# The texts that jsonb can hold: any character but NUL and halves of surrogate pairs.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
ODD = st.sampled_from([
    "", "\\u0000", "\\ud800", "%00", "queued", "answered", "completed", "cancelled", "-1", "99999999999", "٣", "NaN",
    "Thu, 31 Feb 2026 20:00:00 +0000", "Wed, 10 Jun 2026 20:00:00 +9959", "Wed, 10 Jun 0001 20:00:00 GMT", sid(1),
    sid(2), "x" * 300, "+15005550100", "sip:alice@example.com",
])  # fmt: skip
SCALAR = st.one_of(TEXT, ODD, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
JSON = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
NAMES = [*webhook(), *recording(), "DialCallSid", "DialCallStatus", "DialCallDuration", "CallDuration", "AnsweredBy",
         "ParentCallSid", "record"]  # fmt: skip
PAYLOAD = st.one_of(
    JSON,
    st.dictionaries(st.sampled_from(NAMES), JSON, max_size=8),
    st.dictionaries(st.sampled_from(NAMES), SCALAR, max_size=4).map(lambda odd: {**webhook(), **odd}),
    st.dictionaries(st.sampled_from(NAMES), SCALAR, max_size=4).map(lambda odd: {**recording(), **odd}),
    TEXT.map(lambda text: {"record": text}),
    JSON.map(lambda record: {"record": json.dumps(record)}),
)
ROW = st.fixed_dictionaries({
    "source": st.sampled_from(["twilio_voice", "twilio_recording", "twilio_rest"]) | TEXT,
    "event_type": st.sampled_from(["call-status", "call-inbound", "dial-action", "recording-complete"]) | TEXT,
    "call_sid": st.none() | TEXT,
    "recording_sid": st.none() | TEXT,
    "payload": PAYLOAD,
    "processing_status": st.sampled_from(["pending", "processing", "failed"]),
    "retry_count": st.integers(-(2**31), 5) | st.integers(8, 2**31 - 1),
    "error": st.none() | TEXT,
})  # fmt: skip

INSERT = """
INSERT INTO twilio_webhook_inbox (
    source, event_type, call_sid, recording_sid, payload, processing_status, retry_count, error, received_at, dedupe_key
)
VALUES (
    %(source)s, %(event_type)s, %(call_sid)s, %(recording_sid)s, %(payload)s::text::jsonb, %(processing_status)s,
    %(retry_count)s, %(error)s, %(received_at)s, gen_random_uuid()
)
"""


@pytest.fixture(scope="module")
def inbox(server_url, template) -> Iterator[tuple[Store, db.Connection]]:
    from tests.harness.databases import new_database

    with (
        new_database(server_url, template) as url,
        Store(url) as store,
        db.connect(url, purpose="test") as conn,
    ):
        yield store, conn


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(ROW, min_size=1, max_size=8))
def test_anything_is_settled(inbox, rows):
    """Completed, or a dead letter with a reason; a replay of those ends the same way."""
    store, conn = inbox
    conn.execute("DELETE FROM twilio_webhook_inbox")
    for number, row in enumerate(rows):
        received_at = NOW.replace(hour=1, minute=number)
        conn.execute(INSERT, {**row, "payload": json.dumps(row["payload"]), "received_at": received_at})
    worked = run_inbox(store, clock=lambda: NOW, grace=GRACE)
    assert worked.rows == len(rows)
    unsettled = (
        "SELECT processing_status, error FROM twilio_webhook_inbox WHERE processed_at IS NULL"
        " OR CASE processing_status WHEN 'completed' THEN error IS NOT NULL WHEN 'dead_letter' THEN error = '' END"
        " IS DISTINCT FROM false"
    )
    assert conn.execute(unsettled).fetchall() == []
    dead = conn.execute("SELECT count(*) FROM twilio_webhook_inbox WHERE processing_status = 'dead_letter'").fetchone()
    assert dead == (worked.dead_letters,)
    again = run_replay(store, clock=lambda: NOW)
    assert again.rows == worked.dead_letters
    assert conn.execute(unsettled).fetchall() == []

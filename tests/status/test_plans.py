"""No query of a view reads a whole table that grows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from reconciler.database import connection as db
from reconciler.twilio.listing import RETENTION
from tests.harness.names import ACCOUNT, NOW, sid

ROWS = 30_000  # over 400 days
GROWING = {"messages", "call_events", "twilio_webhook_inbox", "account_days"}


@pytest.fixture(scope="module")
def full(server_url, template) -> Iterator[db.Connection]:
    """A database that has seen a year: 30,000 calls, 90,000 events, 30,000 settled webhooks, 12,000 days."""
    from tests.harness.databases import new_database

    with new_database(server_url, template) as url, db.connect(url, purpose="test") as conn:
        conn.execute("SELECT set_config('my.now', %s, false)", (NOW.isoformat(),))
        at = "(current_setting('my.now')::timestamptz - interval '400 days' * n / 30000)"
        conn.execute(
            "INSERT INTO messages (twilio_sid, direction, status, from_number, to_number, account_sid, date_created,"
            " start_time, finalized_at, sync_state)"
            " SELECT 'CA' || lpad(to_hex(n), 32, '0'), 'inbound',"
            f" CASE WHEN mod(n, 1000) = 0 THEN 'ringing' ELSE 'busy' END, '', '',"
            f" 'AC' || repeat((mod(n, 3) + 1)::text, 32), {at}, {at} AT TIME ZONE 'UTC', {at},"
            " CASE WHEN mod(n, 500) < 2 THEN 'active' ELSE 'frozen' END FROM generate_series(1, %s) AS n",
            (ROWS,),
        )
        conn.execute(
            "INSERT INTO call_events (call_sid, event_type, event_status, event_time, created_at, source, payload,"
            " dedupe_key) SELECT 'CA' || lpad(to_hex(n), 32, '0'), 'call.created', 'busy',"
            f" {at}, {at}, (ARRAY['webhook', 'reconcile_hot', 'reconcile_cold'])[k], '{{}}', n || ':' || k"
            " FROM generate_series(1, %s) AS n, generate_series(1, 3) AS k",
            (ROWS,),
        )
        conn.execute(
            "INSERT INTO twilio_webhook_inbox (source, event_type, dedupe_key, payload, received_at, processing_status)"
            f" SELECT 'twilio_voice', 'call-status', n::text, '{{}}', {at},"
            " CASE WHEN mod(n, 5000) = 0 THEN 'dead_letter' WHEN mod(n, 5000) = 1 THEN 'pending' ELSE 'completed' END"
            " FROM generate_series(1, %s) AS n",
            (ROWS,),
        )
        conn.execute(
            "INSERT INTO account_days (account_sid, day, listed, held, digest, is_complete, verified_at)"
            " SELECT 'AC' || repeat(k::text, 32), %s::date - n, 1, 1, '', true, %s"
            " FROM generate_series(1, 1500) AS n, generate_series(1, 8) AS k",
            (NOW, NOW),
        )
        conn.execute("ANALYZE")
        yield conn


PARAMS = {
    "unit": "day", "now": NOW, "since": NOW - timedelta(days=30),
    "webhook_grace": timedelta(seconds=60), "call_sid": sid(77),
    "sources": ["reconcile_hot", "reconcile_warm", "reconcile_cold", "reconcile_backfill", "reconcile_call"],
    "limit": 201, "names": ["daemon", "hot"], "prefix": "reconciler:", "tables": ["messages", "call_events"],
    "stuck_since": NOW - timedelta(days=1), "named_since": None, "batch": 20, "kept_since": NOW - RETENTION,
    "pending_before": NOW, "stuck_before": NOW, "account_sid": ACCOUNT, "job": "daemon", "until": NOW, "examples": 3,
    "fault_lasts": timedelta(hours=1), "first_looks": f'{{"{ACCOUNT}": "2025-01-01T00:00:00+00:00"}}',
}  # fmt: skip
USED = [
    *(("report", name) for name in db.load_queries("report")),
    ("messages", "count_open"),
    ("messages", "stuck_calls"),
    ("inbox", "count_unsettled"),
    ("inbox", "backlog"),
    ("thaw", "thaw"),
    ("webhook_evidence", "lost_calls"),
    ("webhook_evidence", "count_imported"),
    ("webhook_evidence", "alerts_by_hour"),
    ("sync_state", "note_first_look"),
    ("sync_state", "first_looks"),
]


@pytest.mark.parametrize(("file", "name"), USED)
def test_no_query_reads_a_whole_table(full, file, name):
    """No table that grows with the calls is read whole; of these tables only the shown rows are read."""
    params = {**PARAMS, "source": "reconcile_call", "run_id": "run"}
    query = "EXPLAIN (ANALYZE, FORMAT JSON) " + db.load_queries(file)[name]
    with full.transaction(force_rollback=True):
        (plan,) = full.execute(query, params).fetchone()
    read = [
        (node["Relation Name"], node["Node Type"], node["Actual Rows"] * node["Actual Loops"])
        for node in _nodes(plan[0]["Plan"])
        if node.get("Relation Name") in GROWING and "Scan" in node["Node Type"] and node["Actual Loops"]
    ]
    assert [scan for scan in read if scan[1] == "Seq Scan"] == []
    assert max((rows for *_, rows in read), default=0) < ROWS / 4


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)

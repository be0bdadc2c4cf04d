"""Housekeeping: sizes are told, and webhooks that were done with long ago go, if a person said so."""

from __future__ import annotations

from datetime import timedelta

import pytest
from psycopg.types.json import Jsonb

from reconciler.database import connection as db
from reconciler.database.store import _MERGE_SESSION
from reconciler.metrics import REGISTRY
from reconciler.sync.counts import Outcome
from tests.harness.names import NOW
from tests.harness.present import present

DAY = timedelta(days=1)


@pytest.fixture
def put(world):
    """Puts a webhook into the inbox; returns its id."""

    def put_one(days_ago, status="completed"):
        received_at = None if days_ago is None else NOW - days_ago * DAY
        (row,) = world.conn.execute(
            "INSERT INTO twilio_webhook_inbox (source, event_type, dedupe_key, payload, received_at, processing_status)"
            " VALUES ('twilio_voice', 'call-status', gen_random_uuid()::text, %s, %s, %s) RETURNING id",
            (Jsonb({}), received_at, status),
        ).fetchall()
        return row[0]

    return put_one


def left(world):
    return [row[0] for row in world.conn.execute("SELECT id FROM twilio_webhook_inbox ORDER BY id")]


def test_the_sizes_of_our_tables_are_told(world):
    """In the log and as a metric, with their indexes."""
    counts = world.keep_house()
    (line,) = world.said("tables.measured")
    tables = {
        "messages": "messages", "call_events": "call_events", "inbox": "twilio_webhook_inbox",
        "sync_state": "sync_state", "account_days": "account_days",
        "twilio_budgets": "twilio_budgets", "webhook_alerts": "webhook_alerts", "endpoint_faults": "endpoint_faults",
    }  # fmt: skip
    assert set(line) == {f"{name}_bytes" for name in tables}
    assert line.items() <= counts.as_dict().items()
    for name, table in tables.items():
        size = present(REGISTRY.get_sample_value("reconciler_table_bytes", {"table": table}))
        assert line[f"{name}_bytes"] == size > 0
    indexes = world.conn.execute("SELECT pg_indexes_size('messages')").fetchone()[0]
    assert line["messages_bytes"] > indexes > 0


def test_without_a_retention_nothing_goes(world, put):
    """Deleting is for a person to ask for."""
    old = put(1000)
    world.keep_house()
    assert [old] == left(world)
    assert [] == world.said("inbox.pruned")


def test_completed_webhooks_older_than_the_retention_go(world, put):
    """Those of the last month stay, and so does whatever is not settled, or waits for a person, however old."""
    for _ in range(3):
        put(31)
    stay = [put(29), put(31, "dead_letter"), put(31, "failed"), put(31, "pending"), put(31, "processing"), put(None)]
    world.keep_house(30 * DAY)
    assert stay == left(world)
    assert [{"rows": 3}] == world.said("inbox.pruned")
    world.log.clear()
    world.keep_house(30 * DAY)
    assert [] == world.said("inbox.pruned")


def test_the_oldest_go_first_a_batch_a_commit(world, put):
    """Stopped after the first batch, the two oldest are gone for good; the next run takes the rest."""
    ids = [put(days) for days in (33, 35, 31, 34, 32)]
    done = []

    def stop_after_the_first_batch():
        done.append(len(left(world)))
        if done[-1] < 5:
            world.stop.set()

    world.on_progress = stop_after_the_first_batch
    totals = world.keep_house(30 * DAY, batch=2)
    assert totals.outcome is Outcome.INTERRUPTED
    assert [ids[0], ids[2], ids[4]] == left(world)
    assert [{"rows": 2}] == world.said("inbox.pruned")
    world.go_on()
    world.keep_house(30 * DAY, batch=2)
    assert [] == left(world)


def test_a_row_that_another_holds_is_left_for_the_next_time(world, put, connect):
    """Nobody waits for anybody."""
    held, free = put(32), put(31)
    other = connect(world.database_url)
    with other.transaction():
        other.execute("SELECT FROM twilio_webhook_inbox WHERE id = %s FOR UPDATE", (held,))
        world.keep_house(30 * DAY)
        assert [held] == left(world)
    world.keep_house(30 * DAY)
    assert [] == left(world)
    assert free > held


def test_the_oldest_are_found_by_their_index(database_url, connect):
    """Among 20,000 completed webhooks."""
    conn = connect(database_url, **_MERGE_SESSION)
    conn.execute(
        "INSERT INTO twilio_webhook_inbox (source, event_type, dedupe_key, payload, received_at, processing_status)"
        " SELECT 'twilio_voice', 'call-status', n::text, '{}', %s - n * interval '1 minute', 'completed'"
        " FROM generate_series(1, 20000) AS n",
        (NOW,),
    )
    conn.execute("ANALYZE twilio_webhook_inbox")
    statement = db.load_queries("housekeeping")["prune_inbox"]
    params = {"received_before": NOW - 10 * DAY, "batch": 1000}
    plan = "\n".join(row[0] for row in conn.execute(f"EXPLAIN {statement}", params))
    assert "webhook_inbox_completed" in plan
    assert "twilio_webhook_inbox_pkey" in plan
    assert "Seq Scan" not in plan

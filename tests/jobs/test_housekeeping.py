"""Housekeeping: sizes are told, and webhooks that were done with long ago go, if a person said so."""

from __future__ import annotations

from datetime import datetime, timedelta

import psycopg
import pytest
from psycopg.types.json import Jsonb

from reconciler.database.retention import FIRST_WEBHOOK, prune_inbox
from reconciler.metrics import REGISTRY
from reconciler.sync.counts import Outcome
from tests.harness.names import ACCOUNT, NOW
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
    """The log and the metrics have them, indexes included."""
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
    """Those of the last month stay. So do rows that are not settled or wait for a person, however old."""
    for _ in range(3):
        put(31)
    stay = [put(29), put(31, "dead_letter"), put(31, "failed"), put(31, "pending"), put(31, "processing"), put(None)]
    world.keep_house(30 * DAY)
    assert stay == left(world)
    assert [{"rows": 3}] == world.said("inbox.pruned")
    world.log.clear()
    world.keep_house(30 * DAY)
    assert [] == world.said("inbox.pruned")


@pytest.mark.parametrize("job", ["hot", "warm", "cold"])
def test_a_clock_that_is_ahead_deletes_nothing(world, put, job):
    """The age of a webhook counts up to Twilio's last answer, which a deletion must not outrun."""
    names = {"hot": ["read_until"], "warm": ["settled_until", "looked_at"], "cold": ["swept_at"]}[job]
    world.set_cursor({"account": ACCOUNT} | dict.fromkeys(names, NOW.isoformat()), job)
    recent, old = put(1), put(31)
    world.behind = -40 * DAY
    world.keep_house(30 * DAY)
    assert [recent] == left(world)
    assert old != recent


def test_the_oldest_go_first_a_batch_a_commit(world, put):
    """The job stops after the first batch: the two oldest are gone. The next run takes the rest."""
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
    """Neither session waits for the other."""
    held, free = put(32), put(31)
    other = connect(world.database_url)
    with other.transaction():
        other.execute("SELECT FROM twilio_webhook_inbox WHERE id = %s FOR UPDATE", (held,))
        world.keep_house(30 * DAY)
        assert [held] == left(world)
    world.keep_house(30 * DAY)
    assert [] == left(world)
    assert free > held


def test_a_batch_steps_over_no_row_of_the_batches_before(conn, connect, database_url):
    """A session with an old snapshot keeps deleted rows in the index. No later batch reads them again."""
    conn.execute(
        "INSERT INTO twilio_webhook_inbox (source, event_type, dedupe_key, payload, received_at, processing_status)"
        " SELECT 'twilio_voice', 'call-status', n::text, '{}', %s - n * interval '1 minute', 'completed'"
        " FROM generate_series(1, 200) AS n",
        (NOW,),
    )
    reader = connect(database_url)
    place: datetime | None = FIRST_WEBHOOK
    with reader.transaction():
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT FROM messages")
        while place is not None:
            place = prune_inbox(conn, place=place, before=NOW, limit=10).place
    conn.execute("SELECT pg_stat_force_next_flush()")
    read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'webhook_inbox_completed'"
    row = conn.execute(read).fetchone()
    assert row
    # Each batch begins at the time of the last row of the one before. From the oldest row on it would be 2,300 reads.
    assert 200 <= row[0] < 2 * 200


@pytest.fixture
def event(world):
    """Adds an event of a call that is frozen, or of one that is not; returns its id."""

    def add(days_ago, *, status="busy", sync_state="frozen", created=True):
        at = NOW - days_ago * DAY
        (row,) = world.conn.execute(
            "WITH call AS (INSERT INTO messages (twilio_sid, direction, status, from_number, to_number, sync_state)"
            " VALUES ('CA' || md5(random()::text), 'inbound', %s, '', '', %s) RETURNING twilio_sid)"
            " INSERT INTO call_events (call_sid, event_type, event_time, created_at, source, payload)"
            " SELECT twilio_sid, 'call.created', %s, %s, 'webhook', '{}' FROM call RETURNING id",
            (status, sync_state, at, at if created else None),
        ).fetchall()
        return row[0]

    return add


def left_of_events(world):
    return [row[0] for row in world.conn.execute("SELECT id FROM call_events ORDER BY id")]


def test_events_of_frozen_calls_older_than_the_retention_go(world, event):
    """Newer ones stay, and so do those of calls that may still change, however old. The inbox is not touched."""
    event(101)
    stay = [event(101, status="ringing", sync_state="active"), event(101, sync_state="active")]
    event(102, created=False)  # as in the field: its own time counts
    stay += [event(99), event(99, created=False)]
    counts = world.keep_house(events=100 * DAY)
    assert stay == left_of_events(world)
    assert [{"rows": 2}] == world.said("events.pruned")
    assert counts.as_dict()["events_deleted"] == 2
    world.log.clear()
    world.keep_house(events=100 * DAY)
    assert [] == world.said("events.pruned")


def test_a_clock_that_is_ahead_deletes_no_events(world, event):
    """The age of an event counts up to Twilio's last answer, too."""
    world.set_cursor({"account": ACCOUNT, "read_until": NOW.isoformat()})
    recent = event(1)
    event(101)
    world.behind = -200 * DAY
    world.keep_house(events=100 * DAY)
    assert [recent] == left_of_events(world)


def test_without_a_retention_events_stay(world, event):
    """Deleting is for a person to ask for, and the table stays closed to everybody else."""
    old = event(1000)
    world.keep_house(30 * DAY)
    assert [old] == left_of_events(world)
    with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
        world.conn.execute("DELETE FROM call_events")


def test_events_that_stay_do_not_end_the_retention(world, event):
    """A batch of nothing but events of open calls, and the ones behind it."""
    stay = [event(200, status="ringing", sync_state="active") for _ in range(4)]
    for _ in range(3):
        event(150)
    stay.append(event(1))
    world.keep_house(events=100 * DAY, batch=2)
    assert stay == left_of_events(world)


def test_events_go_a_batch_a_commit(world, event):
    """The job stops after the first batch: the two oldest are gone. The next run takes the rest."""
    ids = [event(days) for days in (105, 104, 103, 102, 101)]
    done = []

    def stop_after_the_first_batch():
        done.append(len(left_of_events(world)))
        if done[-1] < 5:
            world.stop.set()

    world.on_progress = stop_after_the_first_batch
    totals = world.keep_house(events=100 * DAY, batch=2)
    assert totals.outcome is Outcome.INTERRUPTED
    assert ids[2:] == left_of_events(world)
    world.go_on()
    world.keep_house(events=100 * DAY, batch=2)
    assert [] == left_of_events(world)


def test_what_is_known_is_no_news_after_its_events_went(world):
    """Twilio's list, read again, writes no event for a frozen call whose events are gone."""
    world.account.generate(50, NOW - 2 * DAY, NOW - DAY)
    world.hot(since=NOW - 2 * DAY)
    assert world.event_count() >= 50
    world.clock.advance(40 * DAY)
    world.warm()
    world.keep_house(events=35 * DAY)
    before = world.event_count()
    assert before < 50
    assert world.hot(since=NOW - 2 * DAY).seen >= 50
    assert before == world.event_count()

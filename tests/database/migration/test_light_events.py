"""Migration 018: which indexes call_events has, in a new database and in one that has served before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.database.migrate import migrate, rollback
from reconciler.database.plans import explain
from reconciler.database.verify import verify

if TYPE_CHECKING:
    from reconciler.database.connection import Connection
    from tests.harness.databases import Connect

OLDER = {"idx_call_events_event_type", "idx_call_events_created_at", "idx_call_events_source"}
NEWER = {"call_events_created_at"}

ADD_EVENTS = """
INSERT INTO call_events (call_sid, event_type, event_status, event_time, created_at, source, payload, dedupe_key)
SELECT 'CA' || n, 'call.created', 'completed', now() - n * interval '1 min', now() - (%(count)s - n) * interval '1 min',
    'reconcile_hot', '{}', n::text
FROM generate_series(1, %(count)s::integer) AS n
"""


def indexes_of_time(conn: Connection) -> set[str]:
    """Of the indexes that 018 is about, those that are there."""
    rows = conn.execute("SELECT indexname FROM pg_indexes WHERE tablename = 'call_events'").fetchall()
    return {name for (name,) in rows} & (OLDER | NEWER)


def test_a_new_database_has_one_small_index(empty_database_url: str, connect: Connect) -> None:
    """The B-trees go before the first event; applied again later, the file changes nothing."""
    conn = connect(empty_database_url)
    migrate(conn)
    assert indexes_of_time(conn) == NEWER
    conn.execute(ADD_EVENTS, {"count": 1})
    conn.execute("DELETE FROM reconciler_migrations WHERE version >= 18")
    migrate(conn)
    assert indexes_of_time(conn) == NEWER


def test_what_holds_events_keeps_its_indexes(empty_database_url: str, connect: Connect) -> None:
    """No index of a table with rows is made or dropped; `verify` accepts that, and the plans are as good."""
    conn = connect(empty_database_url)
    migrate(conn)
    rollback(conn, to=17)
    assert indexes_of_time(conn) == OLDER
    conn.execute(ADD_EVENTS, {"count": 30_000})
    migrate(conn)
    assert indexes_of_time(conn) == OLDER
    assert verify(conn) == []
    conn.execute("ANALYZE call_events")
    plans, findings = explain(conn)
    assert findings == []
    plan = next(plan for plan in plans if plan.statement == "webhook_evidence.lost_calls")
    assert not OLDER.isdisjoint(plan.uses)
    assert "call_events_created_at" not in plan.unused


def test_what_the_viewer_made_stays(field_database_url: str, connect: Connect) -> None:
    """Its table is older than the ledger, also if it is empty."""
    conn = connect(field_database_url)
    conn.execute("TRUNCATE call_events")
    migrate(conn)
    assert indexes_of_time(conn) == OLDER
    assert verify(conn) == []


def test_the_small_index_finds_the_newest_events(database_url: str, connect: Connect) -> None:
    """Of many events those of the last day are read, and not the others."""
    conn = connect(database_url)
    conn.execute(ADD_EVENTS, {"count": 200_000})
    conn.execute("VACUUM ANALYZE call_events")
    plans, findings = explain(conn)
    assert findings == []
    plan = next(plan for plan in plans if plan.statement == "webhook_evidence.lost_calls")
    assert "call_events_created_at" in plan.uses

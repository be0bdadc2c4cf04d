"""Migrations 018 and 025: which indexes call_events has, in a new database and in one that has served before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reconciler.database.migrate import migrate, rollback
from reconciler.database.plans import explain
from reconciler.database.verify import Finding, verify

if TYPE_CHECKING:
    from reconciler.database.connection import Connection
    from tests.harness.databases import Connect

OLDER = {
    "idx_call_events_event_type", "idx_call_events_created_at", "idx_call_events_source", "idx_call_events_call_sid",
    "call_events_dedupe_key",
}  # fmt: skip
NEWER = {"call_events_created_at", "call_events_facts"}

ADD_EVENTS = """
INSERT INTO call_events (call_sid, event_type, event_status, event_time, created_at, source, payload, dedupe_key)
SELECT 'CA' || n, 'call.created', 'completed', now() - n * interval '1 min', now() - (%(count)s - n) * interval '1 min',
    'reconcile_hot', '{}', 'CA' || n || ':created'
FROM generate_series(1, %(count)s::integer) AS n
"""


def light_indexes(conn: Connection) -> set[str]:
    """Of the indexes that the two migrations are about, those that are there."""
    rows = conn.execute("SELECT indexname FROM pg_indexes WHERE tablename = 'call_events'").fetchall()
    return {name for (name,) in rows} & (OLDER | NEWER)


def test_a_new_database_has_the_light_indexes(empty_database_url: str, connect: Connect) -> None:
    """The B-trees go before the first event; applied again later, the file changes nothing."""
    conn = connect(empty_database_url)
    migrate(conn)
    assert light_indexes(conn) == NEWER
    conn.execute(ADD_EVENTS, {"count": 1})
    conn.execute("DELETE FROM reconciler_migrations WHERE version >= 18")
    migrate(conn)
    assert light_indexes(conn) == NEWER


def test_what_holds_events_keeps_its_indexes(empty_database_url: str, connect: Connect) -> None:
    """No index of a table with rows is made or dropped; `verify` accepts that, and the plans are as good."""
    conn = connect(empty_database_url)
    migrate(conn)
    rollback(conn, to=17)
    assert light_indexes(conn) == OLDER
    conn.execute(ADD_EVENTS, {"count": 30_000})
    migrate(conn)
    assert light_indexes(conn) == OLDER
    assert verify(conn) == []
    conn.execute("ANALYZE call_events")
    plans, findings = explain(conn)
    assert findings == []
    for statement in ("webhook_evidence.lost_calls", "report.events_of_call"):
        plan = next(plan for plan in plans if plan.statement == statement)
        assert not OLDER.isdisjoint(plan.uses)
        assert NEWER.isdisjoint(plan.unused)


def test_what_the_viewer_made_stays(field_database_url: str, connect: Connect) -> None:
    """Its table is older than the ledger, also if it is empty."""
    conn = connect(field_database_url)
    conn.execute("TRUNCATE call_events")
    migrate(conn)
    assert light_indexes(conn) == OLDER
    assert verify(conn) == []


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (
            "DROP INDEX call_events_dedupe_key; CREATE INDEX call_events_dedupe_key ON call_events (dedupe_key)",
            (
                "is CREATE INDEX call_events_dedupe_key ON call_events USING btree (dedupe_key),"
                " not CREATE UNIQUE INDEX call_events_dedupe_key ON call_events USING btree (dedupe_key)"
                " WHERE (dedupe_key IS NOT NULL)"
            ),
        ),
        ("DROP INDEX call_events_dedupe_key", "is missing; migration 010 makes it"),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'call_events_dedupe_key'::regclass",
            "is invalid: its build was interrupted",
        ),
    ],
)
def test_a_key_of_an_older_database_that_is_damaged_is_found(
    damage: str, finding: str, empty_database_url: str, connect: Connect
) -> None:
    """Such a database tells each fact once by its older index, so `verify` looks at that one."""
    conn = connect(empty_database_url)
    migrate(conn)
    rollback(conn, to=17)
    conn.execute(ADD_EVENTS, {"count": 1})
    migrate(conn)
    conn.execute(damage.encode())
    assert verify(conn) == [Finding("index call_events.call_events_dedupe_key", finding)]


def test_the_small_index_finds_the_newest_events(database_url: str, connect: Connect) -> None:
    """The query reads the events of the last day, and not the many others."""
    conn = connect(database_url)
    conn.execute(ADD_EVENTS, {"count": 200_000})
    conn.execute("VACUUM ANALYZE call_events")
    plans, findings = explain(conn)
    assert findings == []
    plan = next(plan for plan in plans if plan.statement == "webhook_evidence.lost_calls")
    assert "call_events_created_at" in plan.uses

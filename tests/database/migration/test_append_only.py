"""call_events is append-only (011)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from reconciler.database.connection import Connection

ADD = (
    "INSERT INTO call_events (call_sid, event_type, event_time, source, payload, dedupe_key)"
    " VALUES ('CA1', 'call.created', now(), 'webhook', '{}', %s)"
)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE call_events SET source = 'me'",
        "DELETE FROM call_events",
        "TRUNCATE call_events",
        "TRUNCATE call_events, messages CASCADE",
    ],
)
def test_event_cannot_be_changed(change: str, conn: Connection) -> None:
    """UPDATE, DELETE and TRUNCATE are refused, and the event is still there."""
    conn.execute(ADD, ("one",))
    with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
        conn.execute(change.encode())
    assert conn.execute("SELECT count(*) FROM call_events").fetchone() == (1,)


def test_retention_deletes_through_its_door(conn: Connection) -> None:
    """The one door is open for one transaction."""
    conn.execute(ADD, ("one",))
    with conn.transaction():
        conn.execute("SELECT set_config('reconciler.retention', 'on', true)")
        conn.execute("DELETE FROM call_events")
    assert conn.execute("SELECT count(*) FROM call_events").fetchone() == (0,)
    with pytest.raises(psycopg.errors.RestrictViolation):
        conn.execute("DELETE FROM call_events")


@pytest.mark.parametrize("change", ["UPDATE call_events SET source = 'me'", "TRUNCATE call_events"])
def test_retention_door_lets_only_delete_through(change: str, conn: Connection) -> None:
    """Retention removes old events; nobody rewrites them."""
    with conn.transaction(force_rollback=True):
        conn.execute("SELECT set_config('reconciler.retention', 'on', true)")
        with pytest.raises(psycopg.errors.RestrictViolation):
            conn.execute(change.encode())


def test_event_with_a_known_dedupe_key_lands_once(conn: Connection) -> None:
    """A replay by any writer adds no row."""
    for _ in range(2):
        conn.execute(ADD + " ON CONFLICT DO NOTHING", ("CA1:one",))
    assert conn.execute("SELECT count(*) FROM call_events").fetchone() == (1,)


def test_events_without_dedupe_key_may_repeat(conn: Connection) -> None:
    """The Viewer's own events, which have no key, are not refused."""
    for _ in range(2):
        conn.execute(ADD, (None,))
    assert conn.execute("SELECT count(*) FROM call_events").fetchone() == (2,)

"""A foreign trigger keeps events away: PostgreSQL reports no error, so the transaction itself has to see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from reconciler.database.connection import Connection
from reconciler.database.store import Store
from reconciler.database.transaction import Transaction
from reconciler.errors import TableFault
from reconciler.model import Recording, Status
from reconciler.twilio.recording_records import read_recording_record
from tests.harness.names import NOW, sid
from tests.harness.rows import END, ORIGIN, START, make_observation, make_webhook

SILENT = """
    CREATE FUNCTION viewers() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER a_viewers BEFORE INSERT ON call_events
    FOR EACH ROW WHEN (pg_catalog.concat(NEW.call_sid, NEW.event_type) OPERATOR(pg_catalog.=) '{}{}')
    EXECUTE FUNCTION viewers()"""
BY: dict[str, Any] = {"origin": ORIGIN, "now": NOW}
ENDED, BUSY, TALKING, NEW = 1, 2, 3, 4  # calls


def recording() -> Recording:
    """A recording of the call that has ended."""
    record = {
        "sid": "RE" + 32 * "1", "status": "completed", "call_sid": sid(ENDED), "date_created": END, "start_time": START
    }  # fmt: skip
    return read_recording_record(record, observed_at=NOW)


def freeze(transaction: Transaction) -> object:
    """Freeze what has ended."""
    return transaction.freeze_due(
        freeze_after=timedelta(0), ended_before=NOW, kept_since=NOW - timedelta(days=400), warm_looks={},
        warm_is_everywhere=False, limit=10, **BY,
    )  # fmt: skip


WRITERS: dict[str, tuple[int, Callable[[Transaction], object]]] = {
    "call.created": (NEW, lambda t: t.apply([make_observation(call=NEW)], **BY)),
    "call.status_changed": (TALKING, lambda t: t.apply([make_observation(call=TALKING, minute=20)], **BY)),
    "call.frozen": (ENDED, freeze),
    "call.gone": (ENDED, lambda t: t.mark_gone([sid(ENDED)], **BY)),
    "call.thawed": (BUSY, lambda t: t.thaw(sid(BUSY), **BY)),
    "recording.ready": (ENDED, lambda t: t.write([recording()], **BY)),
    "call.enriched": (ENDED, lambda t: t.fill_answered_by([make_webhook(call=ENDED, answered_by="human")], **BY)),
}


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A store whose database holds a call that has ended, one that was busy and one that talks."""
    held = [
        make_observation(call=ENDED),
        make_observation(Status.BUSY, call=BUSY),
        make_observation(Status.IN_PROGRESS, call=TALKING),
    ]
    with Store(database_url) as store:
        store.commit_page(held, **BY)
        yield store


def everything(conn: Connection) -> object:
    """All rows and events."""
    return conn.execute(
        "SELECT (SELECT json_agg(m ORDER BY id)::text FROM messages AS m),"
        " (SELECT json_agg(e ORDER BY id)::text FROM call_events AS e)"
    ).fetchone()


@pytest.mark.parametrize("event", WRITERS)
def test_an_event_that_is_kept_away_fails_its_transaction(event: str, store: Store, conn: Connection) -> None:
    """Whichever statement writes it, and though other events of the statement were written."""
    call, write = WRITERS[event]
    before = everything(conn)
    conn.execute(SILENT.format(sid(call), event).encode())
    with pytest.raises(TableFault) as failed:
        store.atomically(write)
    assert "keeps rows away from call_events" in str(failed.value)
    assert "call_events" in (failed.value.hint or "")
    assert everything(conn) == before
    conn.execute("DROP TRIGGER a_viewers ON call_events")
    store.atomically(write)
    assert (event,) in conn.execute("SELECT event_type FROM call_events WHERE call_sid = %s", (sid(call),)).fetchall()


def test_an_event_that_is_there_is_not_missed(store: Store, conn: Connection) -> None:
    """The Viewer set the row back, so the same status is reached again: its event was told before."""
    answered = make_observation(Status.IN_PROGRESS, call=TALKING, minute=20)
    conn.execute("UPDATE messages SET status = 'ringing' WHERE twilio_sid = %s", (sid(TALKING),))
    store.atomically(lambda t: t.apply([answered], **BY))
    conn.execute("UPDATE messages SET status = 'ringing' WHERE twilio_sid = %s", (sid(TALKING),))
    store.atomically(lambda t: t.apply([answered._replace(observed_at=NOW)], **BY))
    told = conn.execute("SELECT event_type FROM call_events WHERE call_sid = %s ORDER BY id", (sid(TALKING),))
    assert told.fetchall() == [("call.created",), ("call.status_changed",)]

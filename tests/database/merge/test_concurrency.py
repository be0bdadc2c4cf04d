"""Two writers on the same calls: nothing lost, nothing doubled, nobody fails."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from decimal import Decimal

import psycopg
import pytest
from psycopg.types.json import Jsonb

from reconciler.database.migrate import rollback
from reconciler.database.store import Store
from reconciler.model import JobName, Status
from tests.harness.contexts import cursor_at
from tests.harness.rows import ORIGIN, T0, make_observation, make_webhook

PRICED = Decimal("-0.00850")


def _until_waiting_for_a_lock(conn) -> None:
    """Return as soon as some merge of this database waits for a row another transaction holds."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    deadline = threading.Event()
    for _ in range(2_000):
        if conn.execute(waits).fetchone() != (0,):
            return
        deadline.wait(0.005)
    pytest.fail("nobody waited for a lock")


def test_a_row_changed_between_decision_and_write_is_decided_anew(merge, row, connect, database_url, conn):
    """The Viewer answers the call while our page says it rings: the page is merged again on what it then finds."""
    merge(make_webhook(Status.QUEUED, minute=0))
    viewer = connect(database_url)
    with ThreadPoolExecutor() as pool:
        with viewer.transaction():
            viewer.execute("UPDATE messages SET status = 'completed'")
            merging = pool.submit(merge, make_observation(Status.RINGING))
            _until_waiting_for_a_lock(conn)
        merged = merging.result(timeout=30)
    assert (merged.updated, row()["status"]) == (0, "completed")


def test_a_row_inserted_meanwhile_is_updated_instead(merge, row, connect, database_url, conn, events):
    """The Viewer inserts the call while our page does."""
    viewer = connect(database_url)
    with ThreadPoolExecutor() as pool:
        with viewer.transaction():
            viewer.execute(
                "INSERT INTO messages (twilio_sid, direction, status, from_number, to_number)"
                " VALUES (%s, 'inbound', 'ringing', '', '')",
                (f"CA{1:032x}",),
            )
            merging = pool.submit(merge, make_observation(price=PRICED), make_observation(call=2))
            _until_waiting_for_a_lock(conn)
        merged = merging.result(timeout=30)
    assert (merged.inserted, merged.updated) == (1, 1)
    assert row()["price"] == PRICED
    assert events() == [("call.status_changed", "completed"), ("call.frozen", "completed")]


def test_an_event_told_meanwhile_is_not_told_again(merge, connect, database_url, conn, events):
    """The call's row was deleted, and another writer restores its first event while our page inserts both."""
    merge(make_observation(price=PRICED))
    conn.execute("DELETE FROM messages")
    other = connect(database_url)
    again = "INSERT INTO call_events SELECT (e).* FROM (SELECT jsonb_populate_record(NULL::call_events, %s) AS e) AS x"
    (told,) = conn.execute("SELECT to_jsonb(e) FROM call_events AS e").fetchone()
    with conn.transaction():
        conn.execute("SELECT set_config('reconciler.retention', 'on', true)")
        conn.execute("DELETE FROM call_events")
    with ThreadPoolExecutor() as pool:
        with other.transaction():
            other.execute(again, (Jsonb({**told, "id": 1_000}),))
            merging = pool.submit(merge, make_observation(price=PRICED), make_observation(call=2))
            _until_waiting_for_a_lock(conn)
        merged = merging.result(timeout=30)
    assert merged.inserted == 2
    assert events() == [("call.created", "completed")]


@pytest.mark.parametrize("has_older_indexes", [False, True])
def test_two_merges_of_the_same_pages_write_each_fact_once(database_url, conn, has_older_indexes):
    """hot and a backfill meet on the same calls. In either order there is one row, and one event a fact."""
    if has_older_indexes:
        rollback(conn, to=24)
    pages = [[make_observation(call=n, price=PRICED) for n in range(p * 40, p * 40 + 60)] for p in range(12)]

    def run(job: str) -> int:
        with Store(database_url) as store, store.holding(JobName(job)):
            order = pages if job == "forward" else [list(reversed(page)) for page in reversed(pages)]
            return sum(store.commit_page(page, origin=ORIGIN, now=T0).inserted for page in order)

    with ThreadPoolExecutor() as pool:
        inserted = list(pool.map(run, ["forward", "backward"]))
    assert sum(inserted) == 11 * 40 + 60
    counted = conn.execute(
        "SELECT count(*), count(DISTINCT call_sid), (SELECT count(*) FROM messages) FROM call_events"
        " WHERE event_type = 'call.created'"
    ).fetchone()
    assert counted == (500, 500, 500)


def test_a_deadlock_broken_at_our_cost_is_merged_again(merge, connect, database_url, conn, row):
    """The Viewer locks the same rows the other way round; its statement passes, and ours comes after it."""
    merge(make_webhook(Status.RINGING, call=1, minute=0), make_webhook(Status.RINGING, call=2, minute=0))
    viewer = connect(database_url, deadlock_timeout="10s")  # the merge finds the deadlock first
    with ThreadPoolExecutor() as pool:
        with viewer.transaction():
            viewer.execute("UPDATE messages SET metadata = '{}' WHERE twilio_sid = %s", (f"CA{2:032x}",))
            merging = pool.submit(merge, make_observation(call=1), make_observation(call=2))
            _until_waiting_for_a_lock(conn)
            viewer.execute("UPDATE messages SET metadata = '{}' WHERE twilio_sid = %s", (f"CA{1:032x}",))
        merged = merging.result(timeout=30)
    assert merged.updated == 2
    assert {row(1)["status"], row(2)["status"]} == {"completed"}


def test_rows_and_cursor_commit_together(store, conn):
    """A page that fails leaves neither rows nor a moved cursor."""
    bad = make_observation(call=2, duration=2**31)  # wider than the column
    with pytest.raises(Exception, match="out of range"):
        store.commit_page(
            [make_observation(), bad], origin=ORIGIN, now=T0, move=lambda: nullcontext(cursor_at("test", {"page": 1}))
        )
    assert store.read_cursor(JobName("test")) is None
    assert conn.execute("SELECT count(*) FROM messages").fetchone() == (0,)
    store.commit_page(
        [make_observation()], origin=ORIGIN, now=T0, move=lambda: nullcontext(cursor_at("test", {"page": 1}))
    )
    assert store.read_cursor(JobName("test")) == {"page": 1}


def test_a_preview_writes_nothing(store, conn):
    """It tells field by field what a merge would do, and the next preview tells the same."""
    store.commit_page([make_observation(Status.RINGING)], origin=ORIGIN, now=T0)
    before = conn.execute("SELECT xmin::text, ctid::text FROM messages").fetchall()
    for _ in range(2):
        merged = store.preview_page([make_observation(price=PRICED), make_observation(call=2)], origin=ORIGIN, now=T0)
        assert (merged.inserted, merged.updated) == (1, 1)
        known, new = merged.decisions
        assert known.theirs is not None and known.ours is not None
        assert (known.ours["status"], known.theirs["status"], known.theirs["price"]) == ("ringing", "completed", PRICED)
        assert new.ours is None and new.theirs is not None
        assert new.theirs["status"] == "completed"
    assert conn.execute("SELECT xmin::text, ctid::text FROM messages").fetchall() == before
    assert conn.execute("SELECT count(*) FROM call_events").fetchone() == (1,)


def test_numbers_in_json_stay_exact(conn):
    """A price read back from an event is the Decimal that Twilio wrote."""
    row = conn.execute("SELECT jsonb_build_object('price', -0.00850)").fetchone()
    assert row is not None
    assert isinstance(row[0]["price"], Decimal)
    assert str(row[0]["price"]) == "-0.00850"


def test_a_session_is_in_utc(conn):
    """messages.start_time holds UTC without saying so."""
    assert conn.info.parameter_status("TimeZone") == "UTC"
    assert psycopg.__version__

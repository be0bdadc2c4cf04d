"""The Viewer's worker and ours at one inbox, and one that dies: each row is settled, nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import count
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from reconciler.database.store import Store
from reconciler.errors import JobHeld, Unavailable
from reconciler.model import JobName
from reconciler.simulator import viewer
from tests.harness.contexts import run_inbox, run_replay
from tests.harness.names import NOW, sid
from tests.harness.rows import T0

from .payloads import GRACE, recording, webhook

FILL = """
INSERT INTO twilio_webhook_inbox (source, event_type, call_sid, dedupe_key, payload, received_at, processing_status)
SELECT 'twilio_voice', 'call-status', p->>'CallSid', 'fill:' || n, p, %s + n * interval '1 ms', %s
FROM unnest(%s::jsonb[]) WITH ORDINALITY AS f (p, n)
"""


def _fill(conn, payloads, *, status: str = "pending") -> None:
    conn.execute(FILL, (T0, status, [Jsonb(payload) for payload in payloads]))


def _life(calls: int) -> list[dict]:
    """Four webhooks of each call, call by call interleaved."""
    told = ("initiated", "ringing", "in-progress", "completed")
    return [webhook(status, call=n, minute=minute) for minute, status in enumerate(told) for n in range(calls)]


def _until(found: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(4_000):
        if found():
            return
        pause.wait(0.005)
    pytest.fail("it never came to that")


def _until_a_merge_waits(conn) -> int:
    """The backend of the merge that waits for a row which another transaction holds."""
    waiting = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND application_name = 'reconciler: inbox'"
    )
    _until(lambda: conn.execute(waiting).fetchone())
    return conn.execute(waiting).fetchone()[0]


def test_a_second_worker_of_ours_is_turned_away(work, put, state, conn, connect, database_url):
    """The job is held for as long as it runs, and no longer. A second process touches nothing."""
    put(webhook("ringing"))
    work()
    ended, other = put(webhook(minute=1)), put(webhook(call=2))
    holder = connect(database_url)
    with ThreadPoolExecutor() as pool, Store(database_url) as second:
        with holder.transaction():
            holder.execute("SELECT 1 FROM messages FOR UPDATE")
            working = pool.submit(work)
            _until_a_merge_waits(conn)
            with pytest.raises(JobHeld, match="another process is running inbox"):
                run_inbox(second, clock=lambda: NOW, grace=GRACE)
            assert (state(ended), state(other)) == ("pending", "pending")
        assert working.result(timeout=30).rows == 2
        assert run_inbox(second, clock=lambda: NOW, grace=GRACE).rows == 0


def test_a_replay_runs_beside_the_worker(store, work, put, state, database_url):
    """It has a lock of its own: a person need not stop the daemon."""
    id_ = put(webhook(), processing_status="dead_letter", error="an older version could not read it")
    with Store(database_url) as person, store.holding(JobName("inbox")):
        assert run_replay(person, clock=lambda: NOW).completed == 1
    assert state(id_) == "completed"


def test_what_another_has_locked_is_left_to_it(work, put, state, connect, database_url):
    """The Viewer's worker is at a row this very moment: it is skipped, not waited for, and not spoiled."""
    theirs, ours = put(webhook()), put(webhook(call=2))
    other = connect(database_url)
    with other.transaction():
        other.execute("SELECT 1 FROM twilio_webhook_inbox WHERE id = %s FOR UPDATE", (theirs,))
        assert work().rows == 1
        other.execute("UPDATE twilio_webhook_inbox SET processing_status = 'completed' WHERE id = %s", (theirs,))
    assert (state(theirs), state(ours), work().rows) == ("completed", "completed", 0)


def test_a_killed_worker_leaves_its_rows_pending(work, put, state, conn, connect, database_url, calls):
    """The backend dies in the middle of the merge: nothing of the batch is there, and the next run has all of it."""
    ids = [put(webhook(call=n)) for n in range(1, 4)]
    put(webhook("ringing", call=3, minute=-1), minute=-1)
    work(batch=1, **_once())
    assert calls() == {sid(3): "ringing"}
    holder = connect(database_url)
    stop = threading.Event()
    with ThreadPoolExecutor() as pool, holder.transaction():
        holder.execute("SELECT 1 FROM messages FOR UPDATE")
        working = pool.submit(work, stop=stop)
        pid = _until_a_merge_waits(conn)
        stop.set()  # else it connects again and goes on
        conn.execute("SELECT pg_terminate_backend(%s)", (pid,))
        with pytest.raises(Unavailable):
            working.result(timeout=30)
        assert [state(id_) for id_ in ids] == ["pending"] * 3
        assert calls() == {sid(3): "ringing"}
    assert work().rows == 3
    assert set(calls().values()) == {"completed"}


def _once() -> dict[str, Any]:
    """Return an event that ends a run after its first batch."""
    stop = threading.Event()
    steps = count(1)

    def progress() -> None:
        if next(steps) == 3:  # the first two were looks at the backlog, the third is the first batch
            stop.set()

    return {"stop": stop, "on_progress": progress}


def test_a_lost_connection_is_replaced_within_the_run(work, put, conn, connect, database_url, calls):
    """The backend dies, the run goes on with a new one and does the batch again."""
    put(webhook("ringing"))
    work()
    put(webhook(minute=1))
    holder = connect(database_url)
    with ThreadPoolExecutor() as pool:
        with holder.transaction():
            holder.execute("SELECT 1 FROM messages FOR UPDATE")
            working = pool.submit(work)
            conn.execute("SELECT pg_terminate_backend(%s)", (_until_a_merge_waits(conn),))
        assert working.result(timeout=30).rows == 1
    assert calls() == {sid(1): "completed"}


@pytest.mark.parametrize("regress", [False, True])
def test_the_viewers_worker_races_with_ours(database_url, conn, connect, calls, regress):
    """It writes with its own rules, batch by batch beside ours: every row is completed, every call ends."""
    _fill(conn, _life(250))
    # Both are at the same calls at the same time, which real workers rarely are: let deadlocks cost little here.
    conn.execute(sql.SQL("ALTER DATABASE {} SET deadlock_timeout = '10ms'").format(sql.Identifier(conn.info.dbname)))
    habits = viewer.Habits(regress_statuses=regress)
    theirs, both = connect(database_url), threading.Barrier(2)

    def run_viewer() -> int:
        both.wait()
        done = 0
        while True:
            try:
                if not (batch := viewer.work(theirs, habits, now=NOW, batch=20)):
                    return done
                done += batch
            except psycopg.errors.DeadlockDetected:  # its rows stay in processing: ours to take up
                continue

    def run_ours() -> int:
        with Store(database_url) as store:
            both.wait()
            return run_inbox(store, clock=lambda: NOW, grace=GRACE, batch=20).rows

    with ThreadPoolExecutor() as pool:
        by_viewer, by_us = pool.submit(run_viewer), pool.submit(run_ours)
        assert by_viewer.result(timeout=60) + by_us.result(timeout=60) >= 1000
    with Store(database_url) as store:
        run_inbox(store, clock=lambda: NOW, grace=GRACE)
    settled = conn.execute("SELECT processing_status, count(*) FROM twilio_webhook_inbox GROUP BY 1").fetchall()
    assert settled == [("completed", 1000)]
    assert set(calls().values()) == {"completed"}
    assert len(calls()) == 250


def test_what_the_viewer_claimed_and_forgot_is_taken_up(work, conn, calls):
    """A worker that never releases: a minute past the grace its rows are ours."""
    _fill(conn, _life(5))
    assert viewer.work(conn, viewer.Habits(never_release=True), now=NOW) == 20
    assert work(now=T0 + GRACE + timedelta(seconds=59)).rows == 0
    assert work(now=T0 + GRACE + timedelta(seconds=61)).rows == 20
    assert set(calls().values()) == {"completed"}


class _Counting(psycopg.Cursor):
    """Counts what is sent."""

    statements = 0

    def execute(self, *args, **kwargs):
        _Counting.statements += 1
        return super().execute(*args, **kwargs)


def test_five_thousand_rows_cost_few_statements(work, store, conn):
    """Each of the ten batches takes a handful of statements, with any rows."""
    _fill(conn, [webhook(call=n) for n in range(4_500)] + [recording(call=n, number=n) for n in range(500)])
    conn.execute("UPDATE twilio_webhook_inbox SET event_type = 'recording-complete' WHERE payload ? 'RecordingSid'")
    with store.session() as ours:
        ours.cursor_factory = _Counting
    _Counting.statements = 0
    worked = work()
    assert (worked.rows, worked.inserted, worked.dead_letters) == (5_000, 4_500, 0)
    assert _Counting.statements <= 11 * 7 + 10
    assert conn.execute("SELECT count(*) FROM call_events").fetchone() == (5_000,)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("claim_due", "webhook_inbox_unprocessed"),
        ("backlog", "webhook_inbox_unprocessed"),
        ("claim_failed", "webhook_inbox_unsettled"),
        ("claim_dead", "webhook_inbox_unsettled"),
        ("count_unsettled", "webhook_inbox_unsettled"),
    ],
)
def test_what_is_settled_costs_nothing(conn, query, index):
    """Behind 20,000 completed rows: the planner reads by an index that leaves them out, and never the table."""
    from reconciler.database import connection as db

    _fill(conn, [webhook(call=n) for n in range(100)] * 200, status="completed")
    conn.execute("UPDATE twilio_webhook_inbox SET processing_status = 'pending' WHERE id % 4000 = 0")
    conn.execute("ANALYZE twilio_webhook_inbox")
    params = {
        "now": NOW, "pending_before": NOW, "stuck_before": NOW, "batch": 500, "first": 0, "max_tries": 8,
    }  # fmt: skip
    plan = "\n".join(row[0] for row in conn.execute("EXPLAIN " + db.load_queries("inbox")[query], params))
    assert index in plan
    assert "Seq Scan on twilio_webhook_inbox" not in plan

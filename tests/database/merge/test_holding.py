"""A job runs once, only its last run moves its cursor, and listeners hear of the change."""

from __future__ import annotations

import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from decimal import Decimal
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs

from reconciler.database.store import Store
from reconciler.database.transaction import NOTIFIED_AT_MOST, Move
from reconciler.errors import JobHeld, Unavailable
from reconciler.model import JobName, Status
from tests.harness.contexts import cursor_at
from tests.harness.names import sid
from tests.harness.rows import ORIGIN, T0, make_observation, make_webhook

PRICED = Decimal("-0.00850")

LOCKS = (
    "SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
    " WHERE l.locktype = 'advisory' AND l.granted AND d.datname = current_database()"
)


def _locks(conn) -> int:
    """How many advisory locks are held in this database."""
    (count,) = conn.execute(LOCKS).fetchone()
    return count


def _end_session(conn, store: Store) -> None:
    """Have the server end the store's session, and wait until it has."""
    with store.session() as ours:
        pid = ours.info.backend_pid
    assert conn.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,)).fetchone() == (True,)


def _lose_connection(store: Store) -> int:
    """Break the store's connection behind the server's back: its session lasts until what is returned is closed."""
    with store.session() as ours:
        server = os.dup(ours.fileno())
        nobody, gone = socket.socketpair()
        with nobody, gone:
            gone.shutdown(socket.SHUT_RDWR)
            os.dup2(nobody.fileno(), ours.fileno())
    return server


# The lock of a job


def test_a_job_runs_once(database_url):
    """A second process finds the job's lock taken, and may do another job."""
    with Store(database_url) as first, Store(database_url) as second, first.holding(JobName("hot")):
        with pytest.raises(JobHeld, match="another process is running hot"), second.holding(JobName("hot")):
            pass
        with second.holding(JobName("warm")):
            pass


def test_the_lock_ends_with_the_run(database_url, conn):
    """A failed run gives it back too. The connection stays for the next run."""
    with Store(database_url) as first, Store(database_url) as second:
        with first.holding(JobName("hot")):
            assert _locks(conn) == 1
        assert _locks(conn) == 0
        with pytest.raises(LookupError), first.holding(JobName("hot")):
            raise LookupError
        assert _locks(conn) == 0
        with second.holding(JobName("hot")):
            assert _locks(conn) == 1


def test_the_lock_ends_with_the_connection(database_url, conn):
    """A killed process holds no lock."""
    with Store(database_url) as first, Store(database_url) as second, first.holding(JobName("hot")):
        _end_session(conn, first)
        with second.holding(JobName("hot")):
            assert _locks(conn) == 1


def test_a_run_may_end_while_the_database_is_away(database_url, conn):
    """Giving the lock back is no reason to fail: it went with the connection. The store is good for the next run."""
    with Store(database_url) as store:
        with store.holding(JobName("hot")):
            _end_session(conn, store)
        assert _locks(conn) == 0
        with store.holding(JobName("hot")):
            assert _locks(conn) == 1


def test_a_lost_connection_is_replaced_and_the_lock_taken_again(database_url, conn):
    """The server ends our session: this call says so, the next one works, and holds the lock."""
    with Store(database_url) as store, store.holding(JobName("hot")):
        _end_session(conn, store)
        with pytest.raises(Unavailable):
            store.commit_page([make_observation()], origin=ORIGIN, now=T0)
        assert _locks(conn) == 0
        with capture_logs() as logs:
            assert store.commit_page([make_observation()], origin=ORIGIN, now=T0).inserted == 1
        assert [line["event"] for line in logs] == ["database.reconnected"]
        assert _locks(conn) == 1


def test_a_session_that_was_lost_keeps_the_lock_until_the_server_notices(database_url, conn):
    """No other process holds the job: trying again is what helps."""
    with Store(database_url) as store, store.holding(JobName("hot")):
        with store.session() as ours:
            pid = ours.info.backend_pid
        server = _lose_connection(store)
        for reason in ("server closed", "not noticed yet"):
            with pytest.raises(Unavailable, match=reason):
                store.commit_page([make_observation()], origin=ORIGIN, now=T0)
        assert _locks(conn) == 1
        os.close(server)
        assert conn.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,)).fetchone()  # at once, or it has ended
        assert store.commit_page([make_observation()], origin=ORIGIN, now=T0).inserted == 1
        assert _locks(conn) == 1


def test_who_lost_the_lock_to_another_writes_nothing(database_url, conn):
    """Back from an outage, the first finds its job taken: it must not merge beside the second."""
    with Store(database_url) as first, Store(database_url) as second, first.holding(JobName("hot")):
        _end_session(conn, first)
        with pytest.raises(Unavailable):
            first.commit_page([make_observation()], origin=ORIGIN, now=T0)
        with second.holding(JobName("hot")):
            with pytest.raises(JobHeld):
                first.commit_page([make_observation()], origin=ORIGIN, now=T0)
            assert conn.execute("SELECT count(*) FROM messages").fetchone() == (0,)


def test_a_connection_is_named_after_its_job(database_url, conn):
    """pg_stat_activity shows the name, after a reconnect too."""
    names = (
        "SELECT application_name FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    with Store(database_url) as store:
        for job in ("hot", "warm"):
            with store.holding(JobName(job)):
                assert conn.execute(names).fetchall() == [(f"reconciler: {job}",)]
        with store.holding(JobName("cold")):
            _end_session(conn, store)
            with pytest.raises(Unavailable):
                store.read_cursor(JobName("cold"))
            assert store.read_cursor(JobName("cold")) is None
            assert conn.execute(names).fetchall() == [("reconciler: cold",)]


# Whose run may move a cursor


def _to(page: int) -> Move:
    return lambda: nullcontext(cursor_at("hot", {"page": page}))


def test_a_cursor_moves_page_by_page(store):
    """The next run goes on from there."""
    for _ in range(2):
        with store.holding(JobName("hot")):
            for page in range(3):
                store.commit_page([], origin=ORIGIN, now=T0, move=_to(page))
                assert store.read_cursor(JobName("hot")) == {"page": page}


def test_who_was_stopped_while_another_worked_moves_nothing(database_url, conn):
    """The job is free again, but its cursor is another run's: what the first brings is not written."""
    with Store(database_url) as first, Store(database_url) as second, first.holding(JobName("hot")):
        first.commit_page([], origin=ORIGIN, now=T0, move=_to(1))
        _end_session(conn, first)
        with pytest.raises(Unavailable):
            first.commit_page([make_observation()], origin=ORIGIN, now=T0, move=_to(2))
        with second.holding(JobName("hot")):
            pass  # it moved nothing yet
        with pytest.raises(JobHeld, match="another process has taken over hot"):
            first.commit_page([make_observation()], origin=ORIGIN, now=T0, move=_to(2))
    assert conn.execute("SELECT cursor, (SELECT count(*) FROM messages) FROM sync_state").fetchone() == ({"page": 1}, 0)


def test_a_server_that_lost_commits_ends_the_run(database_url, conn):
    """After a crash or a failover the cursor may be an earlier one; to move on from there would pass over lost rows."""
    with Store(database_url) as store, store.holding(JobName("hot")):
        store.commit_page([], origin=ORIGIN, now=T0, move=_to(1))
        store.commit_page([], origin=ORIGIN, now=T0, move=_to(2))
        conn.execute("UPDATE sync_state SET cursor = %s", ('{"page": 1}',))
        with pytest.raises(JobHeld, match="the server has lost commits"):
            store.commit_page([make_observation()], origin=ORIGIN, now=T0, move=_to(3))
    assert conn.execute("SELECT cursor, (SELECT count(*) FROM messages) FROM sync_state").fetchone() == ({"page": 1}, 0)


def test_a_commit_whose_answer_was_lost_is_no_lost_commit(database_url, conn):
    """The page is merged again; its first commit may have moved the cursor, or may not."""
    with Store(database_url) as store, store.holding(JobName("hot")):
        store.commit_page([], origin=ORIGIN, now=T0, move=_to(1))
        with pytest.raises(RuntimeError):
            store.atomically(partial(_move_and_fail, cursor=cursor_at("hot", {"page": 2})))
        conn.execute("UPDATE sync_state SET cursor = %s", ('{"page": 2}',))  # as if that commit had come through
        store.commit_page([], origin=ORIGIN, now=T0, move=_to(3))
        assert store.read_cursor(JobName("hot")) == {"page": 3}


def _move_and_fail(transaction, *, cursor):
    transaction.move_cursor(cursor, now=T0)
    raise RuntimeError


@pytest.fixture
def beside(database_url):
    """A store that holds `hot`, and one that merges for the same run on a connection of its own."""
    with Store(database_url) as owner, owner.holding(JobName("hot")), owner.mergers(2) as (_, other):
        yield owner, other


def test_a_connection_beside_the_lock_proves_that_the_run_owns_the_job(database_url, conn, beside):
    """Its own connection is as good as ever, but the lock is another process's: it writes nothing."""
    owner, other = beside
    assert other.commit_page([make_observation()], origin=ORIGIN, now=T0, move=_to(1)).inserted == 1
    assert _locks(conn) == 1
    _end_session(conn, owner)
    with Store(database_url) as second, second.holding(JobName("hot")):
        second.commit_page([], origin=ORIGIN, now=T0, move=_to(7))
        with pytest.raises(JobHeld):
            other.commit_page([make_observation(call=2)], origin=ORIGIN, now=T0, move=_to(2))
        assert second.read_cursor(JobName("hot")) == {"page": 7}
    assert conn.execute("SELECT count(*) FROM messages").fetchone() == (1,)


def test_no_take_over_between_a_move_and_its_commit(database_url, conn, beside):
    """Another session that wants to take over waits for the commit, not for long, and leaves the lock free."""
    owner, other = beside
    moved, may_commit = threading.Event(), threading.Event()

    def work(transaction):
        transaction.move_cursor(cursor_at("hot", {"page": 1}), now=T0)
        moved.set()
        assert may_commit.wait(30)

    with Store(database_url) as second, ThreadPoolExecutor() as threads:
        committed = threads.submit(other.atomically, work)
        assert moved.wait(30)
        _end_session(conn, owner)
        with pytest.raises(JobHeld, match="still committing"), second.holding(JobName("hot")):
            pass
        assert _locks(conn) == 0
        may_commit.set()
        committed.result(30)
        with second.holding(JobName("hot")):
            assert second.read_cursor(JobName("hot")) == {"page": 1}


def test_two_connections_merge_at_once(beside):
    """The second merges and commits while the first has merged and not committed."""
    owner, other = beside
    merged, may_commit = threading.Event(), threading.Event()

    @contextmanager
    def wait():
        merged.set()
        assert may_commit.wait(30)
        yield cursor_at("hot", {"page": 1})

    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(owner.commit_page, [make_observation()], origin=ORIGIN, now=T0, move=wait)
        assert merged.wait(30)
        assert other.commit_page([make_observation(call=2)], origin=ORIGIN, now=T0, move=_to(2)).inserted == 1
        may_commit.set()
        assert waiting.result(30).inserted == 1
    assert owner.read_cursor(JobName("hot")) == {"page": 1}


def test_a_server_without_room_merges_on_one_connection(database_url, conn, stranger):
    """No connection is left for a second one: the run goes on with its own."""
    conn.execute(f"ALTER ROLE {stranger} CONNECTION LIMIT 1".encode())
    with Store(make_conninfo(database_url, user=stranger)) as store:
        with store.mergers(3) as stores:
            assert stores == [store]
        _end_session(conn, store)


def test_what_moves_with_a_commit_hears_of_its_failure(store, conn):
    """A deferred trigger raises the error of the COMMIT itself. The caller can take its move back."""
    conn.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RAISE EXCEPTION USING ERRCODE = ''serialization_failure''; END';"
        "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON messages DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    outcomes = []

    @contextmanager
    def move():
        try:
            yield cursor_at("hot", {"page": 1})
        except psycopg.Error:
            outcomes.append("taken back")
            conn.execute("DROP TRIGGER refuse ON messages")
            raise
        outcomes.append("committed")

    store.commit_page([make_observation()], origin=ORIGIN, now=T0, move=move)
    assert outcomes == ["taken back", "committed"]
    assert store.read_cursor(JobName("hot")) == {"page": 1}


def test_a_page_whose_commit_was_not_answered_may_come_again(store):
    """The commit landed and its answer was lost: the repetition changes nothing, and passes."""
    with store.holding(JobName("hot")):
        for inserted in (1, 0):
            merged = store.commit_page([make_observation()], origin=ORIGIN, now=T0, move=_to(1))
            assert (merged.inserted, merged.updated) == (inserted, 0)
        assert store.read_cursor(JobName("hot")) == {"page": 1}


def test_an_outcome_moves_no_cursor(store):
    """A first run that fails leaves a row of its job with an empty cursor; the next one may start from nothing."""
    store.record_failure(JobName("hot"), error="no", now=T0)
    assert store.read_cursor(JobName("hot")) is None
    store.commit_cursor(cursor_at("hot", {"page": 1}), now=T0)
    with store.holding(JobName("warm")):
        assert store.read_cursor(JobName("warm")) is None
        store.record_success(JobName("warm"), now=T0)
        store.commit_cursor(cursor_at("warm", {"page": 1}), now=T0)
    assert (store.read_cursor(JobName("hot")), store.read_cursor(JobName("warm"))) == ({"page": 1}, {"page": 1})


# NOTIFY


@pytest.fixture
def listening(database_url, connect):
    """A store that notifies `calls`, and what a listener has heard since it was asked last."""
    listener = connect(database_url)
    listener.execute("LISTEN calls")

    def heard() -> list[dict]:
        # Notifications come in the order of commits: ours comes after all that were sent before.
        listener.execute("NOTIFY calls, 'mark'")
        found: list[Any] = []
        for notification in listener.notifies(timeout=30):
            if notification.payload == "mark":
                return found
            found.append(json.loads(notification.payload))
        pytest.fail("the mark was not heard")

    with Store(database_url, channel="calls") as store:
        yield store, heard


def test_changed_calls_are_named(listening):
    """The notification names inserted and updated calls, each once and in order. Without changes there is none."""
    store, heard = listening
    sids = [f"CA{n:032x}" for n in range(3)]
    store.commit_page([make_webhook(Status.RINGING, call=n) for n in (2, 0, 1)], origin=ORIGIN, now=T0)
    assert heard() == [{"calls": sids}]
    twice = [make_webhook(Status.IN_PROGRESS, call=1, minute=2), make_observation(call=1)]
    store.commit_page([*twice, make_webhook(Status.RINGING, call=2)], origin=ORIGIN, now=T0)
    assert heard() == [{"calls": [sids[1]]}]
    store.commit_page([make_observation(call=1)], origin=ORIGIN, now=T0, move=_to(1))
    assert heard() == []


def test_so_many_are_named_and_more_are_counted(listening):
    """A notification holds 8,000 bytes."""
    store, heard = listening
    store.commit_page([make_observation(call=n) for n in range(NOTIFIED_AT_MOST)], origin=ORIGIN, now=T0)
    assert heard() == [{"calls": [f"CA{n:032x}" for n in range(NOTIFIED_AT_MOST)]}]
    store.commit_page([make_observation(call=1_000 + n) for n in range(NOTIFIED_AT_MOST + 1)], origin=ORIGIN, now=T0)
    assert heard() == [{"calls": None, "count": NOTIFIED_AT_MOST + 1}]


def test_what_was_not_committed_is_not_told(listening):
    """A preview notifies nobody, and neither does a page whose transaction fails later."""
    store, heard = listening

    def work(transaction):
        transaction.apply([make_observation()], origin=ORIGIN, now=T0)
        raise LookupError

    with pytest.raises(LookupError):
        store.atomically(work)
    store.preview_page([make_observation()], origin=ORIGIN, now=T0)
    assert heard() == []


def test_without_a_channel_nobody_is_told(listening, store):
    """It is off unless it was asked for."""
    _, heard = listening
    store.commit_page([make_observation()], origin=ORIGIN, now=T0)
    assert heard() == []


# Calls that Twilio has no more


def _mark_gone(store: Store, *sids: str, minute: int = 0) -> list[str]:
    now = T0.replace(minute=minute)
    return store.atomically(lambda transaction: transaction.mark_gone(sids, origin=ORIGIN, now=now))


def test_a_call_is_marked_gone_once(listening, row, events):
    """One event, one notification, and no status changes; a call we do not know is none."""
    store, heard = listening
    store.commit_page([make_webhook(Status.RINGING), make_webhook(Status.RINGING, call=2)], origin=ORIGIN, now=T0)
    before, bystander = row(), row(2)
    heard()
    sid, unknown = f"CA{1:032x}", f"CA{9:032x}"
    assert _mark_gone(store, sid, unknown) == [sid]
    marked = row()
    assert _mark_gone(store, sid, unknown, minute=1) == []
    changed = {name for name in marked if marked[name] != before[name]}
    assert changed == {"gone_at", "updated_at", "version"}
    assert (row(), row(2)) == (marked, bystander)
    assert events() == [("call.created", "ringing"), ("call.gone", "ringing")]
    assert heard() == [{"calls": [sid]}]


@pytest.mark.parametrize("price", [PRICED, 2 * PRICED])
def test_a_frozen_call_that_twilio_lists_again_is_not_gone(store, row, price):
    """Nothing else of the row changes, also where the record disagrees with it."""
    store.commit_page([make_observation(price=PRICED)], origin=ORIGIN, now=T0)
    frozen = row()
    _mark_gone(store, sid(1), minute=20)
    store.commit_page([make_observation(price=price, minute=19)], origin=ORIGIN, now=T0)
    assert row()["gone_at"] is not None  # read before it was gone
    merged = store.commit_page([make_observation(price=price, minute=21)], origin=ORIGIN, now=T0)
    assert merged.drifted == (price != PRICED)
    changed = {name for name in frozen if row()[name] != frozen[name]}
    assert changed <= {"updated_at", "version"}
    back = row()
    store.commit_page([make_observation(price=price, minute=22)], origin=ORIGIN, now=T0)
    assert row() == back


def test_what_twilio_tells_of_is_not_gone(store, row, events):
    """A webhook may have been on its way; a REST record says that the call is there. Then it may go again."""
    store.commit_page([make_webhook(Status.RINGING)], origin=ORIGIN, now=T0)
    sid = f"CA{1:032x}"
    _mark_gone(store, sid)
    store.commit_page([make_webhook(Status.IN_PROGRESS, minute=2)], origin=ORIGIN, now=T0)
    assert (row()["status"], row()["gone_at"] is None) == ("in-progress", False)
    store.commit_page([make_observation(Status.IN_PROGRESS, minute=3)], origin=ORIGIN, now=T0)
    assert row()["gone_at"] is None
    assert _mark_gone(store, sid, minute=4) == [sid]
    assert [kind for kind, _ in events()].count("call.gone") == 2

"""A row that PostgreSQL refuses: the Viewer's own constraints and triggers stop one call, and nothing beside it."""

from __future__ import annotations

import json
import threading
from datetime import timedelta

import pytest

from reconciler.database.store import Store
from reconciler.errors import ExitCode, TableFault
from reconciler.simulator import Fault
from reconciler.sync.counts import Outcome
from reconciler.twilio.recording_records import dead_letter_of_refused
from reconciler.twilio.records import dead_letter_of_observation, read_record
from tests.harness.contexts import run_inbox, run_replay
from tests.harness.equality import records_of
from tests.harness.names import NOW
from tests.harness.present import present
from tests.harness.recorded import REAL_CALLS
from tests.harness.rows import ORIGIN, SAID, make_observation, make_record

REFUSALS = {
    "constraint": "ALTER TABLE messages ADD CONSTRAINT viewers CHECK (twilio_sid <> '{sid}')",
    "trigger": """
        CREATE FUNCTION viewers() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.twilio_sid = '{sid}' THEN RAISE 'not this one: +15005550100'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER viewers BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION viewers()""",
    "index": "CREATE UNIQUE INDEX viewers ON messages ((CASE WHEN twilio_sid IN ('{sid}', '{other}') THEN 1 END))",
}


@pytest.mark.parametrize("how", REFUSALS)
def test_one_refused_row_stops_nothing(world, conn, how):
    """It is a dead letter with its reason, met again it is the same one, and replayed when the Viewer allows it."""
    sids = sorted(record["sid"] for record in records_of(world.account, NOW))
    conn.execute(REFUSALS[how].format(sid=sids[500], other=sids[501]).encode())
    for _ in range(2):
        summary = world.backfill(days=8)
        assert summary.exit_code is ExitCode.UNRECONCILED
        assert summary.dead_letters == 1
        assert summary.failed == []
        assert len({line.split()[0] for line in world.differences()}) == 1
    ((call_sid, reason),) = conn.execute("SELECT call_sid, error FROM twilio_webhook_inbox").fetchall()
    assert call_sid in (sids[500], sids[501])
    assert "viewers" in reason or "not this one" in reason
    assert "+15005550100" not in reason
    conn.execute(
        {
            "constraint": b"ALTER TABLE messages DROP CONSTRAINT viewers",
            "trigger": b"DROP TRIGGER viewers ON messages",
            "index": b"DROP INDEX viewers",
        }[how]
    )
    with Store(world.database_url) as store:
        assert run_replay(store, clock=world.clock.now).dead_letters == 0
    assert world.differences() == []


FAULTS_OF_A_TABLE = {
    "sequence": ("ALTER SEQUENCE messages_id_seq MAXVALUE 2", "ALTER SEQUENCE messages_id_seq MAXVALUE 1000000"),
    "column": ("ALTER TABLE messages ADD COLUMN tenant int NOT NULL", "ALTER TABLE messages DROP COLUMN tenant"),
    "constraint": (
        "ALTER TABLE messages ADD CONSTRAINT viewers CHECK (conversation_id > 0 AND conversation_id IS NOT NULL)",
        "ALTER TABLE messages DROP CONSTRAINT viewers",
    ),
}


@pytest.mark.parametrize("how", FAULTS_OF_A_TABLE)
def test_a_table_that_takes_no_row_makes_no_dead_letters(world, conn, how):
    """The run fails and says why, the cursor stays; once the table is mended, the same command reads the rest."""
    breaks, mends = FAULTS_OF_A_TABLE[how]
    conn.execute(breaks.encode())
    with pytest.raises(TableFault) as failed:
        world.backfill(days=8, concurrency=1)
    assert failed.value.exit_code is ExitCode.TRY_AGAIN
    assert {"sequence": "messages_id_seq", "column": "tenant", "constraint": "viewers"}[how] in str(failed.value)
    assert failed.value.hint
    assert conn.execute("SELECT count(*) FROM twilio_webhook_inbox").fetchone() == (0,)
    conn.execute(mends.encode())
    assert world.backfill(days=8).exit_code is ExitCode.DONE
    assert world.differences() == []


@pytest.mark.parametrize("table", ["messages", "call_events"])
def test_a_mandatory_column_of_the_viewers_is_no_fault_of_a_single_call(table, database_url, conn):
    """A page with one new call cannot show that others are refused too; the column alone can."""
    conn.execute(f"ALTER TABLE {table} ADD COLUMN tenant int NOT NULL".encode())
    with Store(database_url) as store, pytest.raises(TableFault) as failed:
        store.commit_page([make_observation()], origin=ORIGIN, now=NOW, refuse=dead_letter_of_refused)
    assert f"{table}.tenant" in str(failed.value)
    assert "DROP NOT NULL" in present(failed.value.hint)
    assert conn.execute("SELECT count(*) FROM twilio_webhook_inbox").fetchone() == (0,)


def test_a_run_that_fails_ends_its_threads_itself(world, conn):
    """While its error is still held: the garbage collector could end them in a thread that just starts, and hang."""
    conn.execute("ALTER SEQUENCE messages_id_seq MAXVALUE 2")
    before = set(threading.enumerate())
    with pytest.raises(TableFault) as failed:
        world.backfill(days=8)
    assert failed.tb is not None
    assert [thread.name for thread in threading.enumerate() if thread not in before and "fetch" in thread.name] == []


SILENT = """
    CREATE FUNCTION viewers() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF NEW.twilio_sid = '{sid}' THEN RETURN NULL; END IF; RETURN NEW; END $$;
    CREATE TRIGGER a_viewers BEFORE INSERT OR UPDATE ON messages FOR EACH ROW EXECUTE FUNCTION viewers()"""


@pytest.mark.parametrize("is_held", [False, True], ids=["insert", "update"])
def test_a_write_that_writes_no_row_stops_nothing(world, conn, is_held):
    """A trigger of the Viewer's returns NULL: the one call is a dead letter, and all others land."""
    sids = sorted(record["sid"] for record in records_of(world.account, NOW))
    conn.execute(SILENT.format(sid=sids[500]).encode())
    if is_held:
        conn.execute("ALTER TABLE messages DISABLE TRIGGER a_viewers")
        conn.execute(
            "INSERT INTO messages (twilio_sid, direction, status, from_number, to_number)"
            " VALUES (%s, 'inbound', 'ringing', '', '')",
            (sids[500],),
        )
        conn.execute("ALTER TABLE messages ENABLE TRIGGER a_viewers")
    summary = world.backfill(days=8)
    assert (summary.exit_code, summary.dead_letters) == (ExitCode.UNRECONCILED, 1)
    assert {line.split()[0] for line in world.differences()} == {sids[500]}
    ((call_sid, reason),) = conn.execute("SELECT call_sid, error FROM twilio_webhook_inbox").fetchall()
    assert (call_sid, reason) == (sids[500], "a trigger of this database lets the row not be written")


SILENT_TABLE = """
    CREATE FUNCTION viewers() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER a_viewers BEFORE INSERT OR UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION viewers()"""


@pytest.mark.parametrize("table", ["sync_state", "twilio_webhook_inbox", "account_days", "call_events"])
def test_a_table_of_ours_that_silently_takes_no_row_fails_the_run(world, conn, table):
    """Otherwise a cursor, a record, a proof or an event would be lost, and the run would say it is done."""
    conn.execute(SILENT_TABLE.format(table).encode())
    if table == "twilio_webhook_inbox":
        world.twilio.faults.always(Fault.broken_record("unknown_status"))
    with pytest.raises(TableFault) as failed:
        world.cold()
    assert f"keeps rows away from {table}" in str(failed.value)
    assert failed.value.exit_code is ExitCode.TRY_AGAIN
    conn.execute(f"DROP TRIGGER a_viewers ON {table}".encode())
    assert world.cold().outcome is Outcome.SUCCEEDED
    assert world.cold().problem is None
    lacking = (
        "SELECT FROM messages AS m WHERE NOT EXISTS (SELECT FROM call_events AS e WHERE e.call_sid = m.twilio_sid)"
    )
    assert conn.execute(lacking).fetchall() == []


def test_a_row_that_is_locked_stops_nothing_and_comes_back_by_itself(world, conn, connect):
    """An idle transaction holds it: the others land, and the inbox job brings it when the lock is gone."""
    sids = sorted(record["sid"] for record in records_of(world.account, NOW))
    conn.execute(
        "INSERT INTO messages (twilio_sid, direction, status, from_number, to_number)"
        " VALUES (%s, 'inbound', 'ringing', '', '')",
        (sids[500],),
    )
    idle = connect(world.database_url)
    with idle.transaction():
        idle.execute("SELECT FROM messages WHERE twilio_sid = %s FOR UPDATE", (sids[500],))
        summary = world.backfill(days=8)
        assert (summary.exit_code, summary.dead_letters) == (ExitCode.DONE, 0)
        assert {line.split()[0] for line in world.differences()} == {sids[500]}
        later = NOW + timedelta(minutes=2)
        with Store(world.database_url) as store:  # it is still locked: tried again later
            assert run_inbox(store, clock=lambda: later, grace=timedelta(0)).completed == 0
    later = NOW + timedelta(minutes=10)
    with Store(world.database_url) as store:
        assert run_inbox(store, clock=lambda: later, grace=timedelta(0)).completed == 1
    # The direction of a row that was there is the Viewer's.
    assert [line for line in world.differences() if " direction: " not in line] == []


@pytest.mark.parametrize("record", [*REAL_CALLS, make_record(status="queued", price=None)], ids=lambda r: r["sid"])
def test_a_refused_observation_is_read_again_as_it_was(record):
    """Nothing that we keep of a call is lost on the way through a dead letter."""
    observation = read_record(record, observed_at=SAID)
    letter = dead_letter_of_observation(observation, "why")
    assert read_record(json.loads(letter.record), observed_at=SAID) == observation
    assert (letter.call_sid, letter.reason) == (observation.call_sid, "why")

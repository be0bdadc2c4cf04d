"""kill -9, SIGINT and SIGTERM at any moment: the same command goes on, and the end is that of an undisturbed run."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from reconciler.database import connection as db
from reconciler.database.migration_files import load_migrations
from reconciler.simulator import Fault, SimulatedTwilio, Switches
from tests.harness.commands import PATIENCE
from tests.harness.equality import doubled_events, versions

KILLS = 3
PAGES = 80


@pytest.fixture
def count():
    """How many calls there are."""
    return 3_000


@pytest.fixture
def window(account, twilio, count):
    """Calls of four days, in about eighty small pages that take their time, and the arguments that ask for just these.

    All but three are over and have their price since long: whenever it is asked, Twilio says the same.
    """
    until = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    since = until - timedelta(days=4)
    account.generate(count - 3, since, until - timedelta(hours=1))
    for _ in range(3):
        account.call(until - timedelta(hours=1), rings_for=None)
    twilio.switches = Switches(largest_page=count // PAGES)
    twilio.page_delay = timedelta(milliseconds=5)
    return "--since", since.isoformat(), "--until", until.isoformat()


def wait_for_requests(twilio: SimulatedTwilio, count: int, process: subprocess.Popen[str]) -> None:
    """Return once Twilio has seen so many requests."""
    deadline = time.monotonic() + PATIENCE
    while len(twilio.requests) < count:
        assert process.poll() is None, f"it ended after {len(twilio.requests)} requests"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def asked(twilio):
    """How often each page was asked for."""
    return Counter((request.path, tuple(request.params)) for request in twilio.requests)


def facts(conn):
    """The events that are known, without who saw them when; a call freezes when we say so, not Twilio."""
    return Counter(
        conn.execute(
            "SELECT call_sid, event_type, event_status, CASE WHEN event_type <> 'call.frozen' THEN event_time END"
            " FROM call_events"
        ).fetchall()
    )


@pytest.mark.parametrize(
    ("count", "concurrency"),
    [(3_000, 1), pytest.param(20_000, 1, marks=pytest.mark.slow), pytest.param(20_000, 4, marks=pytest.mark.slow)],
)
def test_killed_three_times(run, cli, window, twilio, conn, connect, empty_database_url, not_equal, count, concurrency):
    """Equal at the end, no event twice or lost, and of each kill at most the pages in flight are asked for again."""
    env = {"RECONCILER_MAX_CONCURRENCY": str(concurrency)}
    for kill in range(1, KILLS + 1):
        process = cli.start(*window, **env)
        # Somewhere in the first, second and third part of the work, never at the same point of a page.
        wait_for_requests(twilio, kill * PAGES // (KILLS + 1) + kill, process)
        process.kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL
    done = run(*window, "--json", **env)
    assert done.code == 0
    assert done.result["resumed"]
    again = sum(times - 1 for times in asked(twilio).values())
    print(f"{concurrency} at once: {again} pages again after {KILLS} kills; {len(twilio.requests)} requests in all")
    assert again <= KILLS * concurrency
    assert 0 < done.result["calls_seen"] < count
    assert not_equal(conn) == []
    assert doubled_events(conn) == []
    assert run(*window, DATABASE_URL=empty_database_url).code == 0
    assert facts(conn) == facts(connect(empty_database_url))


def test_killed_between_its_rows_and_its_cursor(run, cli, calls, twilio, conn, database_url, not_equal):
    """The rows of a page are written, its cursor is not: neither stays, and that page alone is asked for again."""
    command = "--since", "3d", "--until", datetime.now(UTC).isoformat()
    env = {"RECONCILER_MAX_CONCURRENCY": "1"}
    twilio.faults.when(lambda request: request.param("StartTime>") is not None, Fault.hang())
    process = cli.start(*command, **env)
    assert twilio.faults.wait_until_hanging(1)
    with db.connect(database_url, purpose="test") as blocker:
        blocker.execute("BEGIN; LOCK TABLE sync_state IN SHARE MODE")
        before = versions(conn), conn.execute("SELECT * FROM sync_state").fetchall()
        twilio.faults.clear()
        wait_until_blocked(conn)
        process.kill()
        process.wait(PATIENCE)
        blocker.execute("ROLLBACK")
    assert (versions(conn), conn.execute("SELECT * FROM sync_state").fetchall()) == before
    assert run(*command, **env).code == 0
    assert sorted(asked(twilio).values())[-2:] == [1, 2]
    assert not_equal(conn) == []
    assert doubled_events(conn) == []


@pytest.mark.parametrize("table", ["call_events", pytest.param("messages", marks=pytest.mark.slow)])
def test_killed_while_it_migrates(cli, calls, field_database_url, connect, table, not_equal):
    """The schema half made, somebody in the way: the next run finishes the schema and then the backfill."""
    conn = connect(field_database_url)
    with db.connect(field_database_url, purpose="test") as blocker:
        blocker.execute(f"BEGIN; LOCK TABLE {table} IN SHARE MODE")
        process = cli.start("--since", "3d", DATABASE_URL=field_database_url)
        wait_until_blocked(conn)
        process.kill()
        process.wait(PATIENCE)
        blocker.execute("ROLLBACK")
    (applied,) = conn.execute("SELECT count(*) FROM reconciler_migrations").fetchone()
    assert applied < len(load_migrations())
    before = conn.execute("SELECT twilio_sid FROM messages").fetchall()
    done = cli.run("--since", "3d", "--json", DATABASE_URL=field_database_url)
    assert done.code == 0
    assert sum(line["event"] == "migration.applied" for line in done.logs) == len(load_migrations()) - applied
    assert cli.run("verify", DATABASE_URL=field_database_url).code == 0
    strangers = {f"{sid}: Twilio has no such call" for (sid,) in before}
    assert set(not_equal(conn)) == strangers


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_after_the_page_in_hand(run, cli, window, twilio, conn, not_equal, count, number):
    """Exit code 130; merged pages stay and are counted, none is read again, and stderr says how to continue.

    A page of recordings that waited for the last calls is asked for again.
    """
    process = cli.start(*window, "--json")
    wait_for_requests(twilio, 40, process)
    process.send_signal(number)
    stopped = cli.wait(process)
    assert stopped.code == 130
    assert stopped.result["interrupted"]
    assert stopped.said[0].startswith("reconcile: interrupted after ")
    assert "the same command" in stopped.said[1]
    (held,) = conn.execute("SELECT count(*) FROM messages").fetchone()
    assert stopped.result["inserted"] == held > 0
    done = run(*window, "--json")
    assert (done.code, done.result["resumed"]) == (0, True)
    assert stopped.result["calls_seen"] + done.result["calls_seen"] == count
    again = [path for (path, _), times in asked(twilio).items() if times > 1]
    assert [path for path in again if "Recordings" not in path] == []
    assert not_equal(conn) == []


def test_a_second_signal_ends_at_once(run, cli, calls, twilio, conn):
    """The process does not wait for an answer of Twilio. Committed rows stay.

    A page that had arrived by then may still be committed between the two signals.
    """
    twilio.faults.when(lambda request: request.param("StartTime>") is not None, Fault.hang())
    process = cli.start("--since", "3d")
    assert twilio.faults.wait_until_hanging(1)
    before = versions(conn)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)  # the page in hand is still waited for
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    assert set(before) <= set(versions(conn))


def test_a_signal_ends_a_wait(run, cli, calls, twilio):
    """Ctrl-C ends the run at once, also during the wait for a repeat."""
    twilio.faults.always(Fault.too_many_requests(retry_after=300))
    process = cli.start("--since", "3d")
    seen = threading.Event()
    lines = []

    def watch() -> None:
        for line in process.stderr:
            lines.append(line)
            if '"twilio.retried"' in line:
                seen.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert seen.wait(10)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 130
    watcher.join()


def test_interrupted_while_it_migrates(cli, field_database_url, connect):
    """130 and a word of it, without a traceback; the next `migrate` finishes."""
    conn = connect(field_database_url)
    with db.connect(field_database_url, purpose="test") as blocker:
        blocker.execute("BEGIN; LOCK TABLE call_events IN SHARE MODE")
        process = cli.start("migrate", DATABASE_URL=field_database_url)
        wait_until_blocked(conn)
        process.send_signal(signal.SIGINT)
        done = cli.wait(process)
        assert (done.code, done.said) == (130, ["reconcile: interrupted"])
        blocker.execute("ROLLBACK")
    assert cli.run("migrate", DATABASE_URL=field_database_url).code == 0
    assert cli.run("verify", DATABASE_URL=field_database_url).code == 0


def wait_until_blocked(conn):
    """Return once a session of ours waits for a lock on this database."""
    deadline = datetime.now(UTC) + timedelta(seconds=PATIENCE)
    while not conn.execute(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND application_name LIKE 'reconciler: %'"
    ).fetchall():
        assert datetime.now(UTC) < deadline

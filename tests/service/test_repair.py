"""The daemon repairs lost endings, beside other commands and subaccounts."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from reconciler.database import locks
from reconciler.database.store import Store
from reconciler.database.transaction import Origin
from reconciler.jobs.hot import SMALLEST_PAGE
from reconciler.simulator import Fault
from reconciler.twilio.records import read_record
from tests.harness.daemons import PATIENCE, eventually
from tests.harness.equality import differences, doubled_events, records_of
from tests.harness.names import ACCOUNT

HOUR = timedelta(hours=1)
FIRST, SECOND, CLOSED = ("AC" + 32 * digit for digit in "234")


def now() -> datetime:
    """The time, on the machine's clock and Twilio's."""
    return datetime.now(UTC)


def status_of(conn, sid: str) -> tuple[str, bool]:
    """Return the status in our row of a call."""
    return conn.execute("SELECT status, is_final FROM messages WHERE twilio_sid = %s", (sid,)).fetchone()


def test_a_lost_completed_is_repaired_within_one_interval(command, account, conn):
    """No webhook reported the end: the first run that begins after the end repairs it."""
    call = account.call(now() - 2 * HOUR, talks_for=None)
    daemon = command.daemon(RECONCILER_HOT_INTERVAL="2s")
    daemon.settle()
    assert status_of(conn, call.sid) == ("in-progress", False)
    account.hang_up(call.sid, now())
    ended = daemon.mark()
    daemon.wait_for_runs(2, since=ended)  # the first of them may have looked before
    assert status_of(conn, call.sid) == ("completed", True)
    repaired = daemon.wait_for("gap.filled", call_sid=call.sid, to_status="completed")
    assert (repaired["kind"], repaired["from_status"]) == ("stale", "in-progress")
    print(f"repaired {repaired['late_seconds']} s after its end")


def test_a_price_that_came_before_the_daemon_was_there_is_not_sealed_out(command, account, conn, database_url):
    """A backfill read the call before its price: the first freeze leaves it to the first warm."""
    call = account.call(now() - 30 * HOUR, talks_for=60, price="-0.01400", priced_after=3_600)
    seen_at = now() - 29.9 * HOUR
    with Store(database_url) as store:
        said = read_record(account.record(call.sid, seen_at), observed_at=seen_at)
        store.commit_page([said], origin=Origin("reconcile_backfill", "before"), now=seen_at)
    daemon = command.daemon()
    for job in ("freeze", "warm"):
        daemon.wait_for("job.finished", job=job)
    row = conn.execute("SELECT price, sync_state FROM messages WHERE twilio_sid = %s", (call.sid,)).fetchone()
    assert row == (Decimal("-0.01400"), "frozen")


def test_a_listener_is_notified_of_changed_calls(command, account, connect, database_url):
    """The notification comes on RECONCILER_NOTIFY_CHANNEL, at the commit."""
    listener = connect(database_url)
    listener.execute("LISTEN calls_changed")
    daemon = command.daemon(RECONCILER_NOTIFY_CHANNEL="calls_changed")
    daemon.wait_for_runs()
    sids = sorted(account.call(now() - HOUR / 60).sid for _ in range(2))
    heard: set[str] = set()
    for notification in listener.notifies(timeout=20):
        heard |= set(json.loads(notification.payload)["calls"])
        if heard >= set(sids):
            break
    assert sorted(heard) == sids


# Several accounts


@pytest.fixture
def subaccounts(account):
    """Two subaccounts with a call each, and one that is closed."""
    for sid in (FIRST, SECOND):
        account.add_subaccount(sid, "token-of-a-subaccount").call(now() - HOUR)
    account.add_subaccount(CLOSED, "token-of-a-subaccount", status="closed")
    return account.subaccounts


def test_a_refused_account_is_paused_and_the_others_continue(command, account, subaccounts, twilio, conn):
    """403 for a suspended account: one failure, in sync_state under its own name."""
    account.call(now() - HOUR)
    twilio.faults.when(lambda request: SECOND in request.path, Fault.forbidden())
    daemon = command.daemon(RECONCILER_ACCOUNTS="all")
    for sid in (ACCOUNT, FIRST):
        daemon.wait_for("job.finished", job="hot", account=sid, count=4)
    assert len(daemon.said("job.failed", job="hot", account=SECOND, kind="Refused")) == 1
    jobs = dict(conn.execute("SELECT job_name, last_error FROM sync_state WHERE job_name LIKE 'hot%'").fetchall())
    assert jobs.keys() == {"hot", f"hot:{FIRST}", f"hot:{SECOND}"}
    assert [job for job, error in jobs.items() if error] == [f"hot:{SECOND}"]
    assert not twilio.requests.count(path_contains=CLOSED)
    calls = {sid: daemon.metric("reconciler_calls_seen_total", job_name="hot", account=sid) for sid in (FIRST, SECOND)}
    assert calls[FIRST] > 0 == calls[SECOND]
    rows = conn.execute("SELECT account_sid FROM messages ORDER BY 1").fetchall()
    assert rows == [(ACCOUNT,), (FIRST,)]
    assert daemon.get("/readyz")[0] == 200


def test_named_accounts_are_looked_after_and_no_other(command, account, subaccounts, twilio, conn):
    """The main account is not among them, and only tries the credentials."""
    account.call(now() - HOUR)
    daemon = command.daemon(RECONCILER_ACCOUNTS=f"{FIRST},{SECOND}")
    for sid in (FIRST, SECOND):
        daemon.wait_for("job.finished", job="hot", account=sid, count=2)
    daemon.wait_for("daemon.readied")
    assert eventually(lambda: daemon.get("/readyz")[0] == 200)
    assert conn.execute("SELECT account_sid FROM messages ORDER BY 1").fetchall() == [(FIRST,), (SECOND,)]
    assert {e.param("PageSize") for e in twilio.requests if ACCOUNT in e.path} <= {"1"}


@pytest.mark.slow
def test_accounts_that_could_not_be_read_are_read_soon(command, subaccounts, twilio):
    """A short outage of Twilio at the start leaves no subaccount out for an hour."""
    twilio.faults.when(lambda request: request.path.endswith("/Accounts.json"), Fault.server_error(503), times=1)
    daemon = command.daemon(RECONCILER_ACCOUNTS="all")
    daemon.wait_for("accounts.failed")
    daemon.wait_for("job.finished", job="hot", account=FIRST)


# One run, asked for


def test_once_runs_each_job(command, account, conn):
    """It prints the counts as one JSON object."""
    account.generate(20, now() - 5 * HOUR, now() - HOUR)
    for job in ("hot", "warm", "cold", "freeze", "inbox", "housekeeping", "recordings", "webhooks"):
        done = command.run("once", job, "--json")
        assert done.code == 0, done.err
        counts = done.result
        assert counts["calls_seen"] >= 20 if job in ("hot", "cold") else True, job
    assert differences(conn, records_of(account, now())) == []


def test_once_prints_a_table_for_a_person(command, account):
    """The same counts."""
    account.call(now() - HOUR)
    done = command.run("once", "hot")
    assert done.code == 0
    assert any(line.split() == ["inserted", "1"] for line in done.out.splitlines()), done.out


def test_once_reads_from_a_given_moment_on(command, account):
    """`--from` ignores the cursor."""
    account.generate(300, now() - 20 * HOUR, now() - HOUR)

    def seen(*args: str) -> int:
        done = command.run("once", "hot", "--json", *args)
        assert done.code == 0, done.err
        return int(done.result["calls_seen"])

    assert (seen(), seen(), seen("--from", "1d")) == (300, SMALLEST_PAGE, 300)


def test_once_works_for_a_subaccount(command, subaccounts, conn):
    """`--account` runs a job with a name of its own."""
    assert json.loads(command.run("once", "hot", "--account", FIRST, "--json").out)["inserted"] == 1
    assert conn.execute("SELECT job_name FROM sync_state ORDER BY 1").fetchall() == [
        (f"account:{FIRST}",),
        (f"hot:{FIRST}",),
    ]


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["nonsense"], "is no job"),
        ([], "JOB"),
        (["freeze", "--from", "1d"], "--from"),
        (["cold", "--from", "1d"], "--from"),
        (["inbox", "--account", FIRST], "--account"),
        (["hot", "--account", "AC1"], "--account"),
        (["hot", "--from", "yesterday-ish"], "--from"),
        (["hot", "--from", "2y"], "--from"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(command, args, word):
    """Exit code 64, before anything is done."""
    done = command.run("once", *args)
    assert done.code == 64, done.err
    assert word in done.err


def test_a_job_that_the_daemon_runs_is_held(command, twilio):
    """Exit code 75."""
    daemon = command.daemon()
    daemon.settle()
    twilio.page_delay = timedelta(seconds=5)
    asked = len(twilio.requests)
    eventually(lambda: len(twilio.requests) > asked)
    done = command.run("once", "hot")
    assert done.code == 75, done.err
    assert "another process is running hot" in done.err


def test_the_daemon_skips_a_job_that_another_runs(command, conn):
    """The skipped run is no failure, and the next run continues."""
    daemon = command.daemon()
    daemon.settle()
    eventually(lambda: locks.try_advisory_lock(conn, "hot"))
    skipped = daemon.wait_for("job.skipped", job="hot", account=ACCOUNT)
    assert skipped["why"] == "another process is running hot"
    locks.release_advisory_lock(conn, "hot")
    daemon.wait_for_runs(2)
    assert daemon.metric("reconciler_runs_total", job_name="hot", outcome="skipped") >= 1
    assert daemon.said("job.failed") == []


# A backfill beside it


def test_a_backfill_keeps_hot_from_none_of_its_runs(command, account, twilio, conn):
    """hot runs while Twilio withholds a page from a backfill; together they keep both limits."""
    account.generate(3000, now() - timedelta(days=29), now() - 30 * HOUR)
    daemon = command.daemon(RECONCILER_MAX_CONCURRENCY="2")
    daemon.settle()
    last_week = f"{now() - timedelta(days=7):%FT%TZ}"
    twilio.faults.when(lambda request: (request.param("StartTime>") or last_week) < last_week, Fault.hang(), times=1)
    twilio.page_delay = timedelta(seconds=0.05)
    twilio.requests.clear()
    with ThreadPoolExecutor(1) as pool:
        backfill = pool.submit(command.run, "--since", "30d", "--json", RECONCILER_MAX_CONCURRENCY="4")
        assert twilio.faults.wait_until_hanging(timeout=PATIENCE)
        daemon.wait_for_runs(3)
        assert not backfill.done()
        twilio.faults.release()
        done = backfill.result()
    assert done.code == 0, done.err
    assert daemon.said("job.skipped") == []
    assert twilio.requests.max_in_flight <= 6
    assert differences(conn, records_of(account, now())) == []
    assert doubled_events(conn) == []

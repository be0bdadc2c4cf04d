"""A backfill that the daemons of a fleet read: `reconcile --since 30d --fleet`."""

from __future__ import annotations

import signal
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import chain

import pytest

from reconciler.database import engine_schema
from reconciler.simulator import Fault
from reconciler.simulator.switches import Switches
from tests.harness.daemons import eventually
from tests.harness.equality import differences, doubled_events, records_of

FLEET = {"RECONCILER_ENGINE": "procrastinate", "RECONCILER_WORKERS": "6", "RECONCILER_HOT_INTERVAL": "1h"}
SUBACCOUNTS = tuple("AC" + 32 * digit for digit in "234")


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def history(account):
    """Some hundred calls of 24 days, one of them still open."""
    account.generate(600, now() - timedelta(days=24), now() - timedelta(hours=2))
    account.call(now() - timedelta(minutes=5), talks_for=7200)
    return account


@pytest.fixture
def fleet(command):
    """Starts daemons of a fleet that have nothing to do but what the test lets them."""

    def start(count: int = 2, **env):
        command.env |= FLEET
        daemons = [command.daemon(**env) for _ in range(count)]
        for daemon in daemons:
            daemon.wait_for("daemon.readied", within=60)
        for job in ("hot", "warm", "cold", "freeze", "inbox", "housekeeping", "recordings", "webhooks"):
            eventually(lambda job=job: any(d.said("job.finished", job=job) for d in daemons), within=60)  # type: ignore[misc]
        return daemons

    return start


def until_equal(conn, *accounts) -> None:
    """Return when the database equals Twilio at one moment."""

    def is_equal() -> bool:
        moment = now()
        records = list(chain.from_iterable(records_of(one, moment) for one in accounts))
        return not differences(conn, records) and now() - moment < timedelta(seconds=1)

    eventually(is_equal, within=30)


def slices_left(conn) -> list[str]:
    """The rows of slices that nobody has counted."""
    return [
        name for (name,) in conn.execute("SELECT job_name FROM sync_state WHERE job_name LIKE 'backfill:AC%.%'")
    ]  # fmt: skip


def empty(conn) -> None:
    """Forget all calls, as a disaster would."""
    conn.execute("SET session_replication_role = replica")
    conn.execute("TRUNCATE messages, call_events, sync_state")
    conn.execute("SET session_replication_role = origin")


def listings(twilio) -> int:
    """How many pages of calls and recordings were asked for."""
    return len([request for request in twilio.requests if request.path.endswith(("/Calls.json", "/Recordings.json"))])


def test_workers_share_the_slices_and_ask_no_more_than_one_process_would(fleet, command, history, twilio, conn):
    """Both daemons read, and the counts add up. A second backfill writes nothing."""
    daemons = fleet()
    empty(conn)
    before = listings(twilio)
    done = command.run("--since", "30d", "--fleet", "--json")
    assert done.code == 0, done.err
    by_fleet = listings(twilio) - before
    until_equal(conn, history)
    assert doubled_events(conn) == []
    assert done.result["calls_seen"] == 601
    assert (done.result["inserted"], done.result["slices_failed"]) == (601, [])
    assert done.result["slices_done"] == done.result["slices"] > 24
    assert done.result["requests"] == by_fleet
    assert all(daemon.said("job.finished", job="backfill") for daemon in daemons)
    assert slices_left(conn) == []
    empty(conn)
    before = listings(twilio)
    alone = command.run("--since", "30d", "--json")
    assert by_fleet <= 1.02 * (listings(twilio) - before)
    assert (alone.result["calls_seen"], alone.result["inserted"]) == (601, 601)
    again = command.run("--since", "30d", "--fleet", "--json")
    assert (again.code, again.result["calls_seen"], again.result["inserted"], again.result["updated"]) == (0, 601, 0, 0)


def test_a_worker_that_dies_loses_nothing(fleet, command, history, twilio, conn):
    """Its slices are read by the other, from the page where it stopped."""
    daemons = {daemon.process.pid: daemon for daemon in fleet()}
    empty(conn)
    twilio.page_delay = timedelta(seconds=1)
    process = command.start("--since", "30d", "--fleet", "--json")
    eventually(lambda: len(reading(conn)) == 2, within=60)
    daemons.pop(reading(conn).pop()).tell(signal.SIGKILL)
    twilio.page_delay = timedelta(seconds=0.1)
    done = command.wait(process)
    assert (done.code, done.result["slices_failed"]) == (0, [])
    assert done.result["lag_seconds"] > 0  # the first pages took a second each
    until_equal(conn, history)
    assert doubled_events(conn) == []
    assert slices_left(conn) == []


def reading(conn) -> list[int]:
    """The processes that read slices."""
    return [
        worker.process
        for worker in engine_schema.read_workers(conn)
        if worker.process is not None and any(job.startswith("backfill:") for job in worker.running)
    ]


@pytest.fixture
def busy_day(account, twilio):
    """A day with many pages of calls, some of them with a recording."""
    noon = datetime.combine(now().date() - timedelta(days=2), datetime.min.time(), UTC) + timedelta(hours=12)
    account.generate(600, noon - timedelta(hours=11), noon + timedelta(hours=11))
    twilio.switches = Switches(largest_page=20)
    return account


def test_a_busy_day_is_read_by_all_workers(fleet, command, busy_day, twilio, conn):
    """The worker that reads its first page hands out its hours. No page of them is asked for twice."""
    daemons = fleet(3)
    empty(conn)
    before = len(twilio.requests)
    twilio.page_delay = timedelta(seconds=0.2)
    done = command.run("--since", "3d", "--fleet", "--json")
    assert (done.code, done.result["slices_failed"], done.result["calls_seen"]) == (0, [], 600)
    assert done.result["slices_done"] == done.result["slices"] > 10
    until_equal(conn, busy_day)
    assert doubled_events(conn) == []
    assert slices_left(conn) == []
    for daemon in daemons:
        assert [line for line in daemon.said("job.finished", job="backfill") if line["calls_seen"] > 1]
    asked = Counter(str(request.params) for request in list(twilio.requests)[before:])
    assert [params for params, times in asked.items() if times > 1] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_cut_day_goes_on_when_the_command_is_typed_again(fleet, command, busy_day, twilio, conn, number):
    """The plan has its hours, or the cursor of the slice that was cut."""
    fleet()
    empty(conn)
    twilio.page_delay = timedelta(seconds=0.2)
    process = command.start("--since", "3d", "--fleet", "--json")
    eventually(lambda: any("hours" in name for name in slices_left(conn)), within=60)
    process.send_signal(number)
    process.wait(30)
    twilio.page_delay = timedelta(0)
    done = command.run("--since", "3d", "--fleet", "--json")
    assert (done.code, done.result["resumed"], done.result["slices_failed"]) == (0, True, [])
    assert done.result["slices_done"] == done.result["slices"]
    until_equal(conn, busy_day)
    assert doubled_events(conn) == []
    assert slices_left(conn) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_command_goes_on_when_it_is_typed_again(fleet, command, history, twilio, conn, number):
    """After a kill and after an interruption it reads no finished slice again."""
    fleet()
    empty(conn)
    before = listings(twilio)
    twilio.page_delay = timedelta(seconds=0.5)
    process = command.start("--since", "30d", "--fleet", "--json")
    eventually(lambda: plan_of(conn) and plan_of(conn)["done"] >= 5, within=60)
    process.send_signal(number)
    process.wait(30)
    twilio.page_delay = timedelta(0)
    eventually(lambda: not reading(conn), within=60)
    done = command.run("--since", "30d", "--fleet", "--json")
    assert (done.code, done.result["resumed"]) == (0, True)
    until_equal(conn, history)
    assert doubled_events(conn) == []
    asked = listings(twilio) - before
    empty(conn)
    before = listings(twilio)
    assert command.run("--since", "30d", "--json").code == 0
    # Typed again, it asks once more about five statuses and today, and begins with slices of one day.
    assert asked <= (listings(twilio) - before) + 12


def plan_of(conn):
    """The plan of the account's backfill, as it was committed."""
    row = conn.execute("SELECT cursor FROM sync_state WHERE job_name LIKE 'backfill:AC%:fleet'").fetchone()
    return row and row[0]


def test_accounts_are_read_at_once_and_a_refused_one_fails_alone(fleet, command, account, twilio, conn):
    """The result names the account; the others are complete."""
    others = [account.add_subaccount(sid, "token-of-a-subaccount") for sid in SUBACCOUNTS]
    for one in (account, *others):
        one.generate(20, now() - timedelta(days=5), now() - timedelta(hours=1))
    fleet(RECONCILER_ACCOUNTS="all")
    twilio.faults.when(lambda request: SUBACCOUNTS[1] in request.path, Fault.forbidden())
    done = command.run("--since", "10d", "--fleet", "--json", RECONCILER_ACCOUNTS="all")
    assert done.code == 77
    accounts = done.result["accounts"]
    assert [accounts[sid]["calls_seen"] for sid in (account.sid, *SUBACCOUNTS)] == [20, 20, 0, 20]
    assert accounts[SUBACCOUNTS[1]]["slices_failed"]
    twilio.faults.clear()
    done = command.run("--since", "10d", "--fleet", "--json", RECONCILER_ACCOUNTS="all")
    assert (done.code, done.result["resumed"]) == (0, True)
    until_equal(conn, account, *others)


def test_without_a_fleet_the_command_says_what_is_missing(command):
    """64 if the setting is local, or with --dry-run; 69 if no daemon works."""
    local = command.run("--since", "1d", "--fleet")
    assert (local.code, "RECONCILER_ENGINE=procrastinate" in local.err) == (64, True)
    dry = command.run("--since", "1d", "--fleet", "--dry-run", **FLEET)
    assert (dry.code, "--dry-run" in dry.err) == (64, True)


@pytest.mark.slow
def test_without_workers_the_command_gives_up(command, history):
    """It does so after half a minute, with 69."""
    done = command.run("--since", "1d", "--fleet", **FLEET)
    assert done.code == 69
    assert "no daemon of the fleet works" in done.err

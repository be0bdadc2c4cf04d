"""Several daemons that share the work (RECONCILER_ENGINE=procrastinate)."""

from __future__ import annotations

import signal
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain

import pytest

from reconciler.database import engine_schema
from tests.harness.daemons import eventually
from tests.harness.equality import differences, doubled_events, records_of

FLEET = {"RECONCILER_ENGINE": "procrastinate", "RECONCILER_WORKERS": "4"}
SUBACCOUNTS = tuple("AC" + 32 * digit for digit in "23456789")
TAKEN_UP_WITHIN = 30.0  # seconds, however its daemon died


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def accounts(account):
    """The main account and eight subaccounts with a call each."""
    made = [account, *(account.add_subaccount(sid, "token-of-a-subaccount") for sid in SUBACCOUNTS)]
    for one in made:
        one.call(now() - timedelta(hours=1))
    return made


@pytest.fixture
def fleet(command):
    """Starts daemons of a fleet, and returns them when they work."""

    def start(count: int = 2, **env):
        daemons = [command.daemon(**FLEET, **env) for _ in range(count)]
        for daemon in daemons:
            daemon.wait_for("daemon.readied", within=60)
        return daemons

    return start


def until_equal(conn, *accounts) -> None:
    """Return when the database equals Twilio at one moment."""

    def is_equal() -> bool:
        moment = now()
        records = list(chain.from_iterable(records_of(one, moment) for one in accounts))
        return not differences(conn, records) and now() - moment < timedelta(seconds=1)

    eventually(is_equal, within=60)


def process_at(conn, job: str) -> int | None:
    """The process that runs the job; None if none does."""
    return next((worker.process for worker in engine_schema.read_workers(conn) if job in worker.running), None)


def test_daemons_share_the_accounts_and_the_database_becomes_equal(fleet, accounts, conn):
    """Each daemon runs some of the jobs; no job runs in both at once; every account's calls land once."""
    first, second = fleet(RECONCILER_ACCOUNTS="all")
    eventually(lambda: first.mark() >= 5 and second.mark() >= 5, within=60)
    until_equal(conn, *accounts)
    assert doubled_events(conn) == []
    assert [daemon.said("job.skipped") for daemon in (first, second)] == [[], []]
    assert {daemon.get("/readyz")[0] for daemon in (first, second)} == {200}
    workers = engine_schema.read_workers(conn)
    assert {worker.process for worker in workers} == {first.process.pid, second.process.pid}
    assert {worker.slots for worker in workers} == {4}
    assert [daemon.stop() for daemon in (first, second)] == [0, 0]
    assert engine_schema.read_workers(conn) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_daemon_leaves_is_taken_up_by_another(fleet, twilio, account, conn, number):
    """Whichever daemon runs cold is killed, or told to stop, in the middle: another finishes it."""
    for day in range(3):
        account.call(now() - timedelta(days=day, hours=1))
    twilio.page_delay = timedelta(seconds=1)
    daemons = {daemon.process.pid: daemon for daemon in fleet()}
    pid = eventually(lambda: process_at(conn, "cold"), within=30)
    gone, left = daemons.pop(pid), next(iter(daemons.values()))
    told = time.monotonic()
    gone.tell(number)
    eventually(lambda: process_at(conn, "cold") == left.process.pid, within=TAKEN_UP_WITHIN)
    print(f"{number.name}: taken up after {time.monotonic() - told:.1f} s")
    twilio.page_delay = timedelta(0)
    left.wait_for("job.finished", job="cold", within=60)
    until_equal(conn, account)
    left.wait_for_runs(2)
    assert doubled_events(conn) == []
    assert len(engine_schema.read_workers(conn)) == 1


@pytest.mark.slow
def test_a_machine_that_is_cut_off_loses_its_runs_to_another(fleet, twilio, account, conn):
    """SIGSTOP leaves its connections open, and its job's lock with them, until the server ends the silent session."""
    account.call(now() - timedelta(hours=1))
    twilio.page_delay = timedelta(seconds=2)
    daemons = {daemon.process.pid: daemon for daemon in fleet()}
    pid = eventually(lambda: process_at(conn, "cold"), within=30)
    stopped, left = daemons.pop(pid), next(iter(daemons.values()))
    told = time.monotonic()
    stopped.tell(signal.SIGSTOP)
    twilio.page_delay = timedelta(0)
    left.wait_for("task.reclaimed", task="cold", within=TAKEN_UP_WITHIN)
    left.wait_for("job.finished", job="cold", within=75)
    print(f"SIGSTOP: cold finished elsewhere after {time.monotonic() - told:.1f} s")
    stopped.tell(signal.SIGCONT)
    eventually(lambda: len(engine_schema.read_workers(conn)) == 2, within=30)
    ran = stopped.mark(), left.mark()
    eventually(lambda: stopped.mark() > ran[0] and left.mark() > ran[1], within=60)
    until_equal(conn, account)
    assert doubled_events(conn) == []


def test_work_goes_on_when_the_database_was_away(fleet, database, account, conn):
    """No daemon ends, and each is known again."""
    account.call(now() - timedelta(hours=1))
    daemons = fleet()
    eventually(lambda: known(conn) == {daemon.process.pid for daemon in daemons})
    database.down()
    for daemon in daemons:
        eventually(partial(is_ready, daemon, 503), within=30)
    account.call(now() - timedelta(minutes=1))
    database.up()
    for daemon in daemons:
        eventually(partial(is_ready, daemon, 200), within=60)
    until_equal(conn, account)
    assert [daemon.process.poll() for daemon in daemons] == [None, None]
    eventually(lambda: known(conn) == {daemon.process.pid for daemon in daemons})


def known(conn) -> set[int | None]:
    """The processes that are known as workers."""
    return {worker.process for worker in engine_schema.read_workers(conn)}


def is_ready(daemon, status: int) -> bool:
    """Whether /readyz answers with that status."""
    return daemon.get("/readyz")[0] == status


HIDDEN = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name.partition(".")[0] == "procrastinate" else find_spec(name, path, target)
)
"""


def test_without_the_extra_a_local_daemon_works_and_a_fleet_names_what_to_install(command, tmp_path, account):
    """The engine's package is hidden from both daemons; only the one that needs it fails, with 78."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text(HIDDEN)
    local = command.daemon(PYTHONPATH=str(tmp_path / "hidden"))
    local.wait_for_runs(1)
    done = command.run("run", PYTHONPATH=str(tmp_path / "hidden"), RECONCILER_LOG_FORMAT="console", **FLEET)
    assert done.code == 78
    assert "RECONCILER_ENGINE=procrastinate" in done.err
    assert engine_schema.INSTALL in done.err


def test_a_fleet_counts_a_run_that_is_due_while_the_last_goes_on(fleet, twilio, account):
    """The leader does not defer it; the log says why."""
    twilio.page_delay = timedelta(seconds=3)
    daemons = fleet()
    leader = next(daemon for daemon in daemons if daemon.said("lead.acquired"))
    leader.wait_for("job.missed", job="hot", why="overrun", within=30)
    assert [daemon.said("job.skipped", job="hot") for daemon in daemons] == [[], []]

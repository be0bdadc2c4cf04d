"""Runs that hang, overrun, are late or have a bug: in this process, with jobs and times of the test's own."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import structlog

import reconciler.service.daemon
from reconciler import metrics
from reconciler.errors import ExitCode, ReconcilerError, Refused, Unavailable
from reconciler.jobs.registry import KINDS, Kind
from reconciler.service.clock import ClockWatch
from reconciler.service.daemon import Daemon, Handler
from reconciler.service.runner import Setup, Waits
from reconciler.service.systemd import Notifier
from reconciler.service.workers import WorkerPool
from reconciler.settings import Settings
from reconciler.simulator import Fault
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts
from reconciler.sync.run import run
from reconciler.twilio.accounts import Accounts
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.concurrency import Pacer
from tests.harness.daemons import eventually
from tests.harness.names import ACCOUNT, TOKEN

Work = Callable[[JobContext], Counts]


@pytest.fixture
def log() -> Iterator[list[Any]]:
    """The log lines."""
    with structlog.testing.capture_logs() as log:
        yield log


def said(log: list[Any], event: str) -> list[Any]:
    """Return the lines of that event."""
    return [line for line in list(log) if line["event"] == event]


@pytest.fixture
def setup(twilio, database_url) -> Iterator[Setup]:
    """The settings of a daemon, hot every second."""
    settings = Settings.read({
        "TWILIO_BASE_URL": twilio.base_url, "TWILIO_ACCOUNT_SID": ACCOUNT, "TWILIO_AUTH_TOKEN": TOKEN,
        "DATABASE_URL": database_url, "RECONCILER_HOT_INTERVAL": "1s",
    })  # fmt: skip
    client = TwilioClient(settings.credentials(), pacer=Pacer(4))
    yield Setup(settings, database_url, client, Accounts(ACCOUNT, (ACCOUNT,)))
    twilio.faults.clear()
    client.close()


@pytest.fixture
def set_to_work(setup) -> Iterator[Callable[..., list[ReconcilerError]]]:
    """Start workers with the test's own jobs, every second; return the errors that do not heal."""
    pools: list[WorkerPool] = []

    def start(
        *, within: float = 60, every: timedelta = timedelta(seconds=1), waits: Waits | None = None, **work: Work
    ) -> list[ReconcilerError]:
        kinds = {name: Kind(do, lambda _: every, timedelta(seconds=within), False) for name, do in work.items()}
        fatal: list[ReconcilerError] = []
        pool = WorkerPool(lambda: setup, on_fatal=fatal.append, kinds=kinds, waits=waits)
        pools.append(pool)
        pool.start()
        return fatal

    yield start
    for pool in pools:
        assert pool.stop(within=20) == []


def as_run(work: Callable[[Any], None]) -> Work:
    """Return a job whose run calls the function."""

    def do(context: JobContext) -> Counts:
        with run(context, Counts()) as this:
            work(this)
        return this.counts

    return do


def state(conn, job: str) -> Any:
    """Return the last success and the last error of a job."""
    return conn.execute(
        "SELECT last_success_at, last_error FROM sync_state WHERE job_name = %s", (job,)
    ).fetchone() or (None, None)


def test_a_run_over_its_time_fails_and_the_next_goes_on(set_to_work, conn, log):
    """It is stopped between two pages; sync_state has the reason; the next run is another one."""
    runs = []

    def dawdle(this: Any) -> None:
        runs.append(this)
        if len(runs) == 1:
            assert this.stop.wait(20)

    set_to_work(freeze=as_run(dawdle), within=0.3)
    eventually(lambda: "not done within" in (state(conn, "freeze")[1] or ""))
    eventually(lambda: state(conn, "freeze")[0])
    assert [line["kind"] for line in said(log, "job.failed")] == ["Unfinished"]


def test_an_overrun_is_counted(set_to_work, log):
    """A run that is due while the previous one goes on counts as missed."""
    labels = ("freeze", "")
    before = metrics.missed_runs.labels(*labels)._value.get()
    missed = threading.Event()

    def work(_: Any) -> None:
        assert missed.wait(20)

    set_to_work(freeze=as_run(work))
    try:
        eventually(lambda: said(log, "job.missed"))
    finally:
        missed.set()
    line = said(log, "job.missed")[0]
    assert (line["why"], line["count"]) == ("overrun", 1)
    assert metrics.missed_runs.labels(*labels)._value.get() > before


def test_late_runs_are_counted_and_made_up_for_by_one(set_to_work, log, monkeypatch):
    """The machine slept: one run works through everything, and the missed runs are counted."""
    from apscheduler.schedulers import base

    runs: list[float] = []
    set_to_work(freeze=as_run(lambda _: runs.append(time.monotonic())))
    eventually(lambda: len(runs) >= 2)

    class Later(base.datetime):  # type: ignore[misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return super().now(tz) + timedelta(seconds=60)

    monkeypatch.setattr(base, "datetime", Later)
    late = eventually(lambda: [line for line in said(log, "job.missed") if line["why"] == "late"])
    assert 50 <= late[0]["count"] <= 60
    assert len(late) == 1


def test_a_bug_in_one_job_ends_no_other(set_to_work, log):
    """It is logged with its traceback each time; the other jobs continue."""
    ran = []

    def fail(_: Any) -> None:
        raise LookupError("a bug")

    fatal = set_to_work(freeze=as_run(fail), inbox=as_run(lambda _: ran.append(1)))
    eventually(lambda: len(said(log, "program.failed")) >= 2 and len(ran) >= 3)
    assert said(log, "program.failed")[0]["kind"] == "LookupError"
    assert fatal == []


def test_an_error_that_does_not_heal_is_reported_the_third_time_in_a_row(set_to_work):
    """A failure of another kind in between restarts the count."""
    errors = [Refused("one"), Refused("two"), Unavailable("three"), Refused("four"), Refused("five"), Refused("six")]
    left = list(errors)

    def fail(_: Any) -> None:
        if left:
            raise left.pop(0)

    fatal = set_to_work(freeze=as_run(fail))
    eventually(lambda: fatal)
    assert fatal == errors[-1:]


def test_a_rare_job_that_fails_is_tried_again_soon(set_to_work, log):
    """A daily job does not wait for a day because the database was away for a minute."""

    def fail(_: Any) -> None:
        raise Unavailable("away")

    waits = Waits(retried_after=timedelta(seconds=1))
    set_to_work(freeze=as_run(fail), every=timedelta(days=1), waits=waits)
    eventually(lambda: len(said(log, "job.failed")) >= 2)
    first, second = said(log, "job.failed")[:2]
    assert first["will_retry_at"] < second["will_retry_at"]


# The watch over them


@pytest.fixture
def daemon(setup, monkeypatch, short_folder, twilio, wall) -> Iterator[Daemon]:
    """A daemon in a thread, with real jobs; a job that makes no progress for a second hangs."""
    monkeypatch.setattr(reconciler.service.daemon, "TICK", 0.05)
    kinds, waits = {"hot": KINDS["hot"]}, Waits(stalled_after=timedelta(seconds=1))
    daemon = Daemon(
        setup, lambda: setup.settings, lambda _: setup.url, Alive(), kinds=kinds, waits=waits, clock=ClockWatch(wall)
    )
    handlers: dict[int, Handler] = {}
    thread = threading.Thread(target=daemon.run, args=(handlers.__setitem__,))
    thread.start()
    eventually(lambda: daemon.health().is_ready)
    yield daemon
    twilio.faults.clear()
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    thread.join(20)
    assert not thread.is_alive()


class Wall:
    """The machine's clock, which a test may set."""

    off = timedelta(0)

    def __call__(self) -> float:
        return time.time() + self.off.total_seconds()


@pytest.fixture
def wall(monkeypatch) -> Wall:
    """The wall clock of the daemon and of its schedule."""
    from apscheduler.schedulers import base

    wall = Wall()

    class Stepped(base.datetime):  # type: ignore[misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return super().now(tz) + wall.off

    monkeypatch.setattr(base, "datetime", Stepped)
    return wall


class Alive(Notifier):
    """A notifier that counts how often the watchdog was fed."""

    fed = 0

    def __init__(self) -> None:
        super().__init__(None, timedelta(seconds=0.15))

    def alive(self) -> None:
        type(self).fed += 1


def assert_starved_until(daemon: Daemon, release: Callable[[], None]) -> None:
    """Until `release` the watchdog is not fed and /healthz says why; afterwards both recover."""
    eventually(lambda: not daemon.health().is_alive)
    assert daemon.health()[:3] == (False, False, "hot makes no progress")
    ticked_at = daemon._ticked_at
    eventually(lambda: daemon._ticked_at > ticked_at)  # a check that began before ours may have fed it since
    fed, ticked_at = Alive.fed, daemon._ticked_at
    eventually(lambda: daemon._ticked_at > ticked_at + 0.5)  # the main thread turns all the while
    assert Alive.fed == fed
    release()
    eventually(lambda: daemon.health().is_ready and Alive.fed > fed)


@pytest.mark.parametrize("seconds", [-3600, -20, 3600])
def test_a_clock_that_is_set(daemon, log, wall, twilio, seconds):
    """The intervals stay the same; the step of the clock is in the log and in /readyz."""
    wall.off = timedelta(seconds=seconds)
    assert abs(eventually(lambda: said(log, "clock.stepped"))[0]["seconds"] - seconds) < 1
    asked = len(twilio.requests)
    eventually(lambda: len(twilio.requests) >= asked + 3, within=8)
    assert f"this machine's clock was set by {seconds:+,} s" in daemon.health().reason
    assert daemon.health().is_ready
    assert len(said(log, "clock.stepped")) == 1


def _more_than(count: int, look: Callable[[], Any]) -> bool:
    return len(look()) > count


def test_a_clock_that_is_fast_for_a_moment(daemon, log, wall, twilio):
    """The clock steps forward and back, and the schedule follows both steps."""
    for off in (timedelta(seconds=20), timedelta(0)):
        wall.off = off
        steps = len(said(log, "clock.stepped"))
        eventually(partial(_more_than, steps, lambda: said(log, "clock.stepped")))
        asked = len(twilio.requests)
        eventually(partial(_more_than, asked + 2, lambda: twilio.requests), within=8)


# Not a lock: a job gives up waiting for one after a moment, says so and tries again, which is progress.
HANG = """
    CREATE TABLE hanging AS SELECT 1;
    CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        WHILE EXISTS (SELECT FROM hanging) LOOP PERFORM pg_sleep(0.01); END LOOP;
        RETURN NULL;
    END $$;
    CREATE TRIGGER hang BEFORE INSERT OR UPDATE ON sync_state EXECUTE FUNCTION hang()
"""
IS_HANGING = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"


def test_a_job_that_hangs_in_the_database_starves_the_watchdog(daemon, conn):
    """Its statement does not return."""
    conn.execute(HANG)
    eventually(lambda: conn.execute(IS_HANGING).fetchall())
    assert_starved_until(daemon, lambda: conn.execute("DELETE FROM hanging") and None)


def test_a_job_that_hangs_at_twilio_starves_the_watchdog(daemon, twilio):
    """Twilio sends no answer."""
    twilio.faults.always(Fault.hang())
    assert twilio.faults.wait_until_hanging()
    assert_starved_until(daemon, twilio.faults.clear)


class Buggy(Alive):
    """A notifier with a bug, which the main thread meets in its first round."""

    def status(self, text: str) -> None:
        raise KeyError(text)


def test_a_bug_in_the_main_thread_ends_it_in_order(setup, log):
    """Exit code 70: no job goes on with nobody watching."""
    daemon = Daemon(setup, lambda: setup.settings, lambda _: setup.url, Buggy())
    assert daemon.run(lambda *_: None) == ExitCode.BUG
    assert said(log, "program.failed")[0]["kind"] == "KeyError"
    assert said(log, "daemon.stopped")[0]["exit_code"] == 70

"""Two daemons on one database: one works, the other stands by and takes over."""

from __future__ import annotations

import signal
import socket
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tests.harness.daemons import eventually
from tests.harness.equality import differences, doubled_events, records_of

LIFE = ["queued", "ringing", "in-progress", "completed"]


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def lives(account):
    """Start calls that ring, talk and end one after another while the test runs."""
    begin = now() - timedelta(seconds=4)
    for second in range(0, 60, 2):
        account.call(begin + timedelta(seconds=second), rings_for=2, talks_for=3, priced_after=2)
    return account


def assert_each_fact_landed_once(conn, account) -> None:
    """Each call has one created event, and each status once and in the order of its life."""
    assert doubled_events(conn) == []
    told: dict[str, list[str]] = {}
    for sid, kind, status in conn.execute("SELECT call_sid, event_type, event_status FROM call_events ORDER BY id"):
        if kind in ("call.created", "call.status_changed"):
            told.setdefault(sid, []).append(status)
    assert told
    for statuses in told.values():
        assert Counter(statuses).most_common(1)[0][1] == 1, statuses
        assert statuses == sorted(statuses, key=LIFE.index)
    (made,) = conn.execute("SELECT count(*) FROM call_events WHERE event_type = 'call.created'").fetchone()
    assert made == len(told)


def until_equal(conn, account) -> None:
    """Return when the database equals Twilio at one moment."""

    def is_equal() -> bool:
        moment = now()
        return not differences(conn, records_of(account, moment)) and now() - moment < timedelta(seconds=1)

    eventually(is_equal, within=30)


def test_the_second_stands_by_and_takes_over_when_the_first_is_killed(command, systemd, lives, conn):
    """The standby is ready for systemd, but /readyz says that it does no work, and why."""
    first = command.daemon()
    first.wait_for_runs(2)
    second = command.daemon()
    second.wait_for("daemon.readied", leads=False)
    standing_by = f"standing by: {socket.gethostname()[:30]}/{first.process.pid} leads"
    assert second.get("/readyz") == (503, f"{standing_by}\n")
    assert second.get("/healthz") == (200, "alive\n")
    assert second.metric("reconciler_leading") == 0
    assert first.metric("reconciler_leading") == 1
    systemd.wait_for("STATUS", standing_by)
    assert second.said("job.finished") == []
    killed = time.monotonic()
    first.tell(signal.SIGKILL)
    second.wait_for("lead.acquired")
    led = time.monotonic() - killed
    second.wait_for_runs()
    print(f"kill -9: led after {led:.2f} s, first run after {time.monotonic() - killed:.2f} s")
    eventually(lambda: second.get("/readyz")[0] == 200)
    second.wait_for_runs(3)
    assert_each_fact_landed_once(conn, lives)
    assert first.said("lead.dropped") == []


def test_the_first_hands_over_when_it_is_told_to_stop(command, lives, conn):
    """The lead ends at once, with the last page."""
    first = command.daemon()
    first.wait_for_runs(1)
    second = command.daemon()
    second.wait_for("daemon.readied")
    assert first.stop() == 0
    second.wait_for_runs(2)
    assert_each_fact_landed_once(conn, lives)


@pytest.mark.slow
def test_one_that_was_stopped_loses_the_lead_and_notices(command, lives, conn):
    """SIGSTOP: the server ends its silent session. SIGCONT: the daemon notices, and stands by."""
    first = command.daemon()
    first.wait_for_runs(2)
    second = command.daemon()
    second.wait_for("daemon.readied")
    stopped = time.monotonic()
    first.tell(signal.SIGSTOP)
    second.wait_for("lead.acquired", within=30)
    led = time.monotonic() - stopped
    second.wait_for_runs(within=75)
    print(f"SIGSTOP: led after {led:.2f} s, first run after {time.monotonic() - stopped:.2f} s")
    first.tell(signal.SIGCONT)
    first.wait_for("lead.dropped")
    standing_by = f"standing by: {socket.gethostname()[:30]}/{second.process.pid} leads\n"
    eventually(lambda: first.get("/readyz") == (503, standing_by))
    ran = first.mark()
    second.wait_for_runs(3)
    assert first.mark() - ran <= 1  # the run it was stopped in may have ended
    assert first.process.poll() is None
    assert_each_fact_landed_once(conn, lives)


@pytest.mark.slow
def test_one_that_was_stopped_within_a_run_loses_the_job(command, twilio, lives, conn):
    """Its session ends with the job's lock, and its late page is not written."""
    first = command.daemon()
    first.settle()
    second = command.daemon()
    second.wait_for("daemon.readied")
    twilio.page_delay = timedelta(seconds=3)
    asked = len(twilio.requests)
    eventually(lambda: len(twilio.requests) > asked)
    stopped = time.monotonic()
    first.tell(signal.SIGSTOP)
    twilio.page_delay = timedelta(0)
    second.wait_for("lead.acquired", within=30)
    second.wait_for("job.skipped", job="hot")
    second.wait_for_runs(2, since=0, within=75)
    print(f"SIGSTOP within a run: first run after {time.monotonic() - stopped:.2f} s")
    first.tell(signal.SIGCONT)
    first.wait_for("lead.dropped")
    second.wait_for_runs(3)
    assert first.process.poll() is None
    until_equal(conn, lives)
    assert_each_fact_landed_once(conn, lives)

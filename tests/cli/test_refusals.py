"""Every way a run may be refused: the exit code, one clear line that names what to change, and nothing else."""

from __future__ import annotations

import secrets
import sys

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from reconciler.database.store import Store
from reconciler.jobs.backfill import name_backfill
from reconciler.simulator import Fault
from reconciler.twilio.budget import START
from tests.harness.names import ACCOUNT, TOKEN


@pytest.fixture
def powerless(server_url):
    """A role that may connect and nothing else."""
    name = f"powerless_{secrets.token_hex(4)}"
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        yield name
        conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_a_wrong_token(look, calls):
    """77; the settings that hold the credentials are named, and none of their values."""
    done = look("--since", "1d", TWILIO_AUTH_TOKEN="not-the-token")
    assert done.code == 77
    assert done.said[0].startswith("reconcile: Twilio refused the credentials")
    assert "TWILIO_AUTH_TOKEN" in done.said[1]
    assert len(done.said) == 2
    assert "not-the-token" not in done.out + done.err


def test_an_account_that_is_unknown(look, calls):
    """Twilio's 404 for an account is a refusal: 77."""
    done = look("--since", "1d", "--account", "AC" + 32 * "9")
    assert done.code == 77
    assert "no such account" in done.said[0]
    assert "TWILIO_ACCOUNT_SID" in done.said[1]


def test_a_suspended_account(look, twilio):
    """403 is a refusal: 77."""
    twilio.faults.always(Fault.forbidden(20005))
    done = look("--since", "1d")
    assert done.code == 77
    assert "Twilio does not allow this" in done.said[0]


@pytest.mark.parametrize("args", [("--since", "1d"), ("verify",)])
def test_a_database_that_is_away(here, args):
    """69, and the password in its URL is not shown."""
    done = here(*args, DATABASE_URL="postgresql://me:hush-hush@127.0.0.1:1/calls")
    assert done.code == 69
    assert "the database is unavailable" in done.said[0]
    assert "port 1 failed" in done.said[0]
    assert "hush-hush" not in done.err
    assert done.out == ""


def test_a_database_that_does_not_exist(here, server_url):
    """77: waiting does not create it."""
    done = here("--since", "1d", DATABASE_URL=make_conninfo(server_url, dbname="no_such_database"))
    assert done.code == 77
    assert '"no_such_database" does not exist' in done.said[0]
    assert "DATABASE_URL" in done.said[1]


def test_a_user_who_does_not_exist(here, server_url):
    """77 for a login that the server turns away."""
    done = here("--since", "1d", DATABASE_URL=make_conninfo(server_url, user="nobody_we_know"))
    assert done.code == 77
    assert "DATABASE_URL" in done.said[1]


@pytest.mark.parametrize("args", [("--since", "1d"), ("migrate", "--dry-run")])
def test_a_role_that_may_create_nothing(here, empty_database_url, powerless, args):
    """77 before anything is tried, naming the role and the privilege; a dry run says so as well."""
    done = here(*args, DATABASE_URL=make_conninfo(empty_database_url, user=powerless))
    assert done.code == 77
    assert powerless in done.said[0]
    assert "CREATE" in done.said[0]
    assert len(done.said) == 2
    assert done.out == ""


def test_settings_that_are_missing(command):
    """78: each that is missing is named at once, and the way to try without any."""
    done = command.run("--since", "1d")
    assert done.code == 78
    assert "TWILIO_ACCOUNT_SID is not set" in done.said[0]
    assert "TWILIO_AUTH_TOKEN is not set" in done.said[1]
    assert "reconcile demo" in done.said[2]
    assert len(done.said) == 3


def test_settings_that_are_wrong(here):
    """78: all of them are named in one go, the unknown one with the name that was meant."""
    done = here(
        "--since", "1d", TWILIO_ACCOUNT_SID="AC12", RECONCILER_MAX_CONCURRENCY="many", RECONCILER_FREEZE_AFTER="soon",
        RECONCILER_OVERLAPP="5m", DATABASE_URL="hush-hush",
    )  # fmt: skip
    assert done.code == 78
    for said in (
        "TWILIO_ACCOUNT_SID", "RECONCILER_MAX_CONCURRENCY", "RECONCILER_FREEZE_AFTER", "DATABASE_URL",
        "RECONCILER_OVERLAPP is not a setting; did you mean RECONCILER_OVERLAP?",
    ):  # fmt: skip
        assert sum(said in line for line in done.said) == 1, said
    assert "hush-hush" not in done.err


def test_a_window_that_twilio_no_longer_keeps(here):
    """64 if all of the window lies before Twilio's retention: the command would ask for nothing and end with 0."""
    done = here("--since", "450d", "--until", "420d", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert (done.code, done.said[0]) == (64, "reconcile: the window ends before the 400 days that Twilio keeps")


def test_twilio_that_cannot_be_reached(run, quick_retries):
    """69 after the repeats, with the address that was asked; a few slices are tried, and all are named."""
    nowhere = "http://127.0.0.1:1"
    args = "--since", "30d", "--json"
    done = run(*args, TWILIO_BASE_URL=nowhere)
    assert done.code == 69
    assert done.said[0].startswith("reconcile: Twilio is unavailable: ")
    assert done.said[1:] == [f"  → is TWILIO_BASE_URL right? {nowhere}"]
    assert sum(line["event"] == "twilio.retried" for line in done.logs) == START * 9
    assert len(done.result["slices_failed"]) == done.result["slices"] > 30


def test_slices_that_fail(run, calls, twilio, conn):
    """75 when some of it could not be read: a partial run is no success, says how to go on, and then does."""
    twilio.faults.when(lambda request: request.param("Status") == "failed", Fault.error(400, 20001, "No"))
    done = run("--since", "3d", "--json")
    assert done.code == 75
    assert done.said[0].startswith("reconcile: 1 of 10 slices could not be read: ")
    assert "the same command" in done.said[1]
    assert len(done.result["slices_failed"]) == 1
    (succeeded, failed) = conn.execute(
        "SELECT last_success_at, last_error FROM sync_state WHERE job_name LIKE 'backfill:%'"
    ).fetchone()
    assert succeeded is None
    assert "1 slices were not read" in failed
    twilio.faults.clear()
    done = run("--since", "3d", "--json")
    assert (done.code, done.result["resumed"]) == (0, True)


def test_a_job_that_another_process_holds(look, shared_database_url, twilio):
    """75, without a request to Twilio."""
    with Store(shared_database_url) as store, store.holding(name_backfill(ACCOUNT)):
        done = look("--since", "1d", "--json")
    assert done.code == 75
    assert done.said[0] == f"reconcile: another process is running {name_backfill(ACCOUNT)}"
    assert len(twilio.requests) == 0
    assert done.out == ""


def test_a_dry_run_needs_no_lock(look, shared_database_url, calls):
    """A dry run works while another process runs the backfill."""
    with Store(shared_database_url) as store, store.holding(name_backfill(ACCOUNT)):
        assert look("--since", "3d", "--dry-run").code == 1


def test_a_record_that_cannot_be_read(run, calls, twilio, conn):
    """1: done, but a dead letter is left; it is counted, logged and kept."""
    twilio.faults.always(Fault.broken_record("unknown_status"))
    done = run("--since", "3d", "--json")
    assert done.code == 1
    kept = conn.execute("SELECT call_sid FROM twilio_webhook_inbox WHERE processing_status = 'dead_letter'").fetchall()
    assert done.result["dead_letters"] == len(kept) > 0
    assert any(line["event"] == "record.dead_lettered" for line in done.logs)


def test_a_frozen_row_that_twilio_disagrees_with(run, calls, conn):
    """1: drift is reported, in the log and in the table, and the row stays."""
    assert run("--since", "3d").code == 0
    (sid,) = conn.execute("SELECT twilio_sid FROM messages WHERE price < 0 LIMIT 1").fetchone()
    calls.change(sid, price="-9.99000")
    done = run("--since", "3d")
    assert done.code == 1
    assert "frozen, but Twilio disagrees" in done.out
    assert done.event("call.frozen_drift")["call_sid"] == sid
    (line,) = [line for line in run("--since", "3d", "--dry-run").out.splitlines() if line.startswith("CA")]
    assert line.startswith(f"{sid}  price")
    assert line.endswith("→ -9.99000  frozen, stays")


def test_a_bug(cli, shared_database_url):
    """70, with the traceback in the log alone, free of secrets."""
    script = (
        "import sys; from reconciler.jobs import backfill; from reconciler.cli import main as cli\n"
        f"def broken(*_, **__): raise LookupError('on +14155550100 with {TOKEN}')\n"
        "backfill.backfill = broken; sys.exit(cli.main())"
    )
    process = cli.start("--since", "1d", argv=(sys.executable, "-c", script), DATABASE_URL=shared_database_url)
    out, err = process.communicate()
    assert process.returncode == 70
    assert out == ""
    log, message, hint = err.splitlines()
    assert '"event": "program.failed"' in log
    assert TOKEN not in err
    assert "4155550100" not in err
    assert (message, hint[:4]) == ("reconcile: a bug: LookupError", "  → ")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize("args", [("status",), ("check",), ("once", "hot"), ()])
def test_a_terminal_that_is_not_utf8(cli, encoding, args):
    """Prints the same, with a replacement for characters that the terminal cannot show."""
    done = cli.run(*args, DATABASE_URL="postgresql://me@127.0.0.1:1/c\u00f6lls", PYTHONIOENCODING=encoding)
    assert done.code in (0, 69)
    assert "UnicodeEncodeError" not in done.err
    assert "\\u2192" not in done.err


def test_where_the_log_is_json_the_last_line_is_too(cli):
    """Programs read it: the daemon's, and that of a command that is told so; without control characters."""
    url = "postgresql://me@127.0.0.1:1/calls?sslmode=\x1b[31mred"
    daemon = cli.run("run", DATABASE_URL=url)
    command = cli.run("status", DATABASE_URL=url, RECONCILER_LOG_FORMAT="json")
    nothing_set = cli.run("run", TWILIO_ACCOUNT_SID="no")
    assert [daemon.code, command.code, nothing_set.code] == [78, 78, 78]
    assert [done.logs[-1]["event"] for done in (daemon, command, nothing_set)] == [
        "daemon.failed", "command.failed", "daemon.failed",
    ]  # fmt: skip
    for done in (daemon, command, nothing_set):
        assert all(line.startswith("{") for line in done.err.splitlines())
        assert done.logs[-1]["kind"] == "ConfigError"
        assert "\x1b" not in done.err


def test_a_complaint_holds_no_control_characters(here):
    """A server, or a setting, could move the cursor with them."""
    done = here("--since", "\x1b[31mred")
    assert done.code == 64
    assert "\x1b" not in done.err

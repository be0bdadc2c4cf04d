"""The output of a run: results on stdout, logs on stderr, each in a form that programs can rely on."""

from __future__ import annotations

import re
import subprocess
from datetime import datetime, timedelta

from reconciler.database.migration_files import load_migrations
from reconciler.jobs.backfill import BackfillCounts
from tests.harness.equality import versions
from tests.harness.names import ACCOUNT
from tests.harness.present import present
from tests.harness.processes import COMMAND

COUNTS = {
    "calls_seen", "inserted", "updated", "unchanged", "gaps_missing", "gaps_stale", "gaps_incomplete", "gaps_conflict",
    "recordings_seen", "recordings_told", "recordings_deleted",
    "imported", "frozen", "drifted", "gone", "dead_letters", "requests", "retries", "lag_seconds", "duration_seconds",
}  # fmt: skip
RESULT = COUNTS | {"slices", "slices_done", "slices_failed", "resumed", "interrupted"}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def everything(conn):
    """All rows with their versions, and all cursors."""
    return versions(conn), conn.execute("SELECT s.*, s.xmin::text FROM sync_state AS s").fetchall()


def test_the_result_as_json(run, calls, conn, not_equal):
    """stdout is one JSON object of exactly the documented keys, and the database is what it says."""
    done = run("--since", "3d", "--json")
    assert done.code == 0
    assert done.result.keys() == RESULT == BackfillCounts().as_dict().keys()
    assert not_equal(conn) == []
    (held,) = conn.execute("SELECT count(*) FROM messages").fetchone()
    assert (done.result["calls_seen"], done.result["inserted"], done.result["slices_failed"]) == (300, held, [])
    assert done.said == []
    again = run("--since", "3d", "--json").result
    assert (again["inserted"], again["updated"], again["unchanged"]) == (0, 0, 300)


def test_every_log_line_is_an_object(run, calls, empty_database_url):
    """Where no terminal is, all of stderr is JSON, a line each, with the fields that monitoring needs."""
    done = run("--since", "3d", DATABASE_URL=empty_database_url)
    assert done.code == 0
    assert done.said == []
    for line in done.logs:
        assert {"timestamp", "level", "event", "logger"} <= line.keys()
        assert datetime.fromisoformat(line["timestamp"]).utcoffset() == timedelta(0)
    applied = [line["version"] for line in done.logs if line["event"] == "migration.applied"]
    assert applied == [migration.version for migration in load_migrations()]
    started, finished = done.event("job.started"), done.event("job.finished")
    for line in (started, finished):
        assert (line["job"], line["account"], line["run_id"]) == ("backfill", ACCOUNT, started["run_id"])
    assert re.fullmatch("[0-9a-f]{16}", started["run_id"])  # each event holds one
    assert COUNTS <= finished.keys()
    assert finished["calls_seen"] == 300


def test_the_result_for_a_person(run, calls):
    """A table on stdout, without colours where no terminal is."""
    done = run("--since", "3d")
    assert re.search(r"^inserted +300 *$", done.out, re.MULTILINE)
    assert "\x1b" not in done.out + done.err


def test_a_dry_run_prints_what_would_change(run, calls, conn):
    """1 and a line a field where something differs, 0 and none where nothing does; nothing is written."""
    assert run("--since", "3d").code == 0
    (sid,) = conn.execute("SELECT twilio_sid FROM messages WHERE status = 'busy' LIMIT 1").fetchone()
    conn.execute("DELETE FROM messages WHERE twilio_sid = %s", [sid])
    before = everything(conn)
    done = run("--since", "3d", "--dry-run")
    assert done.code == 1
    assert everything(conn) == before
    lines = [line for line in done.out.splitlines() if line.startswith("CA")]
    assert lines[0] == f"{sid}  status          (no row) → busy"
    assert {line.split()[1] for line in lines} >= {"status", "from_number", "to_number", "start_time", "end_time"}
    assert all(line.startswith(sid) for line in lines)
    assert re.search(r"^would be inserted +1 *$", done.out, re.MULTILINE)
    assert not re.search(r"\+\d{7}", done.out)
    plain = run("--since", "3d", "--dry-run", RECONCILER_LOG_PII="plain")
    assert re.search(rf"^{sid}  from_number +\(no row\) → \+\d{{7}}", plain.out, re.MULTILINE)
    run("--since", "3d")
    done = run("--since", "3d", "--dry-run")
    assert done.code == 0
    assert "CA" not in done.out


def test_a_dry_run_as_json(run, calls, conn):
    """One JSON document, with or without differences: null where there is no value, and numbers masked."""
    done = run("--since", "3d", "--dry-run", "--json")
    assert done.code == 1
    assert done.result.keys() == RESULT | {"differences"}
    differences = done.result["differences"]
    assert len({difference["call_sid"] for difference in differences}) == 300
    assert {difference["action"] for difference in differences} == {"insert"}
    assert {value["ours"] for difference in differences for value in difference["fields"].values()} == {None}
    assert not re.search(r"\+\d{7}", done.out)
    names = [difference["fields"].get("caller_name", {}).get("twilio") for difference in differences]
    assert {*names} == {None, "***"}
    assert run("--since", "3d").code == 0
    done = run("--since", "3d", "--dry-run", "--json")
    assert (done.code, done.result["differences"]) == (0, [])


def test_a_dry_run_on_a_database_that_was_never_migrated(run, calls, field_database_url, connect):
    """The command refuses it, names `reconcile migrate`, and migrates nothing."""
    done = run("--since", "3d", "--dry-run", DATABASE_URL=field_database_url)
    assert (done.code, done.out) == (78, "")
    behind = f"{len(load_migrations())} migrations are not applied yet"
    assert done.said == [f"reconcile: {behind}", "  → run `reconcile migrate` first"]
    assert connect(field_database_url).execute("SELECT to_regclass('reconciler_migrations')").fetchone() == (None,)


def test_a_reader_who_has_seen_enough(run, cli, calls):
    """`reconcile … --dry-run | head` ends quietly."""
    for flags in ([], ["--json"]):
        process = subprocess.Popen(
            [COMMAND, "--since", "3d", "--dry-run", *flags], env=cli.environment({}),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            present(process.stdout).readline()
            present(process.stdout).close()
            err = present(process.stderr).read()
        assert "Traceback" not in err
        assert "job.failed" not in err
        assert "program.failed" not in err


def test_a_terminal_sees_a_bar(run, cli, calls):
    """The expected cost, a bar that reaches its end, log lines on lines of their own, and the table."""
    code, seen = cli.on_terminal("--since", "3d", RECONCILER_LOG_LEVEL="info")
    assert code == 0
    assert "10 slices; about 10 requests to Twilio + 1 per 1,000 calls." in ESCAPES.sub("", seen)
    assert "10/10" in seen
    assert "{" not in seen
    # The bar redraws its line from the start of the line; a log line must not begin where the bar ends.
    lines = re.split(r"[\r\n]+", ESCAPES.sub("", seen))
    assert any("Reconciling" in line for line in lines)
    logged = [line for line in lines if re.match(r"\d\d:\d\d:\d\d backfill AC1111…1111: ", line)]
    assert [line[9:].split(": ")[1].split(",")[0] for line in logged] == ["begins", "300 read"]
    assert re.search(r"^inserted +300", ESCAPES.sub("", seen), re.MULTILINE)


def test_a_terminal_sees_results_and_no_log(run, cli, calls, empty_database_url):
    """Results are not logged as well. Migrations are printed as they are applied, because they may take long."""
    code, seen = cli.on_terminal("--since", "3d", DATABASE_URL=empty_database_url)
    lines = ESCAPES.sub("", seen).splitlines()
    assert code == 0
    advice, *lines = lines
    assert advice.startswith("Before you migrate: back up")
    assert lines[: len(load_migrations())] == [f"Migration {m.version:03} {m.name} applied." for m in load_migrations()]
    assert "job." not in seen
    code, seen = cli.on_terminal("once", "warm", DATABASE_URL=empty_database_url)
    lines = ESCAPES.sub("", seen).splitlines()
    assert code == 0
    assert re.fullmatch(r"calls seen +\d+", lines[0].rstrip())
    assert re.fullmatch(r"duration seconds +\d+\.\d", lines[-1].rstrip())
    assert not [line for line in lines if re.fullmatch(r"(gaps|dead letters|drifted).* 0", line.rstrip())]


def test_a_terminal_sees_complaints_wrapped_at_words(run, cli, calls):
    """Below each other, behind what they begin with; elsewhere a line is a line."""
    code, seen = cli.on_terminal("call", "CA1", COLUMNS="40")
    assert code == 64
    assert [line.rstrip() for line in ESCAPES.sub("", seen).splitlines()] == [
        "reconcile: a call's SID is CA and 32",
        "           hexadecimal digits",
    ]
    assert run("call", "CA1").said == ["reconcile: a call's SID is CA and 32 hexadecimal digits"]


def test_all_differences_on_a_terminal(run, cli, calls):
    """Below each SID what would change, so that lines stay short; no bar, which lines that scroll would tear apart."""
    code, seen = cli.on_terminal("--since", "3d", "--dry-run", "--all")
    assert code == 1
    assert "Reconciling" not in seen
    assert len(re.findall(r"^CA[0-9a-f]{32}\n  status  ", ESCAPES.sub("", seen), re.MULTILINE)) == 300
    assert run("--since", "3d", "--all").said[0] == (
        "reconcile: --all goes with --dry-run: it lists each field that would change"
    )


def test_a_window_before_what_twilio_keeps(run, calls):
    """Said as a warning, and the rest is read."""
    done = run("--since", "2020-01-01", "--until", "399d", "--json")
    assert done.code == 0
    assert done.event("window.clamped")["level"] == "warning"
    assert done.result["slices"] <= 5 + 3


def test_an_api_key_will_do(run, calls):
    """TWILIO_API_KEY with TWILIO_API_SECRET stands in for the auth token."""
    key = calls.add_key("SK" + 32 * "7", "secret-of-the-key")
    env = {"TWILIO_AUTH_TOKEN": "", "TWILIO_API_KEY": key.sid, "TWILIO_API_SECRET": key.secret}
    done = run("--since", "3d", "--json", **env)
    assert (done.code, done.result["inserted"]) == (0, 300)


def test_settings_from_files(run, cli, calls, database_url, tmp_path):
    """A configuration file, and secrets from files of their own."""
    token, config = tmp_path / "token", tmp_path / "config"
    token.write_text(cli.env["TWILIO_AUTH_TOKEN"] + "\n")
    config.write_text(f"# ours\nDATABASE_URL={database_url}\nRECONCILER_LOG_LEVEL=error\n")
    for file in (token, config):
        file.chmod(0o600)
    env = {
        "DATABASE_URL": "",
        "TWILIO_AUTH_TOKEN": "",
        "TWILIO_AUTH_TOKEN_FILE": f"{token}",
        "RECONCILER_CONFIG": f"{config}",
    }
    done = run("--since", "3d", "--json", **env)
    assert (done.code, done.result["inserted"], done.err) == (0, 300, "")
    token.chmod(0o644)
    done = run("--since", "3d", "--json", **env)
    assert done.code == 78
    assert done.said[0].startswith("reconcile: TWILIO_AUTH_TOKEN is in a file that everybody may read (mode 0644)")


def test_once_inbox_settles_what_the_viewer_left(run, conn):
    """A webhook that waits longer than the grace is a row afterwards; the result counts it, and exit code is 0."""
    conn.execute(
        "INSERT INTO twilio_webhook_inbox (source, event_type, call_sid, dedupe_key, payload, received_at)"
        " VALUES ('twilio_voice', 'call-status', %(sid)s::text, 'one', jsonb_build_object('CallSid', %(sid)s::text,"
        " 'CallStatus', 'completed', 'CallDuration', '35'), now() - interval '1 hour')",
        {"sid": "CA" + 32 * "a"},
    )
    done = run("once", "inbox", "--json")
    assert (done.code, done.result["rows"], done.result["completed"], done.result["inserted"]) == (0, 1, 1, 1)
    assert conn.execute("SELECT status, duration FROM messages").fetchall() == [("completed", 35)]
    assert conn.execute("SELECT processing_status FROM twilio_webhook_inbox").fetchall() == [("completed",)]


def test_no_color_means_none(cli, calls, database_url):
    """NO_COLOR turns colours off on a terminal, in logs, tables and the bar. Without it there are some."""
    cli.env["DATABASE_URL"] = database_url
    colour = re.compile(r"\x1b\[(?:[0-9;]*;)?[34][0-9]")
    words = ("--since", "3d", "--dry-run")
    cli.env["RECONCILER_LOG_LEVEL"] = "info"
    assert colour.search(cli.on_terminal(*words)[1])
    code, seen = cli.on_terminal(*words, NO_COLOR="1")
    assert (code, colour.search(seen)) == (1, None)
    assert "begins" in seen

"""`reconcile check` on the database and the work: each line, when all is well and when it is not."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from reconciler.errors import ExitCode
from reconciler.settings import Settings, secret_files
from reconciler.status import check_database as checks
from reconciler.status import check_line
from reconciler.status.causes import causes
from reconciler.status.check import check_secrets
from reconciler.status.check_database import check_schema, check_server
from reconciler.status.check_line import Severity, fail, ok, warn
from reconciler.status.check_work import check_work, troubles
from reconciler.status.snapshot import Calls, Inbox, ProvenDays, StuckCall, TableSize
from reconciler.twilio import answers
from reconciler.twilio.transport import Answer
from tests.harness.names import ACCOUNT, NOW, sid
from tests.harness.present import present

from .pages import OTHER, make_day, make_job, make_status

GRANTS = Path(__file__).parents[2] / "deploy" / "grants.sql"

SETTINGS = Settings.read({})
SERVER = ("database", "time zone", "database clock")


# Where secrets come from


def test_secrets_in_the_environment():
    """No file, nothing to guard."""
    assert check_secrets(secret_files({"TWILIO_AUTH_TOKEN": "t"})) == ok("secrets", "none is in a file")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400])
def test_secrets_in_files(tmp_path, mode):
    """`check` names them by their settings. A settings file with a secret counts; an overruled file is not read."""
    token, settings, unread = tmp_path / "token", tmp_path / "settings", tmp_path / "unread"
    for file, text in ((token, "t"), (settings, "TWILIO_API_SECRET=s"), (unread, "s")):
        file.write_text(text)
        file.chmod(mode if file is not unread else 0o666)
    environ = {
        "TWILIO_AUTH_TOKEN_FILE": str(token), "RECONCILER_CONFIG": str(settings),
        "DATABASE_URL": "postgresql://h/d", "DATABASE_URL_FILE": str(unread),
    }  # fmt: skip
    said = "TWILIO_AUTH_TOKEN, RECONCILER_CONFIG in files that only their owner may write"
    assert check_secrets(secret_files(environ)) == ok("secrets", said)


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_secrets_that_others_may_write(tmp_path, mode):
    """The line has the command that mends it."""
    token = tmp_path / "TWILIO_AUTH_TOKEN"
    token.write_text("t")
    token.chmod(mode)
    found = check_secrets(secret_files({"CREDENTIALS_DIRECTORY": str(tmp_path)}))
    assert found == warn("secrets", f"others may write {token} (mode {mode:04o})", f"chmod go-w {token}")


# The server


def test_a_server_that_is_well(conn):
    """Its version, our time zone, its clock."""
    found = list(check_server(conn))
    assert [(line.name, line.severity) for line in found] == [(name, Severity.OK) for name in SERVER]
    assert found[0].detail.startswith("PostgreSQL ")


def test_a_version_that_is_new_to_us(conn, monkeypatch):
    """Works perhaps, and is said."""
    monkeypatch.setattr(checks, "TESTED", range(3, 5))
    found = next(check_server(conn))
    assert (found.severity, found.hint) == (Severity.WARN, "this version was tested with PostgreSQL 3 to 4")


def test_a_database_that_takes_no_writes(conn, connect, database_url):
    """A standby, or one that was told so."""
    conn.execute(
        sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(sql.Identifier(conn.info.dbname))
    )
    found = next(check_server(connect(database_url)))
    assert (found.severity, found.exit_code) == (Severity.FAIL, ExitCode.UNAVAILABLE)
    assert "takes no writes" in found.detail and "DATABASE_URL" in present(found.hint)


def test_the_servers_own_time_zone_does_not_matter(conn, connect, database_url):
    """Ours does: a session that is not in UTC shifts every start_time."""
    conn.execute(
        sql.SQL("ALTER DATABASE {} SET timezone = 'America/New_York'").format(sql.Identifier(conn.info.dbname))
    )
    ours = connect(database_url)
    _, found, _ = check_server(ours)
    assert found == ok("time zone", "our session runs in UTC; the server's own, America/New_York, does not matter")
    ours.execute("SET timezone = 'Asia/Kolkata'")
    _, found, _ = check_server(ours)
    assert (found.severity, found.exit_code) == (Severity.FAIL, ExitCode.CONFIG)
    assert found.detail == "our session runs in Asia/Kolkata, not UTC"


AGREES = "this machine's clock agrees with the database's"


@pytest.mark.parametrize(
    ("ahead", "behind", "detail"),
    [
        (timedelta(seconds=-1), timedelta(seconds=-1), None),
        (timedelta(seconds=15), timedelta(seconds=-15), None),
        (timedelta(seconds=16), timedelta(seconds=-16), "this machine's clock is 16 s ahead of the database's"),
        (timedelta(minutes=-2), timedelta(minutes=2), "this machine's clock is 120 s behind the database's"),
    ],
)
def test_clocks_that_differ(ahead, behind, detail):
    """They differ by more than the grace periods allow."""
    found = check_line.compare_clocks("database clock", "the database's", ahead, behind)
    assert (found.severity, found.detail) == (
        (Severity.WARN, detail) if detail else (Severity.OK, f"{AGREES} ({max(ahead, timedelta(0)).seconds}.0 s apart)")
    )


# The schema


def test_a_schema_that_is_ours(conn):
    """Ledger, catalog, privileges."""
    assert [(line.name, line.severity) for line in check_schema(conn)] == [
        ("schema", Severity.OK), ("privileges", Severity.OK),
    ]  # fmt: skip


def test_migrations_that_are_missing(empty_database_url, connect):
    """A warning: they can be applied."""
    schema, privileges = check_schema(connect(empty_database_url))
    assert (schema.severity, schema.hint) == (Severity.WARN, "run `reconcile migrate`")
    assert privileges == ok("privileges", "the role may apply the migrations")


def test_an_index_that_is_not_valid(conn):
    """A CREATE INDEX CONCURRENTLY that broke off leaves such an index."""
    (index,) = conn.execute("SELECT 'idx_messages_updated_at'::regclass::oid").fetchone()
    conn.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s", (index,))
    found = [line for line in check_schema(conn) if line.severity is Severity.FAIL]
    assert [(line.name, line.exit_code) for line in found] == [("schema", ExitCode.CONFIG)]
    assert "idx_messages_updated_at" in found[0].detail
    assert present(found[0].hint).endswith(" < sql/004_alter_messages.sql")


def test_a_trigger_that_is_gone(conn):
    """The catalog counts, not the ledger."""
    conn.execute("DROP TRIGGER messages_guard_1_frozen ON messages")
    found = [line.detail for line in check_schema(conn) if line.severity is Severity.FAIL]
    assert len(found) == 1
    assert "messages_guard_1_frozen" in found[0]


def test_a_ledger_of_a_newer_version(conn, database_url):
    """A line about the schema, which says how to go on; the rest is left out."""
    conn.execute("INSERT INTO reconciler_migrations SELECT 99, 'future', checksum, now(), duration"
                 " FROM reconciler_migrations WHERE version = 5")  # fmt: skip
    *_, found = checks.check_database(database_url, SETTINGS)
    assert (found.name, found.severity, found.hint) == ("schema", Severity.FAIL, "install the newer version")


def test_a_role_that_was_granted_nothing(conn, connect, database_url):
    """One line names the lacking privileges, and the commands of the hint grant them all."""
    role = sql.Identifier(f"lacking_{conn.info.dbname}")
    conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    try:
        conn.execute(sql.SQL("GRANT SELECT ON reconciler_migrations TO {}").format(role))
        theirs = connect(make_conninfo(database_url, user=f"lacking_{conn.info.dbname}"))
        found = list(check_schema(theirs))[-1]
        assert (found.name, found.severity, found.exit_code) == ("privileges", Severity.FAIL, ExitCode.REFUSED)
        assert "INSERT on messages" in found.detail
        before, after = present(re.search(r"sed 's/(.+)/(.+)/' deploy/grants\.sql", present(found.hint))).groups()
        conn.execute(GRANTS.read_text(encoding="utf-8").replace(before, after).encode())
        assert {line.severity for line in check_schema(theirs)} == {Severity.OK}
    finally:
        conn.execute(sql.SQL("DROP OWNED BY {}").format(role))
        conn.execute(sql.SQL("DROP ROLE {}").format(role))


# The work


def work(settings=SETTINGS, **fields):
    return {line.name: line for line in check_work(make_status(**fields), settings)}


def test_work_that_goes_well():
    """A line each."""
    assert list(work().values()) == [
        ok("daemon", "db1/4711 leads"),
        ok("jobs", "none failed since its last success"),
        ok("inbox", "0 webhooks wait, no dead letter"),
        ok("retention", "processed webhooks stay for good; the inbox takes 0 B"),
        ok("days", "35 account days proven complete, up to 2026-06-09"),
        ok("calls", "none is open for longer than 1d"),
    ]  # fmt: skip


def test_nothing_has_run_yet():
    """No cause for alarm but that nobody leads."""
    found = work(leader=None, jobs=[], days=ProvenDays(0, 0, None, []))
    assert [line.name for line in found.values() if line.severity is not Severity.OK] == ["daemon"]
    assert "`reconcile run`" in found["daemon"].hint
    assert found["jobs"] == ok("jobs", "none has run yet")
    assert found["days"].severity is Severity.OK


def failing(*jobs, error="HTTP 503", minutes=3):
    return [make_job(job, last_error=error, last_error_at=NOW - timedelta(minutes=minutes)) for job in jobs]


def lines_of(name, **fields):
    return [line for line in check_work(make_status(**fields), SETTINGS) if line.name == name]


def test_an_outage_is_one_line():
    """The line says how many jobs fail, since when, why, and which."""
    jobs = failing("hot", f"hot:{OTHER}", "warm") + failing("cold", minutes=70) + [make_job("freeze")]
    (line,) = lines_of("jobs", jobs=jobs)
    assert line.severity is Severity.WARN
    assert line.detail == "4 of 5 fail since 10:50: HTTP 503 (cold, hot, warm of 2 accounts)"
    assert line.hint.startswith("nothing is lost")


def test_each_cause_is_a_line():
    """The cause of most failures comes first; of many causes some are shown."""
    jobs = failing("warm", error="why") + failing("hot", "cold")
    assert [line.detail for line in lines_of("jobs", jobs=jobs)] == [
        "2 of 3 fail since 11:57: HTTP 503 (cold, hot)", "warm failed 3 min ago: why",
    ]  # fmt: skip
    many = [job for n in range(9) for job in failing(f"hot:AC{n:032}", error=f"error {n}")]
    assert [line.detail for line in lines_of("jobs", jobs=many)][-1] == "jobs fail of 4 other causes too"


REFUSED = "Twilio refused the credentials (HTTP 401, Twilio error 20003: Authenticate)"


def test_after_a_refusal_nobody_says_start_it():
    """The credentials come first; that no daemon leads is the consequence, and no advice of its own."""
    found = troubles(make_status(leader=None, jobs=failing("hot", "warm", error=REFUSED)), SETTINGS)
    assert found[0].name == "refused"
    assert "it ended with 77 and stays down on purpose" in found[0].detail
    assert re.findall(r"`([^`]+)`", present(found[0].hint)) == ["reconcile check", "systemctl start reconciler"]
    assert not [line for line in found if "start it" in (line.hint or "")]


def test_a_backfill_that_was_refused_ended_no_daemon():
    """Its token is the main account's all the same: nobody says "start it" before that is right."""
    main = Settings.read({"TWILIO_ACCOUNT_SID": ACCOUNT, "TWILIO_AUTH_TOKEN": "wrong"})
    found = troubles(make_status(leader=None, jobs=failing(f"backfill:{ACCOUNT}", error=REFUSED)), main)
    assert [line.name for line in found] == ["refused", "daemon"]
    assert "ended" not in found[0].detail
    for line in found:
        assert re.findall(r"`([^`]+)`", present(line.hint)) == ["reconcile check", "systemctl start reconciler"]


def test_a_subaccount_that_is_refused():
    """Stops no other, and is no reason to change the token."""
    (found,) = troubles(make_status(jobs=[make_job(), *failing(f"hot:{OTHER}", error=REFUSED)]), SETTINGS)
    assert (found.name, "token" in present(found.hint)) == ("refused", False)
    assert f"hot:{OTHER[:6]}…" in found.detail
    both = troubles(make_status(leader=None, jobs=[make_job(), *failing(f"hot:{OTHER}", error=REFUSED)]), SETTINGS)
    assert [line.name for line in both] == ["refused", "daemon"]


@pytest.mark.parametrize(
    ("status", "is_refusal"), [(401, True), (403, True), (404, False), (429, False), (500, False), (503, False)]
)
def test_a_refusal_is_known_by_its_words(status, is_refusal):
    """These are the client's words for the answer."""
    answer = Answer(status, b'{"code": 20003, "message": "Authenticate"}', {})
    error = answers.meaning(answer, now=NOW, login="", worked_before=False, is_foreign=False)
    (cause,) = causes(failing("hot", error=str(error)))
    assert cause.is_refusal_by_twilio is is_refusal


def test_advice_and_runbook_agree():
    """Each command in a hint stands in the runbook, with other SIDs and days."""
    runbook = _without_names((GRANTS.parents[1] / "docs" / "runbook.md").read_text(encoding="utf-8"))
    stuck = StuckCall(sid(1), None, "ringing", NOW - timedelta(days=3))
    day = make_day(4, is_complete=False)
    situations = [
        make_status(
            leader=None, jobs=failing("hot", error=REFUSED), inbox=Inbox(7, 0, 0, 4, 7, 9_000.0),
            days=ProvenDays(30, 1, NOW.date(), [day]), calls=Calls(3, 2, 0, [stuck]),
        ),
        make_status(leader=None), make_status(jobs=failing("hot", error=REFUSED)),
        make_status(jobs=failing("hot", "warm")),
        make_status(days=ProvenDays(30, 0, NOW.date() - timedelta(days=9), [])),
    ]  # fmt: skip
    hints = {line.hint for snapshot in situations for line in troubles(snapshot, SETTINGS)}
    commands = {command for hint in hints for command in re.findall(r"`([^`]+)`", _without_names(present(hint)))}
    assert len(commands) >= 9
    assert {command for command in commands if command not in runbook} == set()


def _without_names(text: str) -> str:
    text = re.sub(r"CA[0-9a-f]{32}", "CA…", text)
    return re.sub(r"\d{4}-\d\d-\d\d", "DAY", text)


@pytest.mark.parametrize(("minutes", "severity"), [(20, Severity.OK), (21, Severity.WARN)])
def test_webhooks_that_wait(minutes, severity):
    """Longer than the grace and a quarter of an hour."""
    found = work(inbox=Inbox(7, 0, 0, 0, 7, 60.0 * minutes))["inbox"]
    assert found.severity is severity
    assert found.detail == (
        "7 webhooks wait, no dead letter" if minutes == 20 else "7 webhooks wait, the oldest for 21 min"
    )


def test_dead_letters():
    """They are not reconciled, as the exit code says."""
    found = work(inbox=Inbox(0, 0, 0, 4, 0, None))["inbox"]
    assert found == warn(
        "inbox", "4 dead letters could not be read",
        "their reasons: `reconcile inbox list`; after an upgrade `reconcile inbox replay --all`", ExitCode.UNRECONCILED,
    )  # fmt: skip


def test_an_inbox_that_grows():
    """Without a retention no row ever goes; with one, old rows do."""
    tables = [TableSize("messages", 9_000_000_000, 1), TableSize("twilio_webhook_inbox", 1_200_000_000, 1)]
    found = work(tables=tables)["retention"]
    assert found.severity is Severity.WARN
    assert (found.detail, "RECONCILER_INBOX_RETENTION" in found.hint) == (
        "the inbox takes 1.2 GB, and processed webhooks are never deleted", True,
    )  # fmt: skip
    keeping = replace(SETTINGS, inbox_retention=timedelta(days=30))
    assert work(keeping, tables=tables)["retention"] == ok("retention", "processed webhooks go after 30d")


def test_days_that_are_not_complete():
    """They are not reconciled, as the exit code says."""
    days = [make_day(9, is_complete=False), make_day(4, is_complete=False)]
    found = work(days=ProvenDays(30, 2, NOW.date(), days))["days"]
    detail = "2 account days not proven complete, the newest 2026-06-06"
    assert found[:3] == ("days", Severity.WARN, detail)
    assert found.exit_code is ExitCode.UNRECONCILED
    assert "`reconcile --since 2026-06-06 --until 2026-06-07`" in found.hint


@pytest.mark.parametrize(("ago", "severity"), [(3, Severity.OK), (4, Severity.WARN)])
def test_days_that_nobody_proves(ago, severity):
    """Cold is daily, and a day's proof may wait for Twilio."""
    newest = NOW.date() - timedelta(days=ago)
    found = work(days=ProvenDays(30, 0, newest, []))["days"]
    assert (found.severity, str(newest) in found.detail) == (severity, True)


def test_calls_that_are_stuck():
    """The line has the command that shows the oldest."""
    stuck = StuckCall(sid(1), None, "ringing", NOW - timedelta(days=3))
    found = work(calls=Calls(3, 2, 0, [stuck]))["calls"]
    assert found.severity is Severity.WARN
    assert sid(1) in found.hint


# The command


def test_a_line_each_for_a_person(signed_in, account):
    """A word, a name, and an arrow to what to do; exit 0 in spite of warnings."""
    done = signed_in("check")
    lines = done.out.splitlines()
    assert (done.code, done.err) == (0, "")
    assert [line.partition(":")[0] for line in lines if not line.startswith("  ")] == [
        "OK   settings", "OK   secrets", *(f"OK   {name}" for name in SERVER), "OK   schema owner", "OK   schema",
        "OK   privileges", "OK   Twilio", "OK   usage records", "OK   alerts", "OK   webhooks", "OK   volume",
        "OK   clock", "WARN daemon", "OK   jobs", "OK   inbox", "OK   retention", "OK   days", "OK   calls",
    ]  # fmt: skip
    assert lines[lines.index("WARN daemon: none leads: jobs run only when somebody starts them") + 1].startswith(
        "     → "
    )


def test_with_a_wrong_token_nobody_says_start_it(signed_in):
    """The credentials come before the daemon, and its start comes after them."""
    done = signed_in("check", TWILIO_AUTH_TOKEN="wrong")
    lines = done.out.splitlines()
    assert done.code == 77
    refused = next(n for n, line in enumerate(lines) if line.startswith("FAIL Twilio: Twilio refused the credentials"))
    daemon = next(n for n, line in enumerate(lines) if line.startswith("WARN daemon"))
    assert refused < daemon
    assert re.findall(r"`([^`]+)`", lines[daemon + 1]) == ["reconcile check", "systemctl start reconciler"]


def test_settings_that_are_missing_are_one_line(signed_in):
    """One line names them all. It has no character that a terminal cannot show."""
    done = signed_in("check", TWILIO_ACCOUNT_SID="", TWILIO_AUTH_TOKEN="")
    (line,) = [line for line in done.out.splitlines() if line.startswith("FAIL Twilio")]
    assert line.startswith("FAIL Twilio: TWILIO_ACCOUNT_SID is not set; TWILIO_AUTH_TOKEN is not set")


def test_as_json(signed_in, conn):
    """The same as objects of four keys; a dead letter is exit code 1."""
    conn.execute(
        "INSERT INTO twilio_webhook_inbox (source, event_type, dedupe_key, payload, processing_status, received_at)"
        " VALUES ('twilio_voice', 'call-status', '1', '{}', 'dead_letter', %s)",
        (datetime.now(UTC),),
    )
    done = signed_in("check", "--json")
    assert done.code == 1
    assert {tuple(line) for line in done.result} == {("name", "severity", "detail", "hint")}
    assert {line["name"]: line["severity"] for line in done.result}["inbox"] == "WARN"


def test_settings_that_cannot_be_read(run):
    """A line each, and no further look."""
    done = run("check", RECONCILER_OVERLAP="soon", RECONCILER_OVRLAP="1m")
    assert done.code == 78
    assert [line.partition(":")[0] for line in done.out.splitlines() if not line.startswith(" ")] == [
        "FAIL settings"
    ] * 2
    assert fail("settings", "", None, ExitCode.CONFIG).exit_code == 78


def test_for_nagios(signed_in, run):
    """One line and its four codes: 0 to 3."""
    done = signed_in("check", "--nagios")
    assert (done.code, len(done.out.splitlines())) == (1, 1)
    assert done.out.startswith("RECONCILER WARNING - daemon: none leads")
    assert run("check", "--nagios", RECONCILER_OVERLAP="soon").code == 3
    done = signed_in("check", "--nagios", TWILIO_AUTH_TOKEN="another")
    assert (done.code, done.out[:24]) == (2, "RECONCILER CRITICAL - Tw")

"""`migrate`, `rollback`, `verify` and `check` on a new database, on one from the field and on one of ours."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from reconciler.database.migration_files import load_migrations

COUNT = len(load_migrations())


@pytest.fixture
def on(here):
    """Runs `reconcile ARGS` on a database."""
    return lambda url, *args, **env: here(*args, DATABASE_URL=url, **env)


def tables(conn):
    """Return the tables in schema public, and the newest version in the ledger."""
    return conn.execute(
        "SELECT relname, xmin::text FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
    ).fetchall()


def test_a_new_database(on, empty_database_url, connect):
    """A plan that changes nothing; the migration; then nothing is left to do and nothing to find fault with."""
    conn = connect(empty_database_url)
    plan = on(empty_database_url, "migrate", "--dry-run", "--json")
    assert (plan.code, [row["plan"] for row in plan.result]) == (0, ["apply"] * COUNT)
    assert tables(conn) == []
    done = on(empty_database_url, "migrate", "--json")
    assert (done.code, [row["outcome"] for row in done.result]) == (0, ["applied"] * COUNT)
    assert [line["event"] for line in done.logs] == ["migration.started"] + ["migration.applied"] * COUNT
    before = tables(conn)
    again = on(empty_database_url, "migrate")
    assert (again.code, again.out, again.err) == (0, "The schema is up to date.\n", "")
    verified = on(empty_database_url, "verify", "--explain")
    assert (verified.code, verified.err) == (0, "")
    *plans, last = verified.out.splitlines()
    assert last == "The schema is as this version needs it."
    assert {"messages.open_calls", "inbox.claim_due", "messages.freeze_due"} <= {line.split()[0] for line in plans}
    assert tables(conn) == before


def test_a_database_from_the_field(on, field_database_url):
    """The Viewer's own migrations are adopted; a row of the plan is one line in a file, and names the lock."""
    plan = on(field_database_url, "migrate", "--dry-run")
    assert plan.code == 0
    rows = plan.out.splitlines()
    assert len(rows) == 1 + COUNT
    assert [row.split()[2] for row in rows[1:]] == ["adopt"] * 5 + ["apply"] * (COUNT - 5)
    (row,) = [row for row in rows if "append_only_call_events" in row]
    assert row.rstrip().endswith("SHARE ROW EXCLUSIVE on call_events for a moment")
    done = on(field_database_url, "migrate", "--json")
    assert [row["outcome"] for row in done.result] == ["adopted"] * 5 + ["applied"] * (COUNT - 5)
    assert on(field_database_url, "verify").code == 0


def test_verifying_a_database_that_is_behind(on, empty_database_url):
    """78, a line for each thing that is missing, and what to do; --explain does not stumble over what is missing."""
    done = on(empty_database_url, "verify", "--explain")
    assert done.code == 78
    assert "column messages.status is missing; migration 000 makes it" in done.out.splitlines()
    assert "→" not in done.out
    assert done.said == [f"reconcile: {COUNT} migrations are not applied yet", "  → run `reconcile migrate`"]


def test_verifying_reads_the_catalog(on, database_url, conn):
    """An index that somebody dropped is found although the ledger is complete."""
    conn.execute("DROP INDEX messages_open")
    done = on(database_url, "verify", "--json")
    assert done.code == 78
    again = 'apply the file that makes it again, which is harmless: psql "$DATABASE_URL" < sql/020_index_by_account.sql'
    assert done.result == [
        {"subject": "index messages.messages_open", "problem": "is missing; migration 020 makes it", "hint": again}
    ]
    assert on(database_url, "verify").out.splitlines() == [
        "index messages.messages_open is missing; migration 020 makes it",
        f"  → {again}",
    ]
    done = on(database_url, "check")
    assert done.code == 78
    assert "FAIL schema: index messages.messages_open is missing" in done.out


def test_rolling_back(on, database_url, conn):
    """The newest alone; all down to a version; all; and then there is nothing to undo."""
    done = on(database_url, "rollback")
    assert (done.code, len(done.out.splitlines())) == (0, 2)
    done = on(database_url, "rollback", "--to", "4")
    assert done.code == 0
    assert [int(row.split()[0]) for row in done.out.splitlines()[1:]] == list(range(COUNT - 2, 4, -1))
    done = on(database_url, "rollback", "--to", "-1")
    assert done.code == 0
    assert tables(conn) == []
    done = on(database_url, "rollback")
    assert (done.code, done.out, done.said) == (0, "There is nothing to undo.\n", [])
    done = on(database_url, "rollback", "--to", "99")
    assert (done.code, done.said[0]) == (64, "reconcile: there is no migration 99")


def test_rows_are_not_dropped_by_the_way(on, database_url, conn):
    """77 before anything is undone, and the option that does it."""
    conn.execute("INSERT INTO sync_state (job_name) VALUES ('hot')")
    before = tables(conn)
    done = on(database_url, "rollback", "--to", "-1")
    assert done.code == 77
    assert "sync_state, which holds rows" in done.said[0]
    assert "--drop-data" in done.said[1]
    assert tables(conn) == before
    assert on(database_url, "rollback", "--to", "-1", "--drop-data").code == 0
    assert tables(conn) == []


def test_checking(on, shared_database_url, twilio, calls):
    """All is well: 0, a line each, and as JSON the same."""
    done = on(shared_database_url, "check")
    assert (done.code, done.err) == (0, "")
    lines = [line.split(":")[0].split() for line in done.out.splitlines() if not line.startswith(" ")]
    assert {"settings", "secrets", "database", "schema", "privileges", "Twilio", "clock"} <= {line[1] for line in lines}
    found = on(shared_database_url, "check", "--json").result
    assert [[row["severity"], *row["name"].split()] for row in found] == lines
    assert {row.keys() == {"name", "severity", "detail", "hint"} for row in found} == {True}
    assert "FAIL" not in {row["severity"] for row in found}


def test_checking_before_the_first_migration(on, field_database_url, twilio):
    """Behind is a warning, and the privileges that the migration needs are checked."""
    done = on(field_database_url, "check", "--json")
    assert done.code == 0
    found = {row["name"]: row for row in done.result}
    assert (found["schema"]["severity"], found["privileges"]["severity"]) == ("WARN", "OK")
    assert found["schema"]["hint"] == "run `reconcile migrate`"


def test_checking_finds_all_that_is_wrong(on, twilio):
    """A database that is away does not hide that the token is wrong; the code is that of the first failure."""
    url = "postgresql://me:hush-hush@127.0.0.1:1/calls"
    done = on(url, "check", "--json", TWILIO_AUTH_TOKEN="not-the-token")
    assert done.code == 69
    found = {row["name"]: row for row in done.result}
    assert [name for name, row in found.items() if row["severity"] == "FAIL"] == ["database", "Twilio"]
    assert "TWILIO_AUTH_TOKEN" in found["Twilio"]["hint"]
    assert "hush-hush" not in done.out + done.err


def test_checking_the_token(on, shared_database_url):
    """77 for a token that Twilio refuses."""
    done = on(shared_database_url, "check", TWILIO_AUTH_TOKEN="not-the-token")
    assert done.code == 77
    assert "FAIL Twilio: Twilio refused the credentials" in done.out


def test_checking_settings_that_are_wrong(on, shared_database_url):
    """They are lines like all others, also as JSON."""
    wrong = {"RECONCILER_OVERLAPP": "5m", "RECONCILER_MAX_CONCURRENCY": "many"}
    done = on(shared_database_url, "check", "--json", **wrong)
    assert (done.code, done.err) == (78, "")
    assert [(row["name"], row["severity"]) for row in done.result] == [("settings", "FAIL")] * 2
    assert "FAIL settings: RECONCILER_OVERLAPP is not a setting" in on(shared_database_url, "check", **wrong).out


@pytest.mark.parametrize(("off", "severity"), [(timedelta(minutes=5), "WARN"), (timedelta(minutes=-5), "WARN")])
def test_checking_the_clock(on, shared_database_url, twilio, off, severity):
    """Minutes away from Twilio's in either direction is a warning that says how far, and what to do."""
    twilio.clock.advance(off)
    done = on(shared_database_url, "check", "--json")
    assert done.code == 0
    (clock,) = (row for row in done.result if row["name"] == "clock" and "Twilio" in row["detail"])
    assert clock["severity"] == severity
    assert 295 <= int(re.findall(r"\d+", clock["detail"])[0]) <= 300
    assert "NTP" in clock["hint"]


def test_the_engines_schema_comes_and_goes_with_ours(on, empty_database_url, connect):
    """With the setting `migrate` makes it and `verify` checks it. `rollback` drops it, alone or with all."""
    fleet = {"RECONCILER_ENGINE": "procrastinate"}
    assert "engine" not in [row["version"] for row in on(empty_database_url, "migrate", "--dry-run", "--json").result]
    plan = on(empty_database_url, "migrate", "--dry-run", "--json", **fleet)
    assert next(row["name"] for row in plan.result if row["version"] == "engine") == "schema.sql"
    done = on(empty_database_url, "migrate", **fleet)
    assert (done.code, done.out.splitlines()[-1].split()[:3]) == (0, ["engine", "schema.sql", "applied"])
    assert on(empty_database_url, "verify", **fleet).out == "The schema is as this version needs it.\n"
    gone = on(empty_database_url, "rollback", "--engine")
    assert (gone.code, gone.out) == (0, "The engine's schema reconciler_engine is dropped.\n")
    assert on(empty_database_url, "rollback", "--engine").out == "There is nothing to undo.\n"
    behind = on(empty_database_url, "verify", **fleet)
    assert behind.code == 78
    assert behind.out == "schema reconciler_engine is missing\n"
    assert on(empty_database_url, "migrate", **fleet).code == 0
    assert on(empty_database_url, "rollback", "--to", "-1").code == 0
    conn = connect(empty_database_url)
    assert conn.execute("SELECT FROM pg_namespace WHERE nspname = 'reconciler_engine'").fetchall() == []

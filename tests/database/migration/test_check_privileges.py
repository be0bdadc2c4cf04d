"""`reconcile check` on a migrated database tells what the role may not do."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from reconciler.database import connection as db
from reconciler.errors import ConfigError, ExitCode
from reconciler.status.check_database import _grant, check_creators, check_ids, check_schema
from reconciler.status.check_line import Check, Severity
from tests.harness.present import present

ROOT = Path(__file__).parents[3]


BOTH = ["twilio_webhook_inbox", "call_events"]  # the tables that a retention may delete from


def look(url: str, *, pruned: Sequence[str] = ()) -> list[Check]:
    """The part of the check that asks the catalog."""
    with db.connect(url, purpose="check") as conn:
        return list(check_schema(conn, pruned=pruned))


def test_a_role_that_may_only_read_is_named_with_what_it_lacks(server_url, database_url):
    """Reading is not enough: the check says which grants are missing."""
    role = sql.Identifier(f"reader_{secrets.token_hex(4)}")
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        admin.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}").format(role))
        try:
            found = {c.name: c for c in look(make_conninfo(database_url, user=role.as_string().strip('"')))}
        finally:
            admin.execute(sql.SQL("DROP OWNED BY {}").format(role))
            admin.execute(sql.SQL("DROP ROLE {}").format(role))
    assert found["privileges"].severity is Severity.FAIL
    assert "INSERT on messages" in found["privileges"].detail
    assert "SELECT" not in found["privileges"].detail


def test_the_owner_lacks_nothing(database_url):
    """The role that migrated may run all jobs, and prune."""
    assert {check.severity for check in look(database_url, pruned=BOTH)} == {Severity.OK}


def test_to_delete_is_asked_for_only_where_a_retention_is_set(database_url):
    """Everything but DELETE on two tables: enough to run, and named where their rows are to go."""
    name = f"runner_{secrets.token_hex(4)}"
    role = sql.Identifier(name)
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        admin.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA public TO {}").format(role))
        admin.execute(sql.SQL("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {}").format(role))
        admin.execute(sql.SQL("REVOKE DELETE ON twilio_webhook_inbox, call_events FROM {}").format(role))
        try:
            url = make_conninfo(database_url, user=name)
            assert {check.severity for check in look(url)} == {Severity.OK}
            found = {table: look(url, pruned=[table])[-1] for table in BOTH}
        finally:
            admin.execute(sql.SQL("DROP OWNED BY {}").format(role))
            admin.execute(sql.SQL("DROP ROLE {}").format(role))
    assert {check.severity for check in found.values()} == {Severity.FAIL}
    assert {table: check.detail for table, check in found.items()} == {t: f"{name} lacks DELETE on {t}" for t in BOTH}
    for table, other in (BOTH, BOTH[::-1]):  # the hint grants no more than the lacking privileges
        hint = str(found[table].hint)
        assert f"GRANT DELETE ON {table}" in hint
        assert other not in hint


@pytest.mark.parametrize("url", ["a=b", "postgresql://host/db?sslmode", "dbname=x password='secret"])
def test_a_url_libpq_cannot_read_is_a_setting_to_mend(url):
    """It names the setting and quotes nothing."""
    with pytest.raises(ConfigError, match="DATABASE_URL") as refused:
        db.connect(url, purpose="test")
    assert "secret" not in str(refused.value)


def test_the_command_of_the_hint_grants_what_is_lacking(database_url, psql_binary, connect, stranger):
    """It is typed as it stands, for a role of any name, with DELETE where webhooks are to go, and once is enough."""
    url = make_conninfo(database_url, user=stranger)
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(sql.SQL("GRANT SELECT ON reconciler_migrations TO {}").format(sql.Identifier(stranger)))
    (lacking,) = [check for check in look(url, pruned=BOTH) if check.name == "privileges"]
    assert lacking.severity is Severity.FAIL
    assert lacking.exit_code == ExitCode.REFUSED
    type_in(lacking.hint, database_url, psql_binary)
    assert {check.severity for check in look(url, pruned=BOTH)} == {Severity.OK}


def test_the_command_of_the_hint_suits_the_role_of_the_file(psql_binary, database_url):
    """The role `reconciler` needs no other name; DELETE is a comment in the file, and the hint makes it none."""
    assert _grant("reconciler") == 'psql "$DATABASE_URL" < deploy/grants.sql'
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS reconciler")
        admin.execute("CREATE ROLE reconciler LOGIN")
        try:
            type_in(_grant("reconciler", pruned=BOTH), database_url, psql_binary)
            url = make_conninfo(database_url, user="reconciler")
            assert {check.severity for check in look(url, pruned=BOTH)} == {Severity.OK}
        finally:
            admin.execute("DROP OWNED BY reconciler")
            admin.execute("DROP ROLE reconciler")


def type_in(hint, url, psql_binary):
    """Run the command that a hint ends with, as a person would in the project's folder."""
    command = hint.removeprefix("as the owner of messages: ")
    path = f"{psql_binary.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env={"PATH": path, "DATABASE_URL": url}, capture_output=True, check=True
    )
    assert b"ERROR" not in done.stderr


def test_hidden_rows_are_named(database_url, connect, stranger):
    """Row-level security is no OK, even with every privilege: the inbox would look empty."""
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA public TO {}").format(sql.Identifier(stranger)))
        admin.execute("ALTER TABLE twilio_webhook_inbox ENABLE ROW LEVEL SECURITY")
        admin.execute("CREATE POLICY everything ON twilio_webhook_inbox USING (true)")
    (found,) = look(make_conninfo(database_url, user=stranger))
    assert (found.name, found.severity, found.exit_code) == ("row security", Severity.FAIL, ExitCode.REFUSED)
    assert f"hides rows of twilio_webhook_inbox from {stranger}" in found.detail


@pytest.mark.parametrize("role", ["PUBLIC", "stranger"])
def test_who_may_create_in_our_schema_is_named(role, database_url, connect, stranger):
    """Everybody, as in PostgreSQL 14, or a role that was given it; the command of the hint ends it."""
    conn = connect(database_url)
    conn.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    assert [check.severity for check in check_creators(conn)] == [Severity.OK]
    name = stranger if role == "stranger" else role
    conn.execute(f"GRANT CREATE ON SCHEMA public TO {name}".encode())
    (found,) = check_creators(conn)
    assert found.severity is Severity.WARN
    assert f"{name} may create functions in schema public" in found.detail
    conn.execute(present(found.hint).removeprefix("as its owner: ").encode())
    assert [check.severity for check in check_creators(conn)] == [Severity.OK]


def test_who_may_create_a_schema_that_comes_first_is_named(database_url, connect, stranger):
    """PostgreSQL searches a schema with the name of our role first: its maker can put tables of our names there."""
    conn = connect(database_url)
    conn.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    conn.execute(
        sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(*map(sql.Identifier, (conn.info.dbname, stranger)))
    )
    (found,) = check_creators(conn)
    assert found.severity is Severity.WARN
    assert f"{stranger} may create schemas" in found.detail
    conn.execute(present(found.hint).removeprefix("as its owner: ").encode())
    assert [check.severity for check in check_creators(conn)] == [Severity.OK]


@pytest.mark.parametrize(
    ("change", "limit", "says"),
    [
        ("SELECT setval('messages_id_seq', 1932735283)", "90%", "WARN"),
        ("SELECT setval('messages_id_seq', 1900000000)", None, "OK"),
        ("SELECT setval('messages_id_seq', 2147483647)", "100%", "FAIL"),
        ("ALTER TABLE messages ALTER id TYPE bigint; SELECT setval('messages_id_seq', 2100000000)", "98%", "WARN"),
        (
            (
                "ALTER TABLE messages ALTER id DROP DEFAULT; DROP SEQUENCE messages_id_seq;"
                "ALTER TABLE messages ALTER id ADD GENERATED ALWAYS AS IDENTITY;"
                "SELECT setval('messages_id_seq', 2100000000)"
            ),
            "98%",
            "WARN",
        ),
        (
            (
                "CREATE SEQUENCE own; ALTER TABLE messages ALTER id SET DEFAULT nextval('own');"
                "SELECT setval('own', 2100000000)"
            ),
            "98%",
            "WARN",
        ),
        ("SELECT setval('call_events_id_seq', 9000000000000000000)", "98%", "WARN"),
    ],
)
def test_ids_that_run_out_are_named_in_time(change, limit, says, database_url, connect):
    """At 90 % of a table's ids there is time left to widen the column; the commands of the hint do it."""
    conn = connect(database_url)
    conn.execute(
        "INSERT INTO call_events (call_sid, event_type, event_time, source, payload)"
        " VALUES ('CA1', 'x', now(), 'webhook', '{}')"
    )
    conn.execute(change.encode())
    (found,) = check_ids(conn)
    assert found.severity.value == says
    assert limit is None or found.detail.startswith(f"{limit} of the ids of")
    if limit and "messages" in found.detail:
        for command in present(found.hint).split(" (")[0].split("; "):
            conn.execute(command.encode())
        assert [check.severity for check in check_ids(conn)] == [Severity.OK]

"""The engine's schema: made, verified, changed and dropped beside the Viewer's tables."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from reconciler.database import connection, engine_schema
from reconciler.database.connection import Connection
from reconciler.errors import ExitCode, Refused, SchemaError
from reconciler.settings import Settings
from reconciler.status.check_engine import check_engine, judge
from reconciler.status.check_line import Severity

ROOT = Path(__file__).parents[2]
FLEET = Settings.read({"RECONCILER_ENGINE": "procrastinate"})
LOCAL = Settings.read({})


def objects(conn: Connection) -> list[tuple[str]]:
    """The relations, functions and types outside of the engine's schema."""
    return conn.execute(
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace UNION ALL"
        " SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace UNION ALL"
        " SELECT typname::text FROM pg_type WHERE typnamespace = 'public'::regnamespace ORDER BY 1"
    ).fetchall()


def signs_of_life(conn: Connection) -> None:
    """Let a worker be known."""
    conn.execute("INSERT INTO reconciler_engine.procrastinate_workers DEFAULT VALUES")
    conn.execute(
        "INSERT INTO reconciler_engine.daemons SELECT id, 'db1', 4711, now(), 16"
        " FROM reconciler_engine.procrastinate_workers"
    )


@pytest.fixture
def made(conn: Connection) -> Connection:
    """A connection to a database with the engine's schema."""
    engine_schema.migrate(conn)
    return conn


@pytest.fixture
def role(database_url: str) -> Iterator[str]:
    """A role without privileges."""
    name = f"runner_{secrets.token_hex(4)}"
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        yield name
        admin.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_it_is_made_in_a_schema_of_its_own_and_dropped_without_a_trace(conn):
    """Nothing of ours or the Viewer's changes; our session's search_path is as before."""
    before, path = objects(conn), conn.execute("SHOW search_path").fetchone()
    assert engine_schema.behind(conn)[0] == "schema.sql"
    assert list(engine_schema.migrate(conn)) == ["schema.sql"]
    assert conn.execute("SHOW search_path").fetchone() == path
    assert (engine_schema.behind(conn), engine_schema.verify(conn), engine_schema.migrate(conn)) == ([], [], {})
    assert objects(conn) == before
    assert engine_schema.drop(conn)
    assert not engine_schema.drop(conn)
    assert not conn.execute("SELECT FROM pg_namespace WHERE nspname = 'reconciler_engine'").fetchall()


def test_later_changes_of_procrastinate_are_applied_once_and_in_order(made):
    """Two of its files are not applied yet; then the schema is like a new one."""
    missing = [
        "03.03.00_01_pre_priority_lock_fetch_job.sql", "03.04.00_50_post_add_retry_failed_job_procedure.sql",
    ]  # fmt: skip
    made.execute("DELETE FROM reconciler_engine.applied_files WHERE filename = ANY (%s)", (missing,))
    made.execute("DROP FUNCTION reconciler_engine.procrastinate_fetch_job_v2")
    made.execute("DROP TRIGGER procrastinate_trigger_status_events_update_v1 ON reconciler_engine.procrastinate_jobs")
    assert engine_schema.behind(made) == missing
    assert len(engine_schema.verify(made)) == 2
    (line,) = check_engine(made, FLEET)
    assert (line.severity, line.hint) == (Severity.WARN, "run `reconcile migrate`")
    assert missing[0] in line.detail
    assert list(engine_schema.migrate(made)) == missing
    assert (engine_schema.behind(made), engine_schema.verify(made)) == ([], [])


TAMPERED = [
    ("DROP INDEX procrastinate_jobs_queueing_lock_idx_v1", "jobs_queueing_lock_idx_v1 is missing"),
    (
        (
            "DROP INDEX procrastinate_jobs_priority_idx_v1; CREATE INDEX procrastinate_jobs_priority_idx_v1"
            " ON procrastinate_jobs (id)"
        ),
        "is CREATE INDEX",
    ),
    (
        (
            "CREATE OR REPLACE FUNCTION procrastinate_unregister_worker_v1(worker_id bigint) RETURNS void"
            " LANGUAGE sql AS ''"
        ),
        "function reconciler_engine.procrastinate_unregister_worker_v1(bigint) is not as procrastinate makes it",
    ),
    ("DROP FUNCTION procrastinate_fetch_job_v2", "fetch_job_v2(character varying[], bigint) is missing"),
    (
        "ALTER TABLE procrastinate_jobs DROP COLUMN abort_requested CASCADE",
        "column reconciler_engine.procrastinate_jobs.abort_requested is missing",
    ),
    ("ALTER TABLE procrastinate_jobs ALTER attempts TYPE bigint", "is bigint NOT NULL, not integer NOT NULL"),
    ("ALTER TABLE procrastinate_jobs ALTER attempts DROP DEFAULT", "procrastinate_jobs.attempts is missing"),
    (
        "ALTER TABLE procrastinate_jobs DISABLE TRIGGER procrastinate_trigger_status_events_update_v1",
        "procrastinate_trigger_status_events_update_v1 is disabled",
    ),
    ("ALTER TABLE procrastinate_jobs DROP CONSTRAINT procrastinate_jobs_worker_id_fkey", "worker_id_fkey is missing"),
    ("ALTER TYPE procrastinate_job_status ADD VALUE 'lost'", "procrastinate_job_status is todo, doing"),
    ("DROP TABLE procrastinate_periodic_defers", "table reconciler_engine.procrastinate_periodic_defers is missing"),
    ("ALTER TABLE daemons DROP COLUMN slots", "column reconciler_engine.daemons.slots is missing"),
    ("DROP TABLE expected_objects", "table reconciler_engine.expected_objects is missing"),
    ("DELETE FROM expected_objects", "content of reconciler_engine.expected_objects is missing"),
]


@pytest.mark.parametrize(("statements", "problem"), TAMPERED)
def test_an_object_that_is_not_as_it_was_made_is_named(made, statements, problem):
    """`verify` and `check` name it and say what to type; after that it is as it was made."""
    made.execute("SET search_path = reconciler_engine")
    for statement in statements.split("; "):
        made.execute(statement.encode())
    made.execute("SET search_path = public")
    findings = engine_schema.verify(made)
    told = [f"{finding.subject} {finding.problem}" for finding in findings]
    assert any(problem in line for line in told), told
    assert all("`reconcile rollback --engine`" in finding.hint for finding in findings)
    assert {line.exit_code for line in check_engine(made, FLEET)} == {ExitCode.CONFIG}
    assert engine_schema.drop(made)
    engine_schema.migrate(made)
    assert engine_schema.verify(made) == []


def test_a_later_change_of_procrastinate_does_not_make_a_fault_the_rule(made):
    """The expected objects are those of the installed files, and not those of the schema that the files change."""
    made.execute("DROP INDEX reconciler_engine.procrastinate_jobs_priority_idx_v1")
    last = "03.03.00_01_pre_priority_lock_fetch_job.sql"
    made.execute("DELETE FROM reconciler_engine.applied_files WHERE filename = %s", (last,))
    made.execute("DROP FUNCTION reconciler_engine.procrastinate_fetch_job_v2")
    before = objects(made)
    assert list(engine_schema.migrate(made)) == [last]
    assert [finding.subject.rpartition(".")[2] for finding in engine_schema.verify(made)] == [
        "procrastinate_jobs_priority_idx_v1"
    ]
    assert objects(made) == before
    assert not made.execute("SELECT FROM pg_namespace WHERE nspname = 'reconciler_engine_reference'").fetchall()


def test_a_schema_of_a_newer_procrastinate_is_refused(made):
    """Its workers could not read the tables."""
    made.execute("INSERT INTO reconciler_engine.applied_files VALUES ('99.00.00_01_pre_new.sql', now())")
    with pytest.raises(SchemaError, match=r"99\.00\.00_01_pre_new\.sql is unknown here"):
        engine_schema.behind(made)
    (line,) = check_engine(made, FLEET)
    assert line.exit_code is ExitCode.CONFIG


def test_it_is_not_dropped_while_a_daemon_works(made):
    """The daemon is named; a silent one does not count."""
    signs_of_life(made)
    with pytest.raises(Refused, match="db1/4711"):
        engine_schema.drop(made)
    made.execute("UPDATE reconciler_engine.procrastinate_workers SET last_heartbeat = now() - interval '1 minute'")
    assert engine_schema.drop(made)


@pytest.mark.parametrize("broken", ["TABLE reconciler_engine.daemons", "SCHEMA IF EXISTS nowhere"])
def test_it_is_not_dropped_while_a_daemon_without_a_sign_of_life_is_connected(made, database_url, broken):
    """The daemon works all the same. Its session names it."""
    made.execute(f"DROP {broken}".encode())
    with connection.connect(database_url, purpose="engine db1/4711") as daemon:
        with pytest.raises(Refused, match="db1/4711"):
            engine_schema.drop(made)
        made.execute("SELECT pg_terminate_backend(%s, 5000)", (daemon.info.backend_pid,))
    assert engine_schema.drop(made)


def test_functions_and_types_that_are_gone_are_named_and_no_table_is(made):
    """They have no table."""
    wanted = made.execute(
        "SELECT kind, name FROM reconciler_engine.expected_objects WHERE relation = '' ORDER BY kind, name"
    ).fetchall()
    assert {kind for kind, _ in wanted} == {"function", "type"}
    made.execute("SET search_path = reconciler_engine")
    for kind, name in wanted:
        made.execute(f"DROP {kind} {name} CASCADE".encode())
    made.execute("SET search_path = public")
    findings = {finding.subject for finding in engine_schema.verify(made)}
    assert {f"{kind} reconciler_engine.{name}" for kind, name in wanted} <= findings
    assert not [subject for subject in findings if subject.startswith("table ")]


def test_the_note_of_a_daemon_goes_with_its_worker(made):
    """The deletion of the worker's row deletes the note."""
    signs_of_life(made)
    (worker,) = engine_schema.read_workers(made)
    assert (worker.name, worker.slots, worker.running) == ("db1/4711", 16, [])
    made.execute("DELETE FROM reconciler_engine.procrastinate_workers")
    assert made.execute("SELECT FROM reconciler_engine.daemons").fetchall() == []


def test_the_check_of_a_fleet(conn):
    """The schema is missing; then nobody works; then somebody does; then an object is missing."""
    (line,) = check_engine(conn, FLEET)
    assert (line.severity, line.exit_code) == (Severity.FAIL, ExitCode.CONFIG)
    engine_schema.migrate(conn)
    (line,) = check_engine(conn, FLEET)
    assert (line.severity, line.detail) == (Severity.WARN, "no daemon works; 0 runs wait for a worker")
    signs_of_life(conn)
    (line,) = check_engine(conn, FLEET)
    assert (line.severity, line.detail) == (Severity.OK, "db1/4711 work; 0 runs wait for a worker")
    conn.execute("DROP INDEX reconciler_engine.procrastinate_jobs_priority_idx_v1")
    (line,) = check_engine(conn, FLEET)
    assert line.exit_code is ExitCode.CONFIG
    assert "procrastinate_jobs_priority_idx_v1 is missing" in line.detail


def test_runs_that_wait_for_long_ask_for_more_workers(made):
    """Five minutes are more than any peak."""
    signs_of_life(made)
    queue = engine_schema.Queue("hot", due=7, oldest_seconds=400.0, put_off=0, at_work=4)
    line = judge(engine_schema.read_workers(made), [queue])
    assert line.severity is Severity.WARN
    assert line.detail == "7 runs wait for a worker, the oldest for 6 min; db1/4711 work"


def test_a_machine_that_is_set_to_work_alone_beside_a_fleet_is_told(conn):
    """It would take the lead, and run all jobs itself. Without a fleet there is no line."""
    assert list(check_engine(conn, LOCAL)) == []
    engine_schema.migrate(conn)
    assert list(check_engine(conn, LOCAL)) == []
    signs_of_life(conn)
    (line,) = check_engine(conn, LOCAL)
    assert line.severity is Severity.WARN
    assert "RECONCILER_ENGINE" in line.detail


def test_the_grants_are_what_a_daemon_needs(made, role, database_url, connect):
    """Before, the check names what is missing; after deploy/grants.sql a worker's statements pass."""
    theirs = connect(make_conninfo(database_url, user=role))
    (line,) = check_engine(theirs, FLEET)
    assert (line.severity, line.exit_code) == (Severity.FAIL, ExitCode.REFUSED)
    assert list(check_engine(theirs, LOCAL)) == []
    grants = (ROOT / "deploy" / "grants.sql").read_text(encoding="utf-8")
    made.execute(grants.replace("TO reconciler", f"TO {role}").encode())
    assert engine_schema.lacking_privileges(theirs) == []
    theirs.execute("SET search_path = reconciler_engine")
    theirs.execute("SELECT procrastinate_register_worker_v1()")
    theirs.execute("SET search_path = public")
    (line,) = check_engine(theirs, FLEET)
    assert line.severity is Severity.OK


def test_a_role_that_may_not_make_a_schema_is_told_what_to_grant(database_url, role, connect):
    """CREATE on the database, which `reconcile migrate` alone does not need otherwise."""
    with pytest.raises(Refused) as refused:
        engine_schema.migrate(connect(make_conninfo(database_url, user=role)))
    assert "GRANT CREATE ON DATABASE" in str(refused.value.hint)

"""The migration runner: refusals, waits and crashes."""

from __future__ import annotations

import csv
import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from reconciler.database import connection as db
from reconciler.database import locks, migrate, obstacles
from reconciler.database.migration_files import Script, load_migrations, split
from reconciler.database.verify import verify
from reconciler.errors import Contended, JobHeld, Refused, SchemaError, Unavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.databases import Connect

    Dump = Callable[[str], dict[str, str]]

SQL = Path(__file__).parents[3] / "sql"
ALL = len(load_migrations())


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait until the condition holds, and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return value


# --- the ledger


def test_changed_file_is_refused(conn: db.Connection) -> None:
    """A file that was edited after it was applied is named, and nothing runs."""
    conn.execute("UPDATE reconciler_migrations SET checksum = 'another' WHERE version = 5")
    for function in (migrate.behind, migrate.plan, migrate.migrate):
        with pytest.raises(SchemaError, match=r"005_widen_messages\.sql was changed"):
            function(conn)


def test_the_ledger_of_version_0_1_0_is_accepted(conn: db.Connection) -> None:
    """Version 0.1.0 recorded whole files. Its ledger counts, although comments have changed since."""
    with (Path(__file__).parent / "ledger_of_0_1_0.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    for row in written:
        conn.execute("UPDATE reconciler_migrations SET checksum = %(checksum)s WHERE version = %(version)s", row)
    assert len(written) == 14
    assert migrate.behind(conn) == []
    migrate.rollback(conn, to=9)
    migrate.migrate(conn)
    assert migrate.behind(conn) == []


def test_no_statement_of_version_0_1_0_has_changed() -> None:
    """Databases in the field ran these statements. A change is a new file."""
    checksums = "".join(migration.up.checksum for migration in load_migrations()[:14])
    assert (
        hashlib.sha256(checksums.encode()).hexdigest()
        == "210ab3abc91e636bfdd98f0aec3cc905f6ee098ac487460a78eb33b2ab0cd7b6"
    )


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ("-- said\nSELECT 1;", False),
        ("SELECT   1 -- said\n ;\r\n", False),
        ("SELECT 2;", True),
        ("SELECT '  ';", True),
        ("SELECT ' ';", True),
        ("DO $$ -- said\n$$;", True),
        ("DO $$ $$;", True),
    ],
)
def test_checksum_is_that_of_the_statements(changed: str, counts: bool) -> None:
    """Comments and white space between words may change. Text that PostgreSQL keeps may not."""
    assert (Script("", changed).checksum != Script("", "SELECT 1;").checksum) is counts
    others = {"SELECT '  ';", "SELECT ' ';", "DO $$ -- said\n$$;", "DO $$ $$;"} - {changed}
    assert Script("", changed).checksum not in {Script("", other).checksum for other in others}


def test_newer_database_is_refused(conn: db.Connection) -> None:
    """An old program keeps its hands off what a newer one migrated, in both directions."""
    conn.execute("INSERT INTO reconciler_migrations VALUES (999, 'from_the_future', '', now(), '1s')")
    with pytest.raises(SchemaError, match="999 from_the_future is unknown here"):
        migrate.migrate(conn)
    with pytest.raises(SchemaError, match="999 from_the_future is unknown here"):
        migrate.rollback(conn, to=-1)


def test_hole_in_the_ledger_is_refused(conn: db.Connection) -> None:
    """No migration is applied after one that was applied out of order."""
    conn.execute("DELETE FROM reconciler_migrations WHERE version = 3")
    with pytest.raises(SchemaError, match="003 is missing"):
        migrate.migrate(conn)


def test_ledger_says_what_was_applied(conn: db.Connection) -> None:
    """Each migration has its row with checksum, time and duration."""
    rows = conn.execute(
        "SELECT version, name, checksum, applied_at > now() - interval '1 hour', duration >= interval '0'"
        " FROM reconciler_migrations ORDER BY version"
    ).fetchall()
    assert rows == [(m.version, m.name, m.up.checksum, True, True) for m in load_migrations()]


def test_every_step_is_reported(empty_database_url: str, connect: Connect) -> None:
    """The caller hears of each migration as it lands."""
    heard: list[migrate.Applied] = []
    assert migrate.migrate(connect(empty_database_url), on_applied=heard.append) == heard
    assert len(heard) == ALL


def test_session_is_given_back_as_it_was(empty_database_url: str, connect: Connect) -> None:
    """Timeouts of the caller's connection are restored and the advisory lock is free."""
    conn = connect(empty_database_url, lock_timeout="7s", statement_timeout="8s")
    migrate.migrate(conn)
    assert conn.execute("SHOW lock_timeout").fetchone() == ("7s",)
    assert conn.execute("SHOW statement_timeout").fetchone() == ("8s",)
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    assert conn.execute(locks).fetchone() == (0,)


# --- two at once


def test_second_runner_waits_for_the_first(empty_database_url: str, connect: Connect) -> None:
    """While one migrates another waits, and then finds nothing left to do."""
    first, second = connect(empty_database_url), connect(empty_database_url)
    started, go_on = threading.Event(), threading.Event()

    def pause(_: migrate.Applied) -> None:
        started.set()
        assert go_on.wait(20)

    with ThreadPoolExecutor() as pool:
        one = pool.submit(migrate.migrate, first, on_applied=pause)
        assert started.wait(20)
        two = pool.submit(migrate.migrate, second)
        observer = connect(empty_database_url)
        until(lambda: _tried_lock(observer, second))
        assert not two.done()
        go_on.set()
        assert len(one.result(20)) == ALL
        assert two.result(20) == []


def _tried_lock(observer: db.Connection, conn: db.Connection) -> bool:
    row = observer.execute(
        "SELECT query LIKE '%%try_advisory_lock%%' FROM pg_stat_activity WHERE pid = %s", (conn.info.backend_pid,)
    ).fetchone()
    return bool(row and row[0])


def test_wait_for_the_other_runner_is_bounded(empty_database_url: str, connect: Connect) -> None:
    """A runner that never ends does not hold up the others for ever."""
    assert locks.try_advisory_lock(connect(empty_database_url), "migrate")
    with pytest.raises(JobHeld):
        migrate.migrate(connect(empty_database_url), patience=timedelta(0))


# --- killed


class Mortal(psycopg.Connection[tuple[Any, ...]]):
    """A connection whose backend is terminated before its n-th statement."""

    remaining = 0

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        self.remaining -= 1
        if self.remaining == 0:
            super().execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return super().execute(*args, **kwargs)


@pytest.mark.parametrize("road", ["empty_database_url", "field_database_url"])
def test_killed_before_every_statement_it_goes_on(
    road: str, request: pytest.FixtureRequest, connect: Connect, dump: Dump
) -> None:
    """A kill at each statement of each file leaves the schema of an undisturbed run."""
    url = request.getfixturevalue(road)
    observer = connect(url)
    undisturbed = dump(request.getfixturevalue("database_url"))
    statement, progress, kills = 1, -1, 0
    while True:
        with Mortal.connect(url, autocommit=True) as conn:
            conn.remaining = statement
            try:
                migrate.migrate(conn)
                break
            except Unavailable:
                kills += 1
        # A run that got further starts the count again: each file is cut at each of its statements.
        applied = _applied(observer)
        statement = 1 if applied != progress else statement + 1
        progress = applied
    assert kills > 100
    assert verify(observer) == []
    if road == "empty_database_url":
        assert dump(url) == undisturbed


def _applied(conn: db.Connection) -> int:
    if conn.execute("SELECT to_regclass('reconciler_migrations')").fetchone() == (None,):
        return 0
    row = conn.execute("SELECT count(*) FROM reconciler_migrations").fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture
def old_snapshot(field_database_url: str, connect: Connect) -> Iterator[db.Connection]:
    """A transaction that an index built CONCURRENTLY has to wait for."""
    conn = connect(field_database_url)
    migrate.migrate(conn)
    migrate.rollback(conn, to=9)
    reader = psycopg.connect(field_database_url, application_name="nightly dump")
    reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    reader.execute("SELECT count(*) FROM sync_state")
    yield conn
    reader.close()


def _interrupted_build(field_database_url: str, conn: db.Connection, connect: Connect) -> None:
    """Terminate a runner that is inside CREATE INDEX CONCURRENTLY, so that an INVALID index stays."""
    victim = connect(field_database_url)
    with ThreadPoolExecutor() as pool:
        run = pool.submit(migrate.migrate, victim)
        until(lambda: conn.execute("SELECT 1 FROM pg_index WHERE NOT indisvalid").fetchone())
        conn.execute("SELECT pg_terminate_backend(%s, 5000)", (victim.info.backend_pid,))
        with pytest.raises(Unavailable):
            run.result(20)
    assert [f.problem for f in verify(conn) if "invalid" in f.problem] == ["is invalid: its build was interrupted"]


def test_killed_inside_an_index_build_it_heals(
    field_database_url: str, old_snapshot: db.Connection, connect: Connect
) -> None:
    """The INVALID index that a killed build leaves is dropped and built again."""
    _interrupted_build(field_database_url, old_snapshot, connect)
    with ThreadPoolExecutor() as pool:
        run = pool.submit(migrate.migrate, connect(field_database_url))
        until(lambda: _reader_waited_for(old_snapshot))
        old_snapshot.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'nightly dump'"
        )
        assert [a.version for a in run.result(20)] == list(range(10, len(load_migrations())))
    assert verify(old_snapshot) == []


def _reader_waited_for(conn: db.Connection) -> Any:
    return conn.execute(
        "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'virtualxid' AND query LIKE '%CONCURRENTLY%'"
    ).fetchone()


def test_killed_inside_an_index_build_psql_heals_it(
    field_database_url: str, old_snapshot: db.Connection, connect: Connect, psql: Callable[[str, Path], None]
) -> None:
    """The file itself drops the INVALID index, so running it by hand is enough."""
    _interrupted_build(field_database_url, old_snapshot, connect)
    old_snapshot.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'nightly dump'"
    )
    for migration in load_migrations()[10:]:
        psql(field_database_url, SQL / migration.up.filename)
    assert verify(old_snapshot) == []


# --- in the way


def test_whoever_holds_the_lock_is_named(
    field_database_url: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error at giving up names the session that held it. Earlier migrations stay applied."""
    monkeypatch.setattr(migrate, "LOCK_ATTEMPTS", 2)
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", timedelta(milliseconds=20))
    conn = connect(field_database_url)
    with psycopg.connect(field_database_url, application_name="forgotten psql") as reader:
        reader.execute("SELECT count(*) FROM messages")
        with pytest.raises(
            Contended, match=rf"pid {reader.info.backend_pid}, forgotten psql as \w+, idle in transaction"
        ):
            migrate.migrate(conn)
    assert migrate.behind(conn)[0].version == 4
    assert migrate.migrate(conn)[0].version == 4


def test_index_build_that_waits_too_long_names_the_snapshot(
    field_database_url: str, old_snapshot: db.Connection, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index build waits for old snapshots, long but not for ever, and says whose it was."""
    monkeypatch.setattr(migrate, "HARMLESS_LOCK_TIMEOUT", timedelta(milliseconds=50))
    with pytest.raises(Contended, match=r"010_index_for_jobs\.sql did not get its lock: pid .* nightly dump"):
        migrate.migrate(connect(field_database_url))


def test_short_lock_of_a_writer_is_outwaited(field_database_url: str, connect: Connect) -> None:
    """A writer that holds its lock for a while is waited for in short attempts."""
    conn, observer = connect(field_database_url), connect(field_database_url)
    with ThreadPoolExecutor() as pool, psycopg.connect(field_database_url) as writer:
        writer.execute("UPDATE messages SET duration = 1 WHERE id = 1")
        run = pool.submit(migrate.migrate, conn)
        until(lambda: _failed_attempts(observer, conn))
        writer.commit()
        assert len(run.result(30)) == ALL


def _failed_attempts(observer: db.Connection, conn: db.Connection) -> Any:
    return observer.execute(
        "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", (conn.info.backend_pid,)
    ).fetchone()


def test_view_over_a_narrow_column_is_named(field_database_url: str, connect: Connect) -> None:
    """A view that keeps a column from being widened is named, and stays; without it the next run goes on."""
    conn = connect(field_database_url)
    conn.execute("CREATE VIEW costs AS SELECT price FROM messages")
    with pytest.raises(SchemaError, match=r"005_widen_messages.sql: .*view costs depends on column"):
        migrate.migrate(conn)
    conn.execute("DROP VIEW costs")
    assert migrate.migrate(conn)[0].version == 5


# --- refused


def test_role_without_create_is_refused(empty_database_url: str, connect: Connect) -> None:
    """A role that may not create tables is told so before anything is tried."""
    conn = connect(empty_database_url)
    with _role(conn) as role:
        conn.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        with pytest.raises(Refused, match=f"role {role} lacks CREATE on schema public"):
            migrate.migrate(conn)
        conn.execute("RESET ROLE")


def test_role_that_does_not_own_the_table_is_refused(field_database_url: str, connect: Connect) -> None:
    """Only the owner may alter a table; the message says whose it is."""
    conn = connect(field_database_url)
    with _role(conn) as role:
        conn.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(sql.Identifier(role)))
        conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        with pytest.raises(Refused, match="ownership of table messages, which belongs to "):
            migrate.plan(conn)
        conn.execute("RESET ROLE")


def test_role_that_owns_only_the_tables_may_migrate(empty_database_url: str, connect: Connect) -> None:
    """No superuser is needed."""
    conn = connect(empty_database_url)
    with _role(conn) as role:
        conn.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(sql.Identifier(role)))
        conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        assert len(migrate.migrate(conn)) == ALL
        assert verify(conn) == []
        conn.execute("RESET ROLE")


class _role:  # noqa: N801
    """A role without any privilege, for the length of a test."""

    def __init__(self, conn: db.Connection) -> None:
        self.conn = conn
        self.name = f"role_{conn.info.dbname}"

    def __enter__(self) -> str:
        self.conn.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(self.name)))
        return self.name

    def __exit__(self, *_: object) -> None:
        self.conn.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(self.name)))
        self.conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(self.name)))


def test_database_that_takes_no_writes_is_refused(empty_database_url: str, connect: Connect) -> None:
    """A standby or a read-only database is named as such."""
    with pytest.raises(Unavailable, match="takes no writes"):
        migrate.migrate(connect(empty_database_url, default_transaction_read_only="on"))


def test_old_server_is_refused(conn: db.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server older than the oldest we know to work is named with its version."""
    monkeypatch.setattr(obstacles, "OLDEST_SERVER", 99)
    with pytest.raises(SchemaError, match=r"PostgreSQL \d\d; 99 is the oldest"):
        migrate.behind(conn)


# --- rollback


def _fill(conn: db.Connection) -> None:
    conn.execute(
        "INSERT INTO twilio_webhook_inbox (source, event_type, dedupe_key, payload) VALUES ('s', 'e', 'k', '{}')"
    )


def test_rollback_refuses_to_drop_rows(conn: db.Connection) -> None:
    """A table that holds rows is not dropped, and nothing else is undone on the way to it."""
    _fill(conn)
    with pytest.raises(Refused, match="would drop twilio_webhook_inbox, which holds rows"):
        migrate.rollback(conn, to=-1)
    assert verify(conn) == []


def test_rollback_drops_rows_when_told(conn: db.Connection) -> None:
    """With drop_data the rows go with their table."""
    _fill(conn)
    migrate.rollback(conn, to=0, drop_data=True)
    assert conn.execute("SELECT to_regclass('twilio_webhook_inbox')").fetchone() == (None,)


def test_rollback_looks_again_under_its_lock(conn: db.Connection) -> None:
    """A row that arrives between the first look and the drop is not lost."""

    def arrive(applied: migrate.Applied) -> None:
        if applied.version == 2:
            _fill(conn)

    with pytest.raises(Refused, match="twilio_webhook_inbox"):
        migrate.rollback(conn, to=-1, on_applied=arrive)
    assert conn.execute("SELECT count(*) FROM twilio_webhook_inbox").fetchone() == (1,)


def test_rollback_never_drops_the_viewers_messages(field_database_url: str, connect: Connect) -> None:
    """Even when told to drop data, a table that we did not create stays with its rows."""
    conn = connect(field_database_url)
    migrate.migrate(conn)
    migrate.rollback(conn, to=-1, drop_data=True)
    assert conn.execute("SELECT count(*) FROM messages").fetchone() == (2503,)


def test_rollback_to_an_unknown_version_is_refused(conn: db.Connection) -> None:
    """A version that does not exist is a mistake, not "everything"."""
    for version in (-2, ALL):
        with pytest.raises(UsageError):
            migrate.rollback(conn, to=version)


def test_rollback_without_ledger_does_nothing(field_database_url: str, connect: Connect, dump: Dump) -> None:
    """A database that we never migrated is not rolled back."""
    before = dump(field_database_url)
    assert migrate.rollback(connect(field_database_url), to=-1, drop_data=True) == []
    assert dump(field_database_url) == before


# --- reading the files


def test_split_respects_quotes_and_comments() -> None:
    """A semicolon ends a statement only outside of quotes, dollar quotes and comments."""
    text = """
    -- a comment; with a semicolon
    SELECT 'a;''b' AS "odd;name"; /* two; */
    DO $body$ BEGIN PERFORM $$;$$; END $body$;
    SELECT 1
    """
    assert split(text) == [
        """SELECT 'a;''b' AS "odd;name\"""",
        "DO $body$ BEGIN PERFORM $$;$$; END $body$",
        "SELECT 1",
    ]


def test_header_tells_lock_and_transaction() -> None:
    """The runner reads what a file says about itself."""
    script = Script("x.sql", "-- x\n--\n-- lock: ACCESS EXCLUSIVE on messages\n-- transaction: none\n\nSELECT 1;\n")
    assert (script.lock, script.locked, script.transactional) == ("ACCESS EXCLUSIVE on messages", ["messages"], False)

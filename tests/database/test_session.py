"""Every session of ours has its settings, under any defaults of role, database and server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from reconciler.database.connection import translated
from reconciler.database.migrate import migrate
from reconciler.database.store import Store
from reconciler.database.verify import verify
from reconciler.errors import Refused

if TYPE_CHECKING:
    from reconciler.database.connection import Connection
    from tests.harness.databases import Connect


def set_for_all(conn: Connection, setting: str, value: str) -> None:
    """Give the database of `conn` another default."""
    conn.execute(
        sql.SQL("ALTER DATABASE {} SET {} = " + value).format(sql.Identifier(conn.info.dbname), sql.Identifier(setting))
    )


@pytest.mark.parametrize(
    ("preferred", "pinned"),
    [
        ('"$user", public', '"public", pg_temp'),
        ("public, pg_catalog", '"public", pg_temp'),
        ("pg_temp, public", '"public", pg_temp'),
        ("gone, public, pg_catalog, pg_temp", '"public", pg_temp'),
    ],
)
def test_only_the_schemas_of_the_tables_are_searched(
    preferred: str, pinned: str, empty_database_url: str, connect: Connect
) -> None:
    """PostgreSQL's own functions and operators come first and temporary tables last, under any search_path."""
    set_for_all(connect(empty_database_url), "search_path", preferred)
    assert connect(empty_database_url).execute("SHOW search_path").fetchone() == (pinned,)


def test_tables_may_stand_in_another_schema(empty_database_url: str, connect: Connect) -> None:
    """A name that needs quotes is no obstacle."""
    conn = connect(empty_database_url)
    conn.execute('CREATE SCHEMA "Calls, all"')
    set_for_all(conn, "search_path", '"Calls, all", public')
    conn = connect(empty_database_url)
    assert conn.execute("SHOW search_path").fetchone() == ('"Calls, all", "public", pg_temp',)
    migrate(conn)
    assert verify(conn) == []
    assert conn.execute("SELECT to_regclass('public.messages')").fetchone() == (None,)


def test_names_are_quoted_only_where_they_must_be(database_url: str, connect: Connect) -> None:
    """A server that quotes every name describes the same schema."""
    set_for_all(connect(database_url), "quote_all_identifiers", "on")
    conn = connect(database_url)
    assert verify(conn) == []


def test_a_session_outwaits_a_catalog_that_is_locked(database_url: str, connect: Connect) -> None:
    """Autovacuum locks a catalog for longer than the merge waits for a row; the staging table is made afterwards."""
    vacuum, watcher = connect(database_url), connect(database_url)
    waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

    def begin() -> list[object]:
        with Store(database_url) as store:
            return store.read_cursors("hot")

    with ThreadPoolExecutor() as pool:
        with vacuum.transaction():
            vacuum.execute("LOCK TABLE pg_class IN SHARE MODE")
            made = pool.submit(begin)
            while not made.done() and watcher.execute(waiting).fetchone() is None:
                pass
            vacuum.execute("SELECT pg_sleep(0.5)")
        assert made.result() == []


def test_rows_that_a_policy_hides_are_an_error(database_url: str, connect: Connect, stranger: str) -> None:
    """A hidden row would look like a call that we lack. PostgreSQL refuses the statement instead."""
    owner = connect(database_url)
    owner.execute("ALTER TABLE messages ENABLE ROW LEVEL SECURITY")
    owner.execute(sql.SQL("GRANT SELECT ON messages TO {}").format(sql.Identifier(stranger)))
    owner.execute("CREATE POLICY everything ON messages USING (true)")
    with pytest.raises(Refused, match="row-level security"), translated():
        connect(make_conninfo(database_url, user=stranger)).execute("SELECT FROM messages")

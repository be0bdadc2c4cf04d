"""Finds out whether a pooler stands between us and PostgreSQL, and whether it keeps our sessions together.

A pooler in transaction mode (PgBouncer's `pool_mode = transaction`, and its like) hands each transaction to whatever
server connection is free. Our locks, our temporary table and our settings would stay behind on a connection that
belongs to somebody else by then: the lock held by nobody, the settings at work in the Viewer's statements.

Two questions, both without false alarms:

- Is there a pooler? At login the server names the process that serves the session. A TCP proxy hands that on; a pooler
  makes a number up, by which it routes cancel requests.
- Does it keep sessions together? Two connections that are open at the same time have a server process each, and keep
  it. Who sees one process serve both, or a connection change its process, has met a pooler that does not. One that
  hands out the server connection used last shows the former, one that takes turns the latter.

Busy as a pool may be, it can hide only by chance; what is not seen now is looked for again with the next connection.
"""

from __future__ import annotations

import select
import time
from contextlib import closing
from typing import Any, Final

import psycopg
from psycopg.pq import ExecStatus

from reconciler.errors import ConfigError

# A process id may come again, and on another server of the same name; not with the same microsecond.
_PROCESS: Final = "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_ROUNDS: Final = 3
# A pool that keeps sessions together may have no place left for a second connection.
_PATIENCE: Final = 2.0  # seconds

Connection = psycopg.Connection[tuple[Any, ...]]


def is_pooled(conn: Connection) -> bool:
    """Whether a pooler, of whatever mode, stands between us and the server."""
    row = conn.execute("SELECT pg_backend_pid()").fetchone()
    return row != (conn.info.backend_pid,)


def require_session(conn: Connection, url: str) -> None:
    """Make sure that what `conn` sets up stays with it. Asks a second connection, if there is a pooler.

    Raises:
        ConfigError: a pooler changes the server connection between two transactions.

    """
    if is_pooled(conn) and _changes_process(conn, url):
        raise ConfigError(
            "DATABASE_URL names a connection pooler that hands each transaction to another session (transaction mode)",
            hint="connect to PostgreSQL directly, or through a pool with pool_mode = session",
        )


def _changes_process(conn: Connection, url: str) -> bool:
    ours = _process(conn)
    try:
        other = psycopg.connect(url, autocommit=True, connect_timeout=int(_PATIENCE))
    except psycopg.OperationalError:  # no place for it
        return _process(conn) != ours
    with closing(other):
        theirs = _process_in_time(other)
        for _ in range(_ROUNDS):
            if _process(conn) != ours or theirs == ours:
                return True
            if theirs is None:
                return False
            if _process_in_time(other) != theirs or _process(conn) != ours:
                return True
    return False


def _process(conn: Connection) -> tuple[str, ...]:
    row = conn.execute(_PROCESS).fetchone()
    assert row  # a process sees itself
    return tuple(map(str, row))


def _process_in_time(conn: Connection) -> tuple[str, ...] | None:
    """The server process of `conn`; None if the pool has none for it for now."""
    pgconn = conn.pgconn
    pgconn.send_query(_PROCESS.encode())
    deadline = time.monotonic() + _PATIENCE
    process = None
    while True:
        while pgconn.is_busy():
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pgconn.socket], [], [], left)[0]:
                return None
            pgconn.consume_input()
        answer = pgconn.get_result()
        if answer is None:
            return process
        if answer.status == ExecStatus.TUPLES_OK:
            process = tuple((answer.get_value(0, column) or b"").decode() for column in range(answer.nfields))

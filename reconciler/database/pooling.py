"""Finds out whether a connection pooler is in use, and whether it keeps our sessions together.

A pooler in transaction mode (such as PgBouncer's `pool_mode = transaction`) gives each transaction any free server
connection. Our locks, our temporary table and our settings would stay on a connection that then belongs to another
client. Nobody would hold the lock, and the settings would apply to the Viewer's statements.

Two questions, both without false alarms:

- Is there a pooler? At login the server names the process that serves the session. A TCP proxy passes that on. A pooler
  invents a number, by which it routes cancel requests.
- Does the pooler keep sessions together? Two connections that are open at the same time have a server process each, and
  keep it. If one process serves both, or if a connection changes its process, the pooler does not keep them together.
  The first shows when the pooler gives out the connection used last, the second when it takes turns.

A busy pool can hide this only by chance. The next connection asks again.
"""

from __future__ import annotations

import select
import time
from contextlib import closing
from typing import Any, Final

import psycopg
from psycopg.pq import ExecStatus

from reconciler.errors import ConfigError

# A process id may be used again, or exist on another server of the same name. The start time makes it unique. The
# session has the role's own search_path here: every name is PostgreSQL's, so that no object of others can be meant.
_PROCESS: Final = (
    "SELECT pid, backend_start::pg_catalog.text FROM pg_catalog.pg_stat_activity"
    " WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()"
)
_ROUNDS: Final = 3
# A pool that keeps sessions together may have no place left for a second connection.
_SECOND_TIMEOUT: Final = 2.0  # seconds

Connection = psycopg.Connection[tuple[Any, ...]]


def is_pooled(conn: Connection) -> bool:
    """Whether there is a pooler, in any mode, between us and the server."""
    row = conn.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
    return row != (conn.info.backend_pid,)


def require_session(conn: Connection, url: str) -> None:
    """Check that locks and settings stay with `conn`. If there is a pooler, this opens a second connection.

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
        other = psycopg.connect(url, autocommit=True, connect_timeout=int(_SECOND_TIMEOUT))
    except psycopg.OperationalError:  # the pool has no place for it
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
    """Return the server process of `conn`; None if the pool has none for it at the moment."""
    pgconn = conn.pgconn
    pgconn.send_query(_PROCESS.encode())
    deadline = time.monotonic() + _SECOND_TIMEOUT
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

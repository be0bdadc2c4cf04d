"""Session-level advisory locks, held on the connection that works under them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from psycopg.types.json import Jsonb

from reconciler.database.connection import APPLICATION_NAME, Connection, load_queries


def try_advisory_lock(conn: Connection, name: str) -> int | None:
    """Take the lock called `name`; return the pid of our server process, or None if another session holds it.

    The lock lives on this connection: if the connection is lost, the lock and the transaction are lost too
    (https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS).
    """
    row = conn.execute(
        "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended(%s, 0)), pg_catalog.pg_backend_pid()",
        (f"{APPLICATION_NAME}:{name}",),
    ).fetchone()
    return row[1] if row and row[0] else None


def holds_advisory_lock(conn: Connection, name: str, *, pid: int) -> bool:
    """Whether the session with the server process `pid` holds the lock called `name`."""
    return pid in _holding(conn, name)


def is_locked(conn: Connection, name: str) -> bool:
    """Whether a session with this database holds the lock called `name`."""
    return bool(_holding(conn, name))


def _holding(conn: Connection, name: str) -> list[int]:
    """Return the pids of the server processes that hold the lock called `name`, at most one."""
    rows = conn.execute(
        "SELECT pid FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted AND database ="
        " (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"
        " AND (classid::bigint << 32 | objid::bigint) = pg_catalog.hashtextextended(%s, 0)",
        (f"{APPLICATION_NAME}:{name}",),
    )
    return [pid for (pid,) in rows]


def holder_of(conn: Connection, name: str) -> str | None:
    """Return the holder of the lock called `name`, `db1/4711` for a leading daemon; None if nobody holds it.

    The holder is the application_name of its session, without our prefix and the lock's name.
    """
    row = conn.execute(
        "SELECT a.application_name FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_stat_activity AS a USING (pid)"
        " WHERE l.locktype = 'advisory' AND l.granted AND a.datname = pg_catalog.current_database()"
        " AND (l.classid::bigint << 32 | l.objid::bigint) = pg_catalog.hashtextextended(%s, 0)",
        (f"{APPLICATION_NAME}:{name}",),
    ).fetchone()
    return str(row[0]).removeprefix(f"{APPLICATION_NAME}: {name} ") if row and row[0] else None


def release_advisory_lock(conn: Connection, name: str) -> None:
    """Release the lock called `name`."""
    conn.execute(
        "SELECT pg_catalog.pg_advisory_unlock(pg_catalog.hashtextextended(%s, 0))", (f"{APPLICATION_NAME}:{name}",)
    )


def save_leaders_note(conn: Connection, note: Mapping[str, Any], *, now: datetime) -> None:
    """Save the note of the session that holds `LOCK`, where `reconcile status` reads it."""
    params = {"lock": LOCK, "note": Jsonb({**note, "backend": conn.info.backend_pid}), "now": now}
    conn.execute(_queries["save_leaders_note"], params)


LOCK: Final = "daemon"
_queries = load_queries("sync_state")

"""The migration runner: ledger, plan, apply, rollback.

Design rules
- A second process waits until the first one has finished. It polls for the advisory lock. A session that blocks inside
  `SELECT pg_advisory_lock()` holds a snapshot, and CREATE INDEX CONCURRENTLY in the first process would wait for it.
- A file and its row in the ledger commit together. A file that cannot run in a transaction is written so that it heals
  when it runs again, and its row comes last.
- Writers never wait long. An ALTER TABLE that waits for its lock makes every later writer wait behind it, so it gives
  up after LOCK_TIMEOUT and tries again. Before that it takes SHARE UPDATE EXCLUSIVE, which blocks no writer. Autovacuum
  gives way only to a session that has waited deadlock_timeout (one second) for it.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import psycopg
from psycopg import errors as pg
from psycopg import sql

from reconciler.database.catalog import expected_objects, read_objects
from reconciler.database.connection import Connection, load_queries, translate, translated
from reconciler.database.migration_files import TABLES, Migration, Script, load_migrations, split
from reconciler.database.obstacles import require_migratable, require_supported, require_writable
from reconciler.database.verify import NEWEST_IN_THE_FIELD
from reconciler.errors import Contended, JobHeld, Refused, SchemaError, UsageError

LOCK_TIMEOUT = timedelta(milliseconds=400)  # a writer may have to wait this long behind us
HARMLESS_LOCK_TIMEOUT = timedelta(minutes=10)  # for locks that block no writer
LOCK_ATTEMPTS = 80  # about two minutes
OTHER_RUNNER_PATIENCE = timedelta(minutes=5)
POLL_INTERVAL = timedelta(milliseconds=200)

Outcome = Literal["applied", "adopted", "undone"]

_HARMLESS = re.compile(r"\b(CONCURRENTLY|VALIDATE CONSTRAINT)\b")  # statements whose locks block no writer
_COMMITS = re.compile(r"\bCOMMIT\b")  # statements with transactions of their own
_QUERIES = load_queries("migrations")


@dataclass(frozen=True)
class Step:
    """A pending migration, and its outcome: adopted if its objects are there already."""

    migration: Migration
    outcome: Outcome


@dataclass(frozen=True)
class Applied:
    """One migration that was run, its outcome and duration."""

    version: int
    name: str
    outcome: Outcome
    duration: timedelta


OnApplied = Callable[[Applied], None]
OnPlanned = Callable[[list[Step]], None]


def behind(conn: Connection) -> list[Migration]:
    """Return the migrations that this database lacks; this costs two cheap queries.

    Raises:
        SchemaError: the ledger and the files disagree, or the server is too old.

    """
    with translated():
        return _pending(conn)


def plan(conn: Connection) -> list[Step]:
    """Return the steps that `migrate` would take; change nothing.

    Raises:
        Refused: the role lacks a privilege that a step needs.
        SchemaError: the ledger and the files disagree, or the server is too old.
        Unavailable: the server takes no writes.

    """
    with translated():
        return _plan(conn)


def migrate(
    conn: Connection,
    *,
    on_planned: OnPlanned = lambda _: None,
    on_applied: OnApplied = lambda _: None,
    patience: timedelta = OTHER_RUNNER_PATIENCE,
) -> list[Applied]:
    """Bring the schema to this version, one migration at a time; adopt objects that are there already.

    `on_planned` is called once, before the first change, unless there is nothing to do. If the process is killed, the
    next run continues from there. While another process migrates, this one waits for up to `patience`.

    Raises:
        Contended: another session was in the way of every attempt; the message names it.
        JobHeld: another process was still migrating after `patience`.
        Refused, SchemaError, Unavailable: as for `plan`.

    """
    done = []
    with translated(), alone(conn, patience):
        steps = _plan(conn)
        if steps:
            on_planned(steps)
        for step in steps:
            conn.execute(_QUERIES["create_ledger"])
            done.append(_run(conn, step.migration, step.outcome))
            on_applied(done[-1])
    return done


def rollback(
    conn: Connection,
    *,
    to: int,
    drop_data: bool = False,
    on_applied: OnApplied = lambda _: None,
    patience: timedelta = OTHER_RUNNER_PATIENCE,
) -> list[Applied]:
    """Undo every migration after version `to`, newest first; -1 undoes all and drops the ledger.

    Raises:
        Refused: a table that would be dropped holds rows and `drop_data` is not set.
        UsageError: there is no version `to`.
        Contended, JobHeld, SchemaError, Unavailable: as for `migrate`.

    """
    migrations = load_migrations()
    if not -1 <= to < len(migrations):
        raise UsageError(f"there is no migration {to}", hint=f"the newest is {len(migrations) - 1}; -1 undoes all")
    done = []
    with translated(), alone(conn, patience):
        missing = _pending(conn)
        require_writable(conn)
        due = [m for m in reversed(migrations) if m.version > to and m not in missing]
        if not drop_data:  # checked before anything is undone, and again by each step under its lock
            for migration in due:
                _refuse_to_drop_rows(conn, migration)
        for migration in due:
            done.append(_run(conn, migration, "undone", drop_data=drop_data))
            on_applied(done[-1])
        if to == -1:
            conn.execute(_QUERIES["drop_ledger"])
    return done


def _pending(conn: Connection) -> list[Migration]:
    require_supported(conn)
    migrations = load_migrations()
    done = _rows(conn, "ledger") if _value(conn, "ledger_exists") else []
    for version, name, checksum in done:
        if version >= len(migrations):
            raise SchemaError(
                f"a newer version of this program migrated the database: {version:03} {name} is unknown here",
                hint="install the newer version",
            )
        if not migrations[version].is_recorded_as(checksum):
            filename = migrations[version].up.filename
            raise SchemaError(
                f"sql/{filename} was changed after it was applied",
                hint="restore it; write the change into a new file",
            )
    versions = [row[0] for row in done]
    if versions != list(range(len(versions))):
        gap = min(set(range(len(migrations))) - set(versions))
        raise SchemaError(f"the ledger has a hole: {gap:03} is missing, but {versions[-1]:03} was applied")
    return list(migrations[len(versions) :])


def _plan(conn: Connection) -> list[Step]:
    pending = _pending(conn)
    if not pending:
        return []
    require_migratable(conn)
    there = {found.key for found in read_objects(conn, functions=())}
    lacking = {e.version for e in expected_objects() if e.object.kind == "column" and e.object.key not in there}
    # Columns show whether the Viewer's own script ran; its indexes and triggers have names of its own. Later
    # migrations are ours alone. If a person applied one by hand, it runs again, which is harmless.
    return [
        Step(m, "adopted" if m.version <= NEWEST_IN_THE_FIELD and m.version not in lacking else "applied")
        for m in pending
    ]


def _refuse_to_drop_rows(conn: Connection, migration: Migration, *, lock: bool = False) -> None:
    table = migration.down.header.get("drops")
    if table is None or not _value(conn, "would_be_dropped", table=table):
        return
    name = sql.Identifier(table)
    if lock:
        conn.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(name))
    row = conn.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(name)).fetchone()
    if row and row[0]:
        filename = migration.down.filename
        raise Refused(f"{filename} would drop {table}, which holds rows", hint="--drop-data drops them too")


@contextmanager
def alone(conn: Connection, patience: timedelta = OTHER_RUNNER_PATIENCE) -> Iterator[None]:
    """Hold the lock of all migrations, without a statement timeout; release and restore both at the end."""
    deadline = time.monotonic() + patience.total_seconds()
    while not _value(conn, "try_lock"):
        if time.monotonic() > deadline:
            raise JobHeld(f"another process is still migrating after {patience}")
        time.sleep(POLL_INTERVAL.total_seconds())
    statement_timeout = _set(conn, "statement_timeout", timedelta(0))
    lock_timeout = _set(conn, "lock_timeout", LOCK_TIMEOUT)
    try:
        yield
    finally:
        if not conn.closed:  # otherwise the lock ended with the connection
            _set(conn, "statement_timeout", statement_timeout)
            _set(conn, "lock_timeout", lock_timeout)
            conn.execute(_QUERIES["unlock"])


def _run(conn: Connection, migration: Migration, outcome: Outcome, *, drop_data: bool = True) -> Applied:
    """Run the file and write the ledger; try again, up to LOCK_ATTEMPTS times, while other sessions block it."""
    script = migration.down if outcome == "undone" else migration.up
    started = time.monotonic()
    attempt = 0
    while True:
        attempt += 1
        try:
            if not script.transactional:
                for statement in split(script.text):
                    _run_statement(conn, script, statement)
            with conn.transaction():
                if script.transactional:
                    _outwait_vacuum(conn, script)
                    if not drop_data:
                        _refuse_to_drop_rows(conn, migration, lock=True)
                    conn.execute(script.text.encode())
                duration = timedelta(seconds=time.monotonic() - started)
                _note(conn, migration, outcome, duration)
            return Applied(migration.version, migration.name, outcome, duration)
        except (pg.LockNotAvailable, pg.DeadlockDetected) as exc:
            if attempt == LOCK_ATTEMPTS:
                raise _contended(conn, script) from exc
            time.sleep(min(0.05 * 2**attempt, 1.0) * random.uniform(0.5, 1.5))  # noqa: S311
        except _GaveUpError as exc:
            raise _contended(conn, script) from exc
        except (psycopg.ProgrammingError, psycopg.IntegrityError, psycopg.NotSupportedError) as exc:
            raise _refused(script, exc) from exc


def _run_statement(conn: Connection, script: Script, statement: str) -> None:
    if _HARMLESS.search(statement):
        with _long_lock_timeout(conn):
            conn.execute(statement.encode())
    elif _COMMITS.search(statement):
        conn.execute(statement.encode())
    else:
        with conn.transaction():
            _outwait_vacuum(conn, script)
            conn.execute(statement.encode())


def _outwait_vacuum(conn: Connection, script: Script) -> None:
    """Take the strongest lock that blocks no writer. It ends a running autovacuum and keeps others away."""
    for (table,) in _rows(conn, "existing", tables=script.locked):
        with _long_lock_timeout(conn):
            name = sql.Identifier(table)
            conn.execute(sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE").format(name))


@contextmanager
def _long_lock_timeout(conn: Connection) -> Iterator[None]:
    before = _set(conn, "lock_timeout", HARMLESS_LOCK_TIMEOUT)
    try:
        yield
    except pg.LockNotAvailable as exc:
        raise _GaveUpError from exc
    _set(conn, "lock_timeout", before)


class _GaveUpError(Exception):
    """A wait that blocked no writer took too long. The caller reports it when the transaction is over."""


def _contended(conn: Connection, script: Script) -> Contended:
    blockers = _rows(conn, "blockers", tables=script.locked or TABLES)
    who = "pid {}, {} as {}, {}".format(*blockers[0]) if blockers else "somebody who is gone by now"
    hint = "let it finish or end it, then migrate again"
    return Contended(f"{script.filename} did not get its lock: {who} was in the way", hint=hint)


def _refused(script: Script, exc: psycopg.DatabaseError) -> Exception:
    if isinstance(exc, pg.InsufficientPrivilege):
        return translate(exc)
    # If a view, rule or trigger depends on a column whose type changes, the detail names it.
    reason = "; ".join(part for part in (exc.diag.message_primary, exc.diag.message_detail) if part)
    depends = isinstance(exc, pg.FeatureNotSupported)
    hint = "drop what depends on the column, migrate, create it again" if depends else exc.diag.message_hint
    return SchemaError(f"{script.filename}: {reason}", hint=hint)


def _note(conn: Connection, migration: Migration, outcome: Outcome, duration: timedelta) -> None:
    row = {"version": migration.version, "name": migration.name, "checksum": migration.up.checksum}
    query = _QUERIES["forget" if outcome == "undone" else "record"]
    conn.execute(query, {**row, "applied_at": datetime.now(UTC), "duration": duration})


def _set(conn: Connection, name: str, value: timedelta | str) -> str:
    """Set a run-time parameter; return its previous value."""
    text = value if isinstance(value, str) else f"{int(value / timedelta(milliseconds=1))}ms"
    return str(_value(conn, "set_setting", name=name, value=text))


def _rows(conn: Connection, query: str, /, **params: Any) -> list[tuple[Any, ...]]:
    """Run a statement of queries/migrations.sql for our tables; return its rows."""
    return conn.execute(_QUERIES[query], {"tables": list(TABLES), **params}).fetchall()


def _value(conn: Connection, query: str, /, **params: Any) -> Any:
    return _rows(conn, query, **params)[0][0]

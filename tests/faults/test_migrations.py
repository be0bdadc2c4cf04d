"""Migrations under fire: processes killed by SIGKILL at their statements, eight at once, files that were tampered with.

`python -m tests.faults.migrations` kills at every statement; here are some of them.
"""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.database import migrate as runner
from reconciler.database import migration_files as migrations
from reconciler.database.migration_files import Script, load_migrations
from reconciler.database.verify import verify
from reconciler.errors import SchemaError
from tests.faults.migrations import Roads, eight_at_once, killed_at


@pytest.fixture(scope="module")
def roads(server_url: str, field_template: str) -> Roads:
    """An empty database and one from the field, and how each ends undisturbed."""
    roads = Roads(server_url, {"empty": "template0", "field": field_template})
    roads.learn()
    return roads


@pytest.mark.parametrize("moment", ["before", "behind"])
@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("road", ["empty", "field"])
@pytest.mark.parametrize("part", [0.13, 0.61])
def test_killed_at_a_statement_the_next_process_finishes(roads, road, way, moment, part):
    """On the way up and on the way down: catalog, ledger and rows end as undisturbed."""
    statements = len(roads.statements[road, way])
    assert statements > 50
    assert killed_at(roads, road, way, int(statements * part), moment) == []


@pytest.mark.parametrize("road", ["empty", "field"])
def test_eight_at_once(roads, road):
    """One migrates, the others wait and find nothing left to do; each migration is in the ledger once."""
    assert eight_at_once(roads, road, []) == ({0: 9}, [])


@pytest.mark.parametrize("road", ["empty", "field"])
def test_eight_at_once_and_all_are_killed(roads, road):
    """The next process continues, in any order of kills; a ninth process completes the migration."""
    kills = [3, 7, 11, 15, 19, 23, 27, 31]
    assert sum(kills) < len(roads.statements[road, "up"])  # so none of them can reach the end
    assert eight_at_once(roads, road, kills) == ({0: 1, -signal.SIGKILL: 8}, [])


@pytest.mark.parametrize("version", [m.version for m in load_migrations()])
def test_a_file_that_was_tampered_with_is_refused(version, shared_database_url, connect, monkeypatch):
    """A file that has gained a statement since it was applied is named, and nothing runs, in neither direction."""
    files = list(load_migrations())
    file = files[version].up
    files[version] = replace(files[version], up=Script(file.filename, file.text + "\nSELECT 1;\n"))
    monkeypatch.setattr(runner, "load_migrations", lambda: tuple(files))
    conn = connect(shared_database_url)
    for attempt in (runner.behind, runner.plan, runner.migrate, lambda conn: runner.rollback(conn, to=-1)):
        with pytest.raises(SchemaError, match=rf"sql/{file.filename} was changed after it was applied"):
            attempt(conn)
    monkeypatch.undo()
    assert verify(conn) == []
    assert runner.behind(conn) == []


def test_line_endings_are_no_tampering(tmp_path, monkeypatch, shared_database_url, connect):
    """A checkout on another system may write them otherwise."""
    folder = tmp_path / "sql"
    folder.mkdir()
    for file in (Path(__file__).parents[2] / "sql").glob("*.sql"):
        (folder / file.name).write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.setattr(migrations, "files", lambda _: tmp_path)
    monkeypatch.setattr(runner, "load_migrations", migrations.load_migrations.__wrapped__)
    assert runner.behind(connect(shared_database_url)) == []

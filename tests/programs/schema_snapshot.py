"""Writes what the files of `sql/` make in an empty database: `python -m tests.programs.schema_snapshot DATABASE_URL`.

`reconcile verify` compares every database with that snapshot, `reconciler/database/schema.jsonl`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from reconciler.database import connection as db
from reconciler.database.catalog import Expected, read_objects, to_line
from reconciler.database.migrate import Applied, migrate

SNAPSHOT = Path(db.__file__).parent / "schema.jsonl"


def take_snapshot(conn: db.Connection) -> str:
    """Migrate the empty database of `conn`; returns what is there then, with the file that made it last."""
    made: dict[tuple[str, str, str], Expected] = {}

    def note(applied: Applied) -> None:
        for found in read_objects(conn):
            before = made.get(found.key)
            if before is None or before.object != found:
                made[found.key] = Expected(found, applied.version)

    before = read_objects(conn)
    if before:
        raise SystemExit(f"the database is not empty: it has {before[0]}")
    migrate(conn, on_applied=note)
    found = [_with_its_function(made[found.key], made) for found in read_objects(conn)]
    found.sort(key=lambda expected: (expected.version, expected.object))
    return "".join(f"{to_line(expected)}\n" for expected in found)


def _with_its_function(expected: Expected, made: Mapping[tuple[str, str, str], Expected]) -> Expected:
    """A trigger is made again by the file that made its function last, or that file would be undone."""
    if expected.object.kind != "trigger":
        return expected
    _, _, function = expected.object.definition.rpartition(" EXECUTE FUNCTION ")
    return expected._replace(version=max(expected.version, made["function", "", function].version))


def main() -> None:
    """Write the snapshot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database_url", metavar="DATABASE_URL", help="an empty database")
    with db.connect(parser.parse_args().database_url, purpose="snapshot") as conn:
        SNAPSHOT.write_text(take_snapshot(conn), encoding="ascii")


if __name__ == "__main__":
    main()

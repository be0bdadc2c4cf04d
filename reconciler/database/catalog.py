"""The objects of the schema in PostgreSQL's own words: those of a database, and those that our files make.

Design rules
- The reference is `schema.jsonl`, a snapshot of the objects that the files of `sql/` make in an empty database. The
  program `tests/programs/schema_snapshot.py` writes the snapshot, and a test compares it with the files. The daemon
  cannot make it: its role may create nothing, and a standby takes no writes.
- PostgreSQL 14 to 18 describe all these objects with the same words, letter for letter.
- A column in the field may be wider than ours: text instead of varchar. PostgreSQL then leaves out or adds a cast where
  an expression names the column. `normal` removes that difference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final, NamedTuple

from reconciler.database.connection import Connection, load_queries
from reconciler.database.migration_files import TABLES

_QUERIES = load_queries("catalog")

_TEXT_CAST: Final = re.compile(r"::(?:text|character varying)(?:\(\d+\))?(?:\[\])?")
_ALONE: Final = re.compile(r"(?<!\w)\(([\w.]+|'[^']*')\)")  # (status), where it is no argument
_TWICE: Final = re.compile(r"\((\([^()]*\))\)|\((ARRAY\[[^\]]*\])\)(?=\))")


class SchemaObject(NamedTuple):
    """A column, default, unique key, index, storage option, constraint, trigger or function.

    A function has no table.
    """

    kind: str
    table: str
    name: str
    definition: str = ""
    problem: str = ""  # why the object does not work, such as an invalid index; empty if it works

    @property
    def key(self) -> tuple[str, str, str]:
        """Kind, table and name, which identify the object; the definition is not part of them."""
        return self[:3]

    def __str__(self) -> str:
        return f"{self.kind} {self.table}.{self.name}" if self.table else f"{self.kind} {self.name}"


class Expected(NamedTuple):
    """An object that the files make, and the version of the file that gives it its final form."""

    object: SchemaObject
    version: int


def _index(name: str, version: int, columns: str, *, unique: str = "") -> Expected:
    definition = f"CREATE {unique}INDEX {name} ON call_events USING btree {columns}"
    return Expected(SchemaObject("index", "call_events", name, definition), version)


# An index that a new database has, and its substitutes in an older one (migrations 018, 025): all indexes of one of
# these sets.
OLDER_INDEXES: Final = {
    "call_events_created_at": (
        (_index("idx_call_events_source", 2, "(source, created_at)"),),
        (_index("idx_call_events_created_at", 2, "(created_at)"),),
    ),
    "call_events_facts": (
        (
            _index("idx_call_events_call_sid", 2, "(call_sid, event_time DESC)"),
            _index("call_events_dedupe_key", 10, "(dedupe_key) WHERE (dedupe_key IS NOT NULL)", unique="UNIQUE "),
        ),
    ),
}


def read_objects(
    conn: Connection, *, tables: Sequence[str] = TABLES, functions: Iterable[str] | None = None
) -> list[SchemaObject]:
    """Return the objects of these tables and the functions: all of them, or those with one of these names."""
    params = {"tables": list(tables), "functions": None if functions is None else sorted(functions)}
    return [SchemaObject(*row) for row in conn.execute(_QUERIES["objects"], params)]


@cache
def expected_objects() -> tuple[Expected, ...]:
    """Return the objects that the files make in an empty database."""
    text = files("reconciler.database").joinpath("schema.jsonl").read_text(encoding="ascii")
    return tuple(from_line(line) for line in text.splitlines())


def to_line(expected: Expected) -> str:
    """Return the object as a line of the snapshot."""
    kind, table, name, definition, _ = expected.object
    return json.dumps(
        {"version": expected.version, "kind": kind, "table": table, "name": name, "definition": definition}
    )


def from_line(line: str) -> Expected:
    """Return the object from a line that `to_line` wrote."""
    fields: dict[str, Any] = json.loads(line)
    return Expected(version=fields.pop("version"), object=SchemaObject(**fields))


def normal(definition: str) -> str:
    """Return a definition without casts between text and varchar, and without the parentheses of such casts."""
    definition = definition.replace("CURRENT_TIMESTAMP", "now()")
    definition = _TEXT_CAST.sub("", definition)
    while (simpler := _TWICE.sub(r"\1\2", _ALONE.sub(r"\1", definition))) != definition:
        definition = simpler
    return definition

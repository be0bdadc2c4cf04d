"""Compares the schema of a database with the one that this version needs. It trusts the catalog, not the ledger."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from reconciler.database.catalog import (
    OLDER_INDEXES,
    Expected,
    SchemaObject,
    expected_objects,
    normal,
    read_objects,
)
from reconciler.database.connection import Connection, translated
from reconciler.database.migration_files import load_migrations

NEWEST_IN_THE_FIELD: Final = 4  # the last migration that the Viewer's own script covers

# Columns of messages that are the Viewer's alone: the program neither reads nor writes them.
VIEWERS_COLUMNS: Final = frozenset({"conversation_id", "recording_url", "metadata"})
# Columns that may be null in our files, but never are in a row that we write.
_ALWAYS_FILLED: Final = frozenset({"created_at", "received_at", "updated_at"})

_TYPE: Final = re.compile(
    r"(?P<base>[a-z ]+?)(?:\((?P<limit>\d+)[\d,]*\))?(?P<zone> with(?:out)? time zone)?(?P<null> NOT NULL)?"
)

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Finding:
    """A difference between the schema and the one that this version needs, and the command that repairs it."""

    subject: str
    problem: str
    hint: str = field(default="", compare=False)


def verify(conn: Connection) -> list[Finding]:
    """Return the differences between the catalog and the schema that this version needs; change nothing.

    - An object that can hold all our values is no difference: a wider type, a unique key of any name.
    - A storage option may have another value than ours: it suits that database.
    - Other objects are the Viewer's and allowed, except functions that have a name of ours.
    """
    expected = expected_objects()
    functions = {e.object.name.partition("(")[0] for e in expected if e.object.kind == "function"}
    with translated():
        actual = {found.key: found for found in read_objects(conn, functions=functions)}
    findings = [finding for e in expected if e.object.key not in _FREE for finding in _compare(e, actual)]
    return [*findings, *_in_the_way(actual)]


def fits(actual: str, wanted: str) -> bool:
    """Whether a column of the type `actual` holds every value of the type `wanted`."""
    is_, must = _TYPE.fullmatch(actual), _TYPE.fullmatch(wanted)
    if actual == wanted or is_ is None or must is None:
        return actual == wanted
    limit = float(is_["limit"] or "inf")
    match must["base"], is_["base"]:
        case ("character varying" | "text", "character varying" | "text"):
            return limit >= float(must["limit"] or "inf")
        case "integer", "bigint":
            return True
        case "timestamp", "timestamp":
            # Columns without time zone hold only created_at and Twilio's times, which are whole seconds.
            return is_["zone"] == must["zone"] == " without time zone"
    return False


def _compare(expected: Expected, actual: Mapping[Key, SchemaObject]) -> Iterator[Finding]:
    wanted, version = expected
    found = actual.get(wanted.key)
    if found is None:
        if (older := _problems_of_older(wanted, actual)) is not None:
            yield from older
        elif _is_required(wanted, version, actual):
            yield Finding(str(wanted), f"is missing; migration {version:03} makes it", _how_to_make(wanted, version))
    elif wanted.kind == "column":
        yield from _compare_column(found, wanted)
    elif not _is_same(found, wanted):
        problem = f"is {found.definition}, not {wanted.definition}"
        if wanted.kind in ("function", "trigger"):
            problem = "is not as our file makes it"
        if _is_required(wanted, version, actual):
            yield Finding(str(wanted), problem, _how_to_replace(wanted, version))
    elif found.problem:
        yield Finding(str(wanted), found.problem, _how_to_make(wanted, version))


def _is_required(wanted: SchemaObject, version: int, actual: Mapping[Key, SchemaObject]) -> bool:
    """Whether the program needs the object even if the Viewer's own script made the table."""
    match wanted.kind:
        case "constraint":
            return version > NEWEST_IN_THE_FIELD
        case "index":
            return _problems_of_older(wanted, actual) != []
        case "default":
            # A nullable column needs no default. If the column itself is missing, that is the finding.
            column = actual.get(("column", wanted.table, wanted.name))
            return column is not None and column.definition.endswith(" NOT NULL")
        case "unique":
            return all(("column", wanted.table, name) in actual for name in wanted.name.split(", "))
    return True


def _problems_of_older(wanted: SchemaObject, actual: Mapping[Key, SchemaObject]) -> list[Finding] | None:
    """Return what is wrong with the older indexes that serve instead of `wanted`; None if the database has none."""
    present = [
        [finding for expected in indexes for finding in _compare(expected, actual)]
        for indexes in OLDER_INDEXES.get(wanted.name, ())
        if any(expected.object.key in actual for expected in indexes)
    ]
    return min(present, key=len, default=None)


def _is_same(found: SchemaObject, wanted: SchemaObject) -> bool:
    if wanted.kind == "default" and wanted.definition.startswith("nextval("):
        return found.definition == "identity" or found.definition.startswith("nextval(")
    return wanted.kind == "option" or normal(found.definition) == normal(wanted.definition)


def _compare_column(found: SchemaObject, wanted: SchemaObject) -> Iterator[Finding]:
    is_, must = (definition.removesuffix(" NOT NULL") for definition in (found.definition, wanted.definition))
    is_mandatory, must_be_mandatory = (o.definition.endswith(" NOT NULL") for o in (found, wanted))
    alter = f"ALTER TABLE {wanted.table} ALTER COLUMN {wanted.name}"
    problem = f"is {found.definition}, not {wanted.definition}"
    if not fits(is_, must):
        yield Finding(str(wanted), problem, _typed(f"{alter} TYPE {must}"))
    elif must_be_mandatory and not is_mandatory:
        yield Finding(str(wanted), problem, _typed(f"{alter} SET NOT NULL"))
    elif is_mandatory and not must_be_mandatory and wanted.name not in _ALWAYS_FILLED:
        yield Finding(str(wanted), problem, _typed(f"{alter} DROP NOT NULL"))


def _in_the_way(actual: Mapping[Key, SchemaObject]) -> Iterator[Finding]:
    """Yield findings about columns that our rows lack, and about functions that could be taken for ours."""
    known = {e.object.key for e in expected_objects()} - _FREE
    for key in sorted(actual.keys() - known):
        found = actual[key]
        if found.kind == "column" and found.definition.endswith(" NOT NULL") and ("default", *key[1:]) not in actual:
            alter = f"ALTER TABLE {found.table} ALTER COLUMN {found.name} DROP NOT NULL"
            problem = "is NOT NULL without default: our rows lack it"
            yield Finding(str(found), problem, f"give it a default, or: {_typed(alter)}")
        elif found.kind == "function":
            problem = "has the name of a function of ours, and PostgreSQL may take it for that one"
            yield Finding(str(found), problem, f"find out who made it, then: {_typed(f'DROP FUNCTION {found.name}')}")


def _how_to_make(wanted: SchemaObject, version: int) -> str:
    match wanted.kind:
        case "unique":
            return _typed(f"CREATE UNIQUE INDEX CONCURRENTLY ON {wanted.table} ({wanted.name})")
        case "index" if wanted.name in OLDER_INDEXES:  # its file makes it in an empty table only
            make = wanted.definition.replace(" INDEX ", " INDEX CONCURRENTLY ", 1)
            return _typed(f"DROP INDEX CONCURRENTLY IF EXISTS {wanted.name}") + f" && {_typed(make)}"
        case "default" if wanted.definition.startswith("nextval("):
            return _typed(f"ALTER TABLE {wanted.table} ALTER COLUMN {wanted.name} ADD GENERATED BY DEFAULT AS IDENTITY")
        case "default":
            return _how_to_replace(wanted, version)
    return f"apply the file that makes it again, which is harmless: {_apply(version)}"


def _how_to_replace(wanted: SchemaObject, version: int) -> str:
    match wanted.kind:
        case "default":
            alter = f"ALTER TABLE {wanted.table} ALTER COLUMN {wanted.name}"
            return _typed(f"{alter} SET DEFAULT {wanted.definition}")
        case "index" if wanted.name not in OLDER_INDEXES:
            return f"{_typed(f'DROP INDEX CONCURRENTLY {wanted.name}')} && {_apply(version)}"
        case "constraint":
            drop = f"ALTER TABLE {wanted.table} DROP CONSTRAINT {wanted.name}"
            return f"{_typed(drop)} && {_apply(version)}"
    return _how_to_make(wanted, version)


def _typed(statement: str) -> str:
    return f'psql "$DATABASE_URL" -c "{statement}"'


def _apply(version: int) -> str:
    return f'psql "$DATABASE_URL" < sql/{load_migrations()[version].up.filename}'


_FREE: Final = frozenset((kind, "messages", name) for kind in ("column", "default") for name in VIEWERS_COLUMNS)

"""Obstacles: conditions under which a database cannot be migrated or used. They are found before any change."""

from __future__ import annotations

import re
from typing import Any, Final

from reconciler.database.catalog import OLDER_INDEXES, expected_objects, read_objects
from reconciler.database.connection import Connection, load_queries
from reconciler.database.migration_files import TABLES, load_migrations
from reconciler.database.verify import VIEWERS_COLUMNS
from reconciler.errors import Refused, SchemaError, Unavailable

OLDEST_SERVER: Final = 14
LEDGER: Final = "reconciler_migrations"

# SQL_ASCII stores the bytes of UTF-8 unchanged. Other encodings lack characters of some scripts, and a call with such
# a name could never be stored.
_ENCODINGS: Final = ("UTF8", "SQL_ASCII")
_KINDS: Final = {
    "p": "a partitioned table", "v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence",
    "i": "an index", "c": "a type",
}  # fmt: skip
_FAMILIES: Final = {"character varying": "text", "bigint": "integer", "smallint": "integer"}

_QUERIES = load_queries("obstacles")


def require_supported(conn: Connection) -> None:
    """Refuse a server or database that no migration can make usable, and a role that does not see every row.

    Raises:
        Refused: row-level security hides rows from this role.
        SchemaError: the server is too old, or the database's encoding lacks characters.

    """
    if conn.info.server_version < OLDEST_SERVER * 10_000:
        found = conn.info.server_version // 10_000
        raise SchemaError(f"the server is PostgreSQL {found}; {OLDEST_SERVER} is the oldest that works")
    encoding = conn.info.parameter_status("server_encoding")
    if encoding not in _ENCODINGS:
        raise SchemaError(
            f"the database has encoding {encoding}; callers' names at Twilio need UTF8",
            hint="move it: createdb -E UTF8 -T template0 NEW && pg_dump OLD | psql NEW, then name NEW in DATABASE_URL",
        )
    hidden = [name for (name,) in _rows(conn, "hidden_tables", tables=[*TABLES, LEDGER])]
    if hidden:
        raise Refused(
            f"row-level security hides rows of {' and '.join(hidden)} from {conn.info.user}",
            hint=f"as a superuser: ALTER ROLE {conn.info.user} BYPASSRLS; or let the owner of {hidden[0]} DISABLE it",
        )


def require_migratable(conn: Connection) -> None:
    """Refuse to change anything if a later step would fail, or would run somebody else's code.

    Raises:
        Refused: the role lacks a privilege, or somebody else owns an object that PostgreSQL could take for ours.
        SchemaError: the files cannot work with a table that is there.
        Unavailable: the server takes no writes.

    """
    require_writable(conn)
    _require_tables(conn)
    _require_no_strangers(conn)


def require_writable(conn: Connection) -> None:
    """Refuse a standby, and a role that may not change the schema.

    Raises:
        Refused: the role lacks a privilege.
        Unavailable: the server takes no writes.

    """
    if _rows(conn, "read_only")[0][0]:
        raise Unavailable(
            "the database takes no writes: it is a standby, or default_transaction_read_only is on",
            hint="name the primary in DATABASE_URL",
        )
    lacking = _rows(conn, "lacking_privileges", tables=list(TABLES))
    if lacking:
        message = f"role {lacking[0][0]} lacks {'; '.join(privilege for _, privilege in lacking)}"
        raise Refused(message, hint="grant it, or migrate as the owner of the tables")


def _require_tables(conn: Connection) -> None:
    """Refuse a table of one of our names that is no ordinary table, or whose columns cannot become ours."""
    taken = dict(_rows(conn, "kinds", tables=[*TABLES, LEDGER]))
    for name, kind in taken.items():
        if kind != "r":
            raise SchemaError(
                f"{name} is {_KINDS.get(kind, 'no table')}; it has to be an ordinary table",
                hint="nothing was changed; copy its rows into an ordinary table of that name, then migrate",
            )
    older = [expected for sets in OLDER_INDEXES.values() for indexes in sets for expected in indexes]
    indexes = [e.object for e in (*expected_objects(), *older) if e.object.kind == "index"]
    names = {"indexes": [index.name for index in indexes], "of_tables": [index.table for index in indexes]}
    for (name,) in _rows(conn, "taken_names", **names):
        raise SchemaError(
            f"{name} has the name of one of our indexes, but is no index of its table",
            hint="nothing was changed; find out who made it, rename it, then migrate",
        )
    columns = {found.key: found.definition for found in read_objects(conn, functions=()) if found.kind == "column"}
    wanted = [e for e in expected_objects() if e.object.kind == "column" and e.object.table in taken]
    made_at = {e.object.table: min(o.version for o in wanted if o.object.table == e.object.table) for e in wanted}
    for column, version in wanted:
        table, name = column.table, column.name
        if table == "messages" and name in VIEWERS_COLUMNS:
            continue
        found = columns.get(column.key)
        if found is None and version == made_at[table]:
            raise SchemaError(
                f"table {table} has no column {name}: it is not the Viewer's",
                hint="nothing was changed; does DATABASE_URL name the Viewer's database?",
            )
        if found is not None and _family(found) != _family(column.definition):
            raise SchemaError(
                f"column {table}.{name} is {found.removesuffix(' NOT NULL')}, which cannot hold our "
                f"{column.definition.removesuffix(' NOT NULL')}",
                hint="nothing was changed; make it that type or a wider one, then migrate",
            )


def _require_no_strangers(conn: Connection) -> None:
    texts = "".join(migration.up.text for migration in load_migrations())
    called = set(re.findall(r"\b(\w+)\s*\(", texts))  # some are no functions, which is harmless
    found = _rows(conn, "made_by_strangers", tables=[*TABLES, LEDGER], functions=sorted(called))
    if found:
        what, owner = found[0]
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise Refused(
            f"{what} belongs to {owner}{more}: PostgreSQL could use it in place of the object that our migrations name",
            hint="find out who made it and drop it; then REVOKE CREATE ON SCHEMA public FROM PUBLIC, and migrate again",
        )


def _family(definition: str) -> str:
    base = re.split(r"\(| NOT NULL$", definition)[0]
    return _FAMILIES.get(base, base) + (" with time zone" if " with time zone" in definition else "")


def _rows(conn: Connection, query: str, /, **params: Any) -> list[tuple[Any, ...]]:
    return conn.execute(_QUERIES[query], params).fetchall()

"""The sizes of our tables."""

from __future__ import annotations

from reconciler.database.connection import Connection, load_queries
from reconciler.database.migration_files import TABLES

_queries = load_queries("housekeeping")


def measure(conn: Connection) -> dict[str, int]:
    """Return the size in bytes of each of our tables, with its indexes."""
    return dict(conn.execute(_queries["measure"], {"tables": list(TABLES)}).fetchall())

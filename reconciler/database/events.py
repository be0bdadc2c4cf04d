"""The events that a statement meant to write. Each is there afterwards, whoever wrote it first."""

from __future__ import annotations

from collections.abc import Sequence

from reconciler.database.connection import Connection, load_queries, unwritten

_merge = load_queries("merge")


def require_events(conn: Connection, dedupe_keys: Sequence[str]) -> None:
    """Refuse that an event is missing; `dedupe_keys` are those that a statement of this transaction did not write.

    Raises:
        TableFault: a trigger keeps events away. The caller must not commit as if they were kept.

    """
    if dedupe_keys and conn.execute(_merge["has_events"], {"dedupe_keys": list(dedupe_keys)}).fetchone() != (True,):
        raise unwritten("call_events")

"""The check that every event which a statement had to write is in `call_events`, whichever session wrote it."""

from __future__ import annotations

from collections.abc import Sequence

from reconciler.database.connection import Connection, load_queries, unwritten

_merge = load_queries("merge")


def require_events(conn: Connection, dedupe_keys: Sequence[str]) -> None:
    """Check that `call_events` has these events. A statement of this transaction did not write them itself.

    Raises:
        TableFault: an event is missing, since a trigger withholds it. The caller must not commit.

    """
    if dedupe_keys and conn.execute(_merge["has_events"], {"dedupe_keys": list(dedupe_keys)}).fetchone() != (True,):
        raise unwritten("call_events")

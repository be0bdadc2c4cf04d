"""The deletion of old rows: completed webhooks, and events of frozen calls. See queries/housekeeping.sql.

Each function deletes one batch, and returns the place where the next batch begins.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, Generic, NamedTuple, TypeVar

from reconciler.database.connection import Connection, load_queries

P = TypeVar("P")

_queries = load_queries("housekeeping")

FIRST_WEBHOOK: Final = datetime(1, 1, 1, tzinfo=UTC)
FIRST_EVENT: Final = 0


class Pruned(NamedTuple, Generic[P]):
    """The number of deleted rows, and the place behind them; None if no older row is left."""

    deleted: int
    place: P | None


def prune_inbox(conn: Connection, *, place: datetime, before: datetime, limit: int) -> Pruned[datetime]:
    """Delete at most `limit` completed webhooks that were received from `place` on and before `before`.

    A row that another session holds stays.
    """
    params = {"place": place, "before": before, "batch": limit}
    row = conn.execute(_queries["prune_inbox"], params).fetchone()
    assert row
    return Pruned(*row)


def prune_events(conn: Connection, *, place: int, before: datetime, limit: int) -> Pruned[int]:
    """Look at `limit` events behind the id `place`; delete those of frozen calls that were written before `before`."""
    conn.execute(_queries["open_retention"])
    row = conn.execute(_queries["prune_events"], {"place": place, "before": before, "batch": limit}).fetchone()
    conn.execute(_queries["close_retention"])
    assert row
    return Pruned(*row)

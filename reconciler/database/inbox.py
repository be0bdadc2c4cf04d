"""The webhook inbox as a table: claims, completed rows and dead letters. See queries/inbox.sql."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from reconciler.database.connection import Connection, load_queries, unwritten
from reconciler.model import DeadLetter

WORKER_PATIENCE: Final = timedelta(seconds=60)  # a worker may take this long for a row it has claimed
WORKER_TRIES: Final = 8  # tries of the Viewer's worker; the last one comes four hours after the first

_queries = load_queries("inbox")


class InboxRow(NamedTuple):
    """A claimed row. The fields are in the order of the claims' columns; `payload` is JSON text."""

    id: int
    source: str
    event_type: str
    call_sid: str | None
    recording_sid: str | None
    payload: str
    received_at: datetime
    status: str
    retry_count: int
    error: str | None

    def __repr__(self) -> str:
        return f"<inbox row {self.id} {self.status}>"


class Backlog(NamedTuple):
    """The number of due webhooks, and the age of the oldest in seconds; None if none is due."""

    rows: int
    oldest_seconds: float | None


class InboxRows:
    """One transaction's access to the inbox. A claimed row stays locked until the transaction ends."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def claim_due(self, *, now: datetime, grace: timedelta, limit: int) -> list[InboxRow]:
        """Claim the oldest webhooks that the Viewer's worker left: pending past `grace`, or stuck in processing."""
        return self._claim("claim_due", {**_due(now, grace), "batch": limit})

    def claim_failed(self, *, first: int, now: datetime, limit: int) -> list[InboxRow]:
        """Claim failed webhooks that are due again, from the id `first` on."""
        params = {"first": first, "now": now, "batch": limit, "max_tries": WORKER_TRIES}
        return self._claim("claim_failed", params)

    def claim_dead(self, *, first: int, now: datetime, limit: int) -> list[InboxRow]:
        """Claim dead letters, from the id `first` on."""
        return self._claim("claim_dead", {"first": first, "now": now, "batch": limit})

    def claim_dead_by_id(self, ids: Sequence[int], *, now: datetime) -> list[InboxRow]:
        """Claim the dead letters with these ids."""
        return self._claim("claim_dead_by_id", {"ids": list(ids), "now": now})

    def complete(self, ids: Sequence[int], *, now: datetime) -> None:
        """Mark rows as completed.

        Raises:
            TableFault: a trigger keeps the rows as they are; the run would claim them for ever.

        """
        self._mark("complete", len(ids), {"ids": list(ids), "now": now})

    def give_up(self, reasons: Mapping[int, str], *, now: datetime) -> None:
        """Keep rows as dead letters, each with its reason.

        Raises:
            TableFault: as for `complete`.

        """
        self._mark("give_up", len(reasons), {"ids": list(reasons), "reasons": list(reasons.values()), "now": now})

    def keep_dead_letters(self, letters: Sequence[DeadLetter], *, now: datetime) -> None:
        """Keep records that cannot be read, each once.

        Raises:
            TableFault: a trigger keeps the rows away; the caller must not go on as if they were kept.

        """
        self._keep("keep_dead_letter", letters, now)

    def put_off(self, reasons: Mapping[int, str]) -> None:
        """Mark rows for a later try, each with its reason; see `claim_failed`.

        Raises:
            TableFault: as for `complete`.

        """
        self._mark("put_off", len(reasons), {"ids": list(reasons), "reasons": list(reasons.values())})

    def keep_for_retry(self, letters: Sequence[DeadLetter], *, now: datetime) -> None:
        """Keep records that could not be written now; the inbox job tries them again. See `claim_failed`.

        Raises:
            TableFault: as for `keep_dead_letters`.

        """
        self._keep("keep_for_retry", letters, now)

    def _mark(self, query: str, rows: int, params: Mapping[str, Any]) -> None:
        if rows and self._conn.execute(_queries[query], params).rowcount != rows:
            raise unwritten("twilio_webhook_inbox")

    def _keep(self, query: str, letters: Sequence[DeadLetter], now: datetime) -> None:
        for letter in letters:
            if self._conn.execute(_queries[query], {**letter._asdict(), "now": now}).rowcount:
                continue
            # Either the row is there already, or a trigger kept it away.
            has_letter = self._conn.execute(_queries["has_letter"], {"dedupe_key": letter.dedupe_key}).fetchone()
            if has_letter == (False,):
                raise unwritten("twilio_webhook_inbox")

    def _claim(self, query: str, params: Mapping[str, Any]) -> list[InboxRow]:
        return [InboxRow(*row) for row in self._conn.execute(_queries[query], params)]


def backlog(conn: Connection, *, now: datetime, grace: timedelta) -> Backlog:
    """Return the number and age of the webhooks that `InboxRows.claim_due` would claim without a limit."""
    row = conn.execute(_queries["backlog"], _due(now, grace)).fetchone()
    return Backlog(*row) if row else Backlog(0, None)


def count_unsettled(conn: Connection) -> dict[str, int]:
    """Return the number of rows that are not completed, by status; a status without rows is left out."""
    return dict(conn.execute(_queries["count_unsettled"]).fetchall())


def _due(now: datetime, grace: timedelta) -> dict[str, datetime]:
    return {"now": now, "pending_before": now - grace, "stuck_before": now - grace - WORKER_PATIENCE}

"""Recordings in the database: their events, and the URL in the call's row. See queries/recordings.sql."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from operator import attrgetter
from typing import NamedTuple

import msgspec

from reconciler.database.account_days import DayProof
from reconciler.database.connection import Connection, load_queries
from reconciler.database.events import require_events
from reconciler.model import Recording, RecordingState

_queries = load_queries("recordings")
_encode = msgspec.json.Encoder().encode


class Told(NamedTuple):
    """An event of a recording that was written now: its subject, its state, and how many seconds ago it came about.

    If `is_imported`, the recording was ready before anybody looked after the account.
    """

    subject: str
    recording_sid: str
    state: RecordingState
    is_imported: bool
    late_seconds: float


class RecordingProof(NamedTuple):
    """A day's recordings: how many Twilio listed, how many events tell of them, and how many fewer than before."""

    day: date
    listed: int
    held: int
    shrunk: int


def tell(
    conn: Connection,
    recordings: Sequence[Recording],
    *,
    source: str,
    run_id: str,
    imported_before: datetime | None,
    now: datetime,
    apply: bool = True,
) -> list[Told]:
    """Write an event for each recording that is ready or deleted and that has none yet; return what was written.

    With `apply` false, write nothing and return what would be written.

    Raises:
        TableFault: a trigger keeps events away.

    """
    events = [recording for recording in recordings if recording.state.is_event]
    if not events:
        return []
    params = {
        "recordings": _as_json(
            events, "recording_sid", "state", "call_sid", "conference_sid", "happened_at", "payload"
        ),
        "source": source,
        "run_id": run_id,
        "imported_before": imported_before,
        "now": now,
        "apply": apply,
    }
    rows = conn.execute(_queries["tell"], params).fetchall()
    require_events(conn, [unwritten for unwritten, *_ in rows if unwritten is not None])
    return [
        Told(subject, sid, RecordingState(state), *rest)
        for unwritten, subject, sid, state, *rest in rows
        if unwritten is None
    ]


def fill_urls(conn: Connection, recordings: Sequence[Recording], *, now: datetime) -> list[str]:
    """Fill recording_url where the row of a recording's call has none; return the SIDs of these calls."""
    found = [
        recording
        for recording in recordings
        if recording.call_sid is not None and recording.conference_sid is None and recording.media_url is not None
    ]
    if not found:
        return []
    params = {"recordings": _as_json(found, "call_sid", "media_url", "happened_at"), "now": now}
    return [row[0] for row in conn.execute(_queries["fill_urls"], params)]


def _as_json(recordings: Sequence[Recording], *fields: str) -> str:
    """Return these fields of the recordings as a JSON array of objects."""
    values_of = attrgetter(*fields)
    return _encode([dict(zip(fields, values_of(recording), strict=True)) for recording in recordings]).decode()


def has_recordings(conn: Connection, *, account_sid: str, since: datetime, limit: int) -> bool:
    """Whether the account had a recording since a moment; at most `limit` of its newest calls are looked at."""
    params = {"account_sid": account_sid, "since": since, "limit": limit}
    row = conn.execute(_queries["has_recordings"], params).fetchone()
    return bool(row and row[0])


def listed_of_days(conn: Connection, *, days: Sequence[date], account_sid: str) -> dict[date, int]:
    """Return how many recordings Twilio last listed of each day; a day whose recordings were not proven is left out."""
    return dict(conn.execute(_queries["listed_of_days"], {"account_sid": account_sid, "days": list(days)}).fetchall())


def keep_proofs(conn: Connection, proofs: Sequence[RecordingProof], *, account_sid: str) -> list[DayProof]:
    """Add the proofs of recordings to those of the same days' calls; return these days' proofs as they are now."""
    days, listed, held, shrunk = map(list, zip(*proofs, strict=True))
    params = {"counts_listed": listed, "counts_held": held, "counts_shrunk": shrunk}
    rows = conn.execute(_queries["keep_proofs"], {"account_sid": account_sid, "days": days, **params})
    return [DayProof(*row) for row in rows]

"""The webhook inbox: what the Viewer's worker left in it is merged, retried or kept as a dead letter; none is lost.

Design rules
- A row is claimed, merged and marked in one transaction. There is no state "processing" of our own: a kill leaves the
  row as it was, and the Viewer's own worker may be at the same table, each skipping what the other has locked.
- A row that cannot be read becomes a dead letter. A row that PostgreSQL refuses is found by halving the batch, so
  that it takes no other with it. What is not a row's fault (the database is away) changes nothing.
- Webhooks go through the merge that REST records go through: whatever comes twice, or late, is its business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from psycopg.types.json import Jsonb

from reconciler import metrics
from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.database.transaction import Merged, Transaction
from reconciler.errors import BadObservation
from reconciler.exact_json import parse_json
from reconciler.logs import get_logger
from reconciler.model import DeadLetter, Job, Observation
from reconciler.sync.run import Run, Terms, Totals, run
from reconciler.twilio.records import read_record
from reconciler.twilio.webhooks import Recording, read_recording, read_webhook

JOB: Final = Job("inbox")
REPLAY_JOB: Final = Job("inbox:replay")

BATCH: Final = 500  # rows a commit
STUCK_AFTER: Final = timedelta(seconds=60)  # how long a worker may be at a row
MAX_TRIES: Final = 8  # of the Viewer's worker; the last one comes four hours after the first
BACKLOG_GRACES: Final = 10
BACKLOG_AT_LEAST: Final = timedelta(hours=1)

_MAX_REASON: Final = 500  # characters

log = get_logger(__name__)

_queries = db.load_queries("inbox")


@dataclass(slots=True)
class Worked(Totals):
    """What was done: `rows` of the inbox, the rest in calls."""

    rows: int = 0

    @property
    def completed(self) -> int:
        """Rows that are done with."""
        return self.rows - self.dead_letters

    def as_dict(self) -> dict[str, Any]:
        """The shape of `--json`; a contract."""
        return {"rows": self.rows, "completed": self.completed, **self.counts()}


def work_inbox(store: Store, *, terms: Terms, grace: timedelta, batch: int = BATCH) -> Worked:
    """Settle every webhook that was due when this began, oldest first, a batch a commit; or until it is stopped.

    Safe beside other workers. Afterwards each of these rows is completed, a dead letter with its reason, or another's.

    Raises:
        Refused: the database role may not do this.
        Retriable: the database stayed away; what was not committed is as it was.

    """
    totals = Worked()
    with run(JOB, totals, account_sid=None, store=store, source=None, terms=terms) as this:
        now = this.now()
        due = {"now": now, "pending_before": now - grace, "stuck_before": now - grace - STUCK_AFTER, "batch": batch}
        _say_backlog(this, due, grace)
        while not this.stop.is_set() and len(_work_batch(this, "claim_due", due)) >= batch:
            pass
        _work_along(this, "claim_failed", {"now": now, "batch": batch, "max_tries": MAX_TRIES})
        totals.interrupted = this.stop.is_set()
    return totals


def replay(store: Store, *, terms: Terms, ids: Sequence[int] | None, batch: int = BATCH) -> Worked:
    """Read dead letters again with today's code, those with `ids` or all: each is completed now, or stays one.

    Raises:
        Refused: the database role may not do this.
        Retriable: the database stayed away; what was not committed is as it was.

    """
    totals = Worked()
    with run(REPLAY_JOB, totals, account_sid=None, store=store, source=None, terms=terms) as this:
        if ids is None:
            _work_along(this, "claim_dead", {"now": this.now(), "batch": batch})
        else:
            for start in range(0, len(ids), batch):
                if not this.stop.is_set():
                    _work_batch(this, "claim_dead_by_id", {"now": this.now(), "ids": list(ids[start : start + batch])})
        totals.interrupted = this.stop.is_set()
    return totals


class _Row(NamedTuple):
    """A claimed row, in the order of the columns of the claims."""

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


class _Item(NamedTuple):
    """A row and what it says; None if it says nothing that we keep."""

    row: _Row
    said: Observation | Recording | None


@dataclass(slots=True)
class _Batch:
    """One transaction's rows and what became of them."""

    rows: list[_Row] = field(default_factory=list)
    letters: list[tuple[_Row, str]] = field(default_factory=list)
    merged: Merged = field(default_factory=Merged)


def _say_backlog(this: Run, due: Mapping[str, Any], grace: timedelta) -> None:
    [(pending, oldest)] = this.ask(_queries, "backlog", due)
    unsettled = dict(this.ask(_queries, "count_unsettled"))
    for status in ("pending", "processing", "failed", "dead_letter"):
        metrics.inbox_rows.labels(status).set(unsettled.get(status, 0))
    metrics.inbox_oldest.set(oldest or 0)
    if oldest is not None and oldest > max(BACKLOG_GRACES * grace, BACKLOG_AT_LEAST).total_seconds():
        log.warning("inbox.backlogged", pending=pending, oldest_seconds=round(oldest))


def _work_along(this: Run, query: str, params: Mapping[str, Any]) -> None:
    """Work through what `query` claims in the order of the rows' numbers, each row once."""
    first = 0
    while not this.stop.is_set():
        rows = _work_batch(this, query, {**params, "first": first})
        if len(rows) < params["batch"]:
            return
        first = rows[-1].id + 1


def _work_batch(this: Run, query: str, params: Mapping[str, Any]) -> list[_Row]:
    """Claim rows and settle them in one commit; returns them."""

    def work(transaction: Transaction) -> _Batch:
        rows = [_Row(*row) for row in transaction.conn.execute(_queries[query], params)]
        return _settle(transaction, this, rows)

    batch = this.persist(lambda: this.store.atomically(work))
    assert isinstance(this.totals, Worked)
    this.totals.rows += len(batch.rows)
    this.totals.add(batch.merged)
    letters = [DeadLetter(f"inbox:{row.id}", row.call_sid, row.payload, reason) for row, reason in batch.letters]
    this.report(batch.merged, letters)
    return batch.rows


def _settle(transaction: Transaction, this: Run, rows: list[_Row]) -> _Batch:
    batch = _Batch(rows)
    if not rows:
        return batch
    now = this.now()
    items = []
    for row in rows:
        try:
            items.append(_Item(row, _read(row)))
        except BadObservation as exc:
            batch.letters.append((row, str(exc)))
    if any(item.said for item in items):
        refused: list[tuple[_Item, str]] = []
        for merged in transaction.by_halves(items, lambda some: _apply(transaction, this, some, now=now), refused):
            batch.merged.add(merged)
        batch.letters += ((item.row, reason) for item, reason in refused)
    batch.merged.dead_letters = len(batch.letters)
    dead = {row.id for row, _ in batch.letters}
    done = [row.id for row in rows if row.id not in dead]
    if done:
        transaction.conn.execute(_queries["complete"], {"ids": done, "now": now})
    if dead:
        ids, reasons = [row.id for row, _ in batch.letters], [reason for _, reason in batch.letters]
        transaction.conn.execute(_queries["give_up"], {"ids": ids, "reasons": reasons, "now": now})
    return batch


def _apply(transaction: Transaction, this: Run, items: Sequence[_Item], *, now: datetime) -> Merged:
    observations = [item.said for item in items if isinstance(item.said, Observation)]
    merged = transaction.merge(observations, origin=this.origin, now=now)
    _fill_answered_by(transaction, this, observations, now=now)
    recordings = [item.said for item in items if isinstance(item.said, Recording)]
    if recordings:
        call_sids, recording_sids, event_times, payloads = zip(*recordings, strict=True)
        transaction.conn.execute(
            _queries["record_recordings"],
            {
                **this.origin._asdict(),
                "now": now,
                "call_sids": list(call_sids),
                "recording_sids": list(recording_sids),
                "event_times": list(event_times),
                "payloads": [Jsonb(payload) for payload in payloads],
            },
        )
    return merged


def _fill_answered_by(
    transaction: Transaction, this: Run, observations: Sequence[Observation], *, now: datetime
) -> None:
    """Write who answered to rows that the merge left alone: machine detection may end after the call."""
    answers = [observation for observation in observations if observation.answered_by]
    if answers:
        params = {
            **this.origin._asdict(),
            "now": now,
            "call_sids": [answer.call_sid for answer in answers],
            "answers": [answer.answered_by for answer in answers],
            "said_ats": [answer.observed_at for answer in answers],
        }
        filled = transaction.conn.execute(_queries["fill_answered_by"], params)
        transaction.changed += (call_sid for (call_sid,) in filled)


def _read(row: _Row) -> Observation | Recording | None:
    """What the row says.

    Raises:
        BadObservation: it cannot be read; with the reason.

    """
    if row.status == "failed" and row.retry_count >= MAX_TRIES:
        raise BadObservation(f"given up after {row.retry_count} tries: {row.error or 'no reason given'}"[:_MAX_REASON])
    payload = parse_json(row.payload)
    if not isinstance(payload, dict):
        raise BadObservation("the payload is no JSON object")
    if row.source == "twilio_rest":
        # Kept as text by `bury`. It was said a moment before it was received.
        record = payload.get("record")
        return read_record(parse_json(record) if isinstance(record, str) else record, observed_at=row.received_at)
    if row.event_type == "recording-complete":
        return read_recording(
            payload, call_sid=row.call_sid, recording_sid=row.recording_sid, received_at=row.received_at
        )
    return read_webhook(row.event_type, payload, received_at=row.received_at)

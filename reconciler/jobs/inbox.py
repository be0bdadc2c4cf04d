"""The inbox job: it merges webhooks that the Viewer's worker left, tries them again, or keeps them as dead letters.

Design rules
- A row is claimed, merged and marked in one transaction. The job has no state "processing" of its own, so a kill leaves
  the row unchanged. The Viewer's worker may use the same table at the same time; each skips the other's locked rows.
- A row that cannot be read becomes a dead letter. A row that PostgreSQL refuses is found by halving the batch, so that
  the other rows are merged. An error that no row caused (the database is away) changes nothing.
- Webhooks go through the same merge as REST records. The merge handles webhooks that come twice or late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple

from reconciler import metrics
from reconciler.database.decisions import Decision, Merged
from reconciler.database.inbox import WORKER_TRIES, InboxRow, InboxRows, backlog, count_unsettled
from reconciler.database.store import PAGE_ATTEMPTS
from reconciler.database.transaction import Transaction
from reconciler.errors import BadObservation, Outpaced
from reconciler.exact_json import parse_json
from reconciler.logs import get_logger
from reconciler.model import DeadLetter, JobName, Observation, Recording
from reconciler.sync import telemetry
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts
from reconciler.sync.run import Run, run
from reconciler.twilio.recording_records import is_recording_record, read_recording_record
from reconciler.twilio.records import read_record
from reconciler.twilio.webhooks import read_recording, read_webhook

REPLAY: Final = JobName("inbox", variant="replay")
INBOX_BATCH: Final = 500  # rows in one commit
BACKLOG_GRACES: Final = 10
BACKLOG_AT_LEAST: Final = timedelta(hours=1)

_MAX_REASON: Final = 500  # characters

log = get_logger(__name__)

Claim = Callable[..., list[InboxRow]]  # of InboxRows


@dataclass(slots=True)
class InboxCounts(Counts):
    """The counts of the inbox job: `rows` and `put_off` in rows of the inbox, the others in calls."""

    rows: int = 0
    put_off: int = 0  # left to a later try

    @property
    def completed(self) -> int:
        """The number of rows that were completed."""
        return self.rows - self.dead_letters - self.put_off

    def as_dict(self) -> dict[str, Any]:
        """Return the result for `--json`; its shape is a contract."""
        return {"rows": self.rows, "completed": self.completed, "put_off": self.put_off, **self.counts()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayContext(JobContext):
    """The context of a replay of dead letters: those with `ids`, or all."""

    ids: Sequence[int] | None = None


def work_inbox(context: JobContext) -> InboxCounts:
    """Settle every webhook that is due at the begin of the run, oldest first, in batches, until the run is stopped.

    Other workers may run at the same time. Afterwards each of these rows is completed, is a dead letter with a reason,
    waits for a later try, or belongs to another worker.

    Raises:
        Refused: the database role lacks a privilege.
        Retriable: the database did not come back; rows that were not committed are unchanged.
        JobHeld: another process runs this job.

    """
    with run(context, InboxCounts()) as this:
        now, grace, batch = this.now(), context.settings.inbox_grace, _batch_size(context)
        _tell_backlog(this, now, grace)
        rows = batch
        while rows >= batch and not this.stop.is_set():
            rows = len(_work_batch(this, partial(InboxRows.claim_due, now=now, grace=grace, limit=batch)))
        _work_by_number(this, partial(InboxRows.claim_failed, now=now, limit=batch))
    return this.counts


def replay(context: ReplayContext) -> InboxCounts:
    """Read dead letters again with the current code: each is completed, or stays a dead letter.

    Raises:
        Refused: the database role lacks a privilege.
        Retriable: the database did not come back; rows that were not committed are unchanged.
        JobHeld: another process is running a replay.

    """
    with run(context, InboxCounts()) as this:
        batch = _batch_size(context)
        if context.ids is None:
            _work_by_number(this, partial(InboxRows.claim_dead, now=this.now(), limit=batch))
            return this.counts
        for start in range(0, len(context.ids), batch):
            if not this.stop.is_set():
                ids = context.ids[start : start + batch]
                _work_batch(this, partial(InboxRows.claim_dead_by_id, ids=ids, now=this.now()))
    return this.counts


class _Item(NamedTuple):
    """A row, and the observation or recording in it; None if it has neither."""

    row: InboxRow
    said: Observation | Recording | None


@dataclass(slots=True)
class _Batch:
    """The rows of one transaction, and their results."""

    rows: list[InboxRow]
    unreadable: list[tuple[InboxRow, str]] = field(default_factory=list)
    put_off: dict[int, str] = field(default_factory=dict)  # reasons by row: another session locks it
    merged: Merged = field(default_factory=Merged)


def _batch_size(context: JobContext) -> int:
    return context.options.batch_size or INBOX_BATCH


def _tell_backlog(this: Run[InboxCounts], now: datetime, grace: timedelta) -> None:
    due = this.ask(partial(backlog, now=now, grace=grace))
    unsettled = this.ask(count_unsettled)
    for status in ("pending", "processing", "failed", "dead_letter"):
        metrics.inbox_rows.labels(status).set(unsettled.get(status, 0))
    oldest = due.oldest_seconds
    metrics.inbox_oldest.set(oldest or 0)
    if oldest is not None and oldest > max(BACKLOG_GRACES * grace, BACKLOG_AT_LEAST).total_seconds():
        log.warning("inbox.backlogged", pending=due.rows, oldest_seconds=round(oldest))


def _work_by_number(this: Run[InboxCounts], claim: Claim) -> None:
    """Settle the rows that `claim` returns, each once, in the order of their ids."""
    first, batch = 0, _batch_size(this.context)
    while not this.stop.is_set():
        rows = _work_batch(this, partial(claim, first=first))
        if len(rows) < batch:
            return
        first = rows[-1].id + 1


def _work_batch(this: Run[InboxCounts], claim: Claim) -> list[InboxRow]:
    """Claim rows, settle them in one commit, and return them."""
    batch = this.persist(partial(_commit_batch, this, claim))
    this.counts.rows += len(batch.rows)
    for row in batch.rows:
        if (reason := batch.put_off.get(row.id)) is not None:
            this.counts.put_off += 1
            log.warning("record.deferred", call_sid=row.call_sid, reason=reason)
    this.counts.count_page(batch.merged)
    letters = [DeadLetter(f"inbox:{row.id}", row.call_sid, row.payload, reason) for row, reason in batch.unreadable]
    telemetry.report_page(batch.merged, letters)
    return batch.rows


def _commit_batch(this: Run[InboxCounts], claim: Claim) -> _Batch:
    """Settle a batch. If another writer interferes too often, put off the rows that it locks."""

    def work(transaction: Transaction, *, sets_aside: bool = False) -> _Batch:
        return _settle(transaction, this, claim(transaction.inbox), sets_aside=sets_aside)

    try:
        return this.context.store.atomically(work, attempts=PAGE_ATTEMPTS)
    except Outpaced:
        return this.context.store.atomically(partial(work, sets_aside=True))


def _settle(transaction: Transaction, this: Run[InboxCounts], rows: list[InboxRow], *, sets_aside: bool) -> _Batch:
    batch = _Batch(rows)
    now = this.now()
    items: list[_Item] = []
    decisions: list[Decision] = []
    for row in rows:
        try:
            items.append(_Item(row, _read(row)))
        except BadObservation as exc:
            batch.unreadable.append((row, str(exc)))
    if any(item.said for item in items):
        found = transaction.bisect_refused(
            items, lambda some: _apply(transaction, this, some, now), sets_aside=sets_aside
        )
        decisions = found.written
        batch.unreadable += ((item.row, reason) for item, reason in found.refused)
        batch.put_off = {item.row.id: reason for item, reason in found.held}
    reasons = {row.id: reason for row, reason in batch.unreadable}
    left = reasons.keys() | batch.put_off.keys()
    calls = {item.said.call_sid for item in items if isinstance(item.said, Observation) and item.row.id not in left}
    batch.merged = Merged.of(len(calls), decisions, dead_letters=len(reasons))
    transaction.inbox.complete([row.id for row in rows if row.id not in left], now=now)
    transaction.inbox.give_up(reasons, now=now)
    transaction.inbox.put_off(batch.put_off)
    return batch


def _apply(transaction: Transaction, this: Run[InboxCounts], items: Sequence[_Item], now: datetime) -> list[Decision]:
    said = [item.said for item in items if item.said is not None]
    written = transaction.write(said, origin=this.origin, now=now)
    observations = [each for each in said if isinstance(each, Observation)]
    transaction.fill_answered_by(observations, origin=this.origin, now=now)
    # A recording that its callback told was not lost, and is not counted.
    return [decision for decision in written if isinstance(decision, Decision)]


def _read(row: InboxRow) -> Observation | Recording | None:
    """Return the observation or recording in a row; None if it has neither.

    Raises:
        BadObservation: the row cannot be read; the message is the reason.

    """
    if row.status == "failed" and row.retry_count >= WORKER_TRIES:
        raise BadObservation(f"given up after {row.retry_count} tries: {row.error or 'no reason given'}"[:_MAX_REASON])
    payload = parse_json(row.payload)
    if not isinstance(payload, dict):
        raise BadObservation("the payload is no JSON object")
    if row.source == "twilio_rest":
        # `keep_dead_letter` stored the record as text. Its time is about that of its receipt.
        record = payload.get("record")
        record = parse_json(record) if isinstance(record, str) else record
        read = read_recording_record if is_recording_record(record) else read_record
        return read(record, observed_at=row.received_at)
    if row.event_type == "recording-complete":
        return read_recording(
            payload, call_sid=row.call_sid, recording_sid=row.recording_sid, received_at=row.received_at
        )
    return read_webhook(row.event_type, payload, received_at=row.received_at)

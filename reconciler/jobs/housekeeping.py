"""Housekeeping: logs the sizes of the tables, and deletes old webhooks and events, if a retention is set for them.

The rows go in small batches. Each is a commit of its own. After each the job rests for as long as the batch took. So
the database and its standbys have half of the time for others (`python -m tests.programs.retention_load`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeVar

from reconciler import metrics
from reconciler.database.retention import FIRST_EVENT, FIRST_WEBHOOK, Pruned
from reconciler.database.tables import measure
from reconciler.logs import get_logger
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts
from reconciler.sync.heard import heard_at
from reconciler.sync.run import Run, run

PRUNE_BATCH: Final = 1000  # rows in one commit
REST: Final = 1.0  # after a batch, in times of the batch

P = TypeVar("P")

log = get_logger(__name__)


@dataclass(slots=True)
class HousekeepingCounts(Counts):
    """The counts of housekeeping: the size of each table in bytes, and the webhooks and events that it deleted."""

    sizes: dict[str, int] = field(default_factory=dict)
    webhooks_deleted: int = 0
    events_deleted: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the result for `--json`; its shape is a contract."""
        sizes = {measured_field(table): size for table, size in self.sizes.items()}
        deleted = {"webhooks_deleted": self.webhooks_deleted, "events_deleted": self.events_deleted}
        return {**sizes, **deleted, **self.counts()}


def keep_house(context: JobContext) -> HousekeepingCounts:
    """Measure our tables; delete rows older than `inbox_retention` and `events_retention`, where set, oldest first.

    - Of the inbox only completed webhooks go: dead letters and unsettled rows stay, at any age.
    - Of the events only those of frozen calls go.
    - Ages count up to Twilio's last answer to a job, if there is one. Otherwise a clock of ours that is ahead for a
      moment would delete what came last week.
    - A run that is stopped between two batches has done all before for good.

    Raises:
        Refused: the database role lacks a privilege.
        Retriable: the database did not come back.
        JobHeld: another process runs this job.

    """
    with run(context, HousekeepingCounts()) as this:
        _measure(this)
        settings = context.settings
        if settings.inbox_retention is not None or settings.events_retention is not None:
            heard = heard_at(this) or this.now()
            if settings.inbox_retention is not None:
                _prune_inbox(this, heard - settings.inbox_retention)
            if settings.events_retention is not None:
                _prune_events(this, heard - settings.events_retention)
    return this.counts


def _measure(this: Run[HousekeepingCounts]) -> None:
    sizes = this.counts.sizes = this.ask(measure)
    log.info("tables.measured", **{measured_field(table): size for table, size in sizes.items()})
    for table, size in sizes.items():
        metrics.table_bytes.labels(table).set(size)


def measured_field(table: str) -> str:
    """Return the field of `tables.measured` for the size of `table`."""
    return f"{table.removeprefix('twilio_webhook_')}_bytes"


def _prune_inbox(this: Run[HousekeepingCounts], before: datetime) -> None:
    def prune(place: datetime) -> Pruned[datetime]:
        return this.commit(lambda writes: writes.prune_inbox(place=place, before=before, limit=_batch(this)))

    this.counts.webhooks_deleted = _prune(this, prune, FIRST_WEBHOOK)
    if this.counts.webhooks_deleted:
        log.info("inbox.pruned", rows=this.counts.webhooks_deleted)


def _prune_events(this: Run[HousekeepingCounts], before: datetime) -> None:
    def prune(place: int) -> Pruned[int]:
        return this.commit(lambda writes: writes.prune_events(place=place, before=before, limit=_batch(this)))

    this.counts.events_deleted = _prune(this, prune, FIRST_EVENT)
    if this.counts.events_deleted:
        log.info("events.pruned", rows=this.counts.events_deleted)


def _prune(this: Run[HousekeepingCounts], prune: Callable[[P], Pruned[P]], first: P) -> int:
    """Delete batch by batch, resting after each, until nothing old is left; return how many rows were deleted."""
    deleted = 0
    place: P | None = first
    while place is not None and not this.stop.is_set():
        started = time.monotonic()
        pruned = prune(place)
        deleted, place = deleted + pruned.deleted, pruned.place
        this.stop.wait(REST * (time.monotonic() - started))
    return deleted


def _batch(this: Run[HousekeepingCounts]) -> int:
    return this.context.options.batch_size or PRUNE_BATCH

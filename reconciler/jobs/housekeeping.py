"""Housekeeping: logs the sizes of the tables, and deletes completed webhooks past the retention, if one is set."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from reconciler import metrics
from reconciler.database.tables import measure
from reconciler.logs import get_logger
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts
from reconciler.sync.run import Run, run

PRUNE_BATCH: Final = 1000  # rows in one commit

log = get_logger(__name__)


@dataclass(slots=True)
class HousekeepingCounts(Counts):
    """The counts of housekeeping: the size of each table in bytes, and the webhooks that it deleted."""

    sizes: dict[str, int] = field(default_factory=dict)
    webhooks_deleted: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the result for `--json`; its shape is a contract."""
        sizes = {measured_field(table): size for table, size in self.sizes.items()}
        return {**sizes, "webhooks_deleted": self.webhooks_deleted, **self.counts()}


def keep_house(context: JobContext) -> HousekeepingCounts:
    """Measure our tables; delete completed webhooks older than `inbox_retention`, if that is set, oldest first.

    Dead letters and unsettled rows stay, at any age. Each batch is a commit of its own.

    Raises:
        Refused: the database role lacks a privilege.
        Retriable: the database did not come back.
        JobHeld: another process runs this job.

    """
    with run(context, HousekeepingCounts()) as this:
        _measure(this)
        if (retention := context.settings.inbox_retention) is not None:
            _prune(this, this.now() - retention)
    return this.counts


def _measure(this: Run[HousekeepingCounts]) -> None:
    sizes = this.counts.sizes = this.ask(measure)
    log.info("tables.measured", **{measured_field(table): size for table, size in sizes.items()})
    for table, size in sizes.items():
        metrics.table_bytes.labels(table).set(size)


def measured_field(table: str) -> str:
    """Return the field of `tables.measured` for the size of `table`."""
    return f"{table.removeprefix('twilio_webhook_')}_bytes"


def _prune(this: Run[HousekeepingCounts], received_before: datetime) -> None:
    batch = this.context.options.batch_size or PRUNE_BATCH
    gone = batch
    while gone >= batch and not this.stop.is_set():
        gone = this.commit(lambda transaction: transaction.inbox.prune(received_before=received_before, limit=batch))
        this.counts.webhooks_deleted += gone
    if this.counts.webhooks_deleted:
        log.info("inbox.pruned", rows=this.counts.webhooks_deleted)

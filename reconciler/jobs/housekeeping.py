"""Housekeeping: logs the sizes of the tables, and deletes completed webhooks past the retention, if one is set."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from reconciler import metrics
from reconciler.database.tables import measure
from reconciler.logs import get_logger
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts
from reconciler.sync.run import Run, run

PRUNE_BATCH: Final = 1000  # rows in one commit

log = get_logger(__name__)


def keep_house(context: JobContext) -> Counts:
    """Measure our tables; delete completed webhooks older than `inbox_retention`, if that is set, oldest first.

    Dead letters and unsettled rows stay, at any age. Each batch is a commit of its own.

    Raises:
        Refused: the database role lacks a privilege.
        Retriable: the database did not come back.
        JobHeld: another process runs this job.

    """
    with run(context, Counts()) as this:
        _measure(this)
        if (retention := context.settings.inbox_retention) is not None:
            _prune(this, this.now() - retention)
    return this.counts


def _measure(this: Run[Counts]) -> None:
    sizes = this.ask(measure)
    log.info("tables.measured", **{measured_field(table): size for table, size in sizes.items()})
    for table, size in sizes.items():
        metrics.table_bytes.labels(table).set(size)


def measured_field(table: str) -> str:
    """Return the field of `tables.measured` for the size of `table`."""
    return f"{table.removeprefix('twilio_webhook_')}_bytes"


def _prune(this: Run[Counts], received_before: datetime) -> None:
    batch = this.context.options.batch_size or PRUNE_BATCH
    rows = 0
    gone = batch
    while gone >= batch and not this.stop.is_set():
        gone = this.commit(lambda transaction: transaction.inbox.prune(received_before=received_before, limit=batch))
        rows += gone
    if rows:
        log.info("inbox.pruned", rows=rows)

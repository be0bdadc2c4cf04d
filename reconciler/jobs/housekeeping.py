"""Housekeeping: how large the tables are, and webhooks that were done with long ago go, if a retention is set."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from reconciler import metrics
from reconciler.database import connection as db
from reconciler.database.migration_files import TABLES
from reconciler.database.store import Store
from reconciler.logs import get_logger
from reconciler.model import Job
from reconciler.sync.run import Run, Terms, Totals, run

JOB: Final = Job("housekeeping")

BATCH: Final = 1000  # rows a commit

log = get_logger(__name__)

_queries = db.load_queries("housekeeping")


def keep_house(store: Store, *, terms: Terms, inbox_retention: timedelta | None, batch: int = BATCH) -> Totals:
    """Measure our tables; with `inbox_retention` delete completed webhooks received before that, oldest first.

    Dead letters and what is not settled stay, however old. Each batch is a commit of its own.

    Raises:
        Refused: the database role may not do this.
        Retriable: the database stayed away.
        JobHeld: another process runs this job.

    """
    totals = Totals()
    with run(JOB, totals, account_sid=None, store=store, source=None, terms=terms) as this:
        _measure(this)
        if inbox_retention is not None:
            _prune(this, this.now() - inbox_retention, batch)
        totals.interrupted = this.stop.is_set()
    return totals


def _measure(this: Run) -> None:
    sizes: dict[str, int] = dict(this.ask(_queries, "measure", {"tables": list(TABLES)}))
    log.info("tables.measured", **{measured_field(table): size for table, size in sizes.items()})
    for table, size in sizes.items():
        metrics.table_bytes.labels(table).set(size)


def measured_field(table: str) -> str:
    """The field of `tables.measured` that holds the size of `table`."""
    return f"{table.removeprefix('twilio_webhook_')}_bytes"


def _prune(this: Run, received_before: datetime, batch: int) -> None:
    params = {"received_before": received_before, "batch": batch}
    rows = 0
    gone = batch
    while gone >= batch and not this.stop.is_set():
        gone = this.persist(
            lambda: this.store.atomically(
                lambda transaction: transaction.conn.execute(_queries["prune_inbox"], params).rowcount
            )
        )
        rows += gone
    if rows:
        log.info("inbox.pruned", rows=rows)

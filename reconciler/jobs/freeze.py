"""The freeze job: it freezes calls that have waited for their price long enough, and logs stuck calls, each once.

The merge freezes calls that are complete. This job freezes calls that will never be complete; it needs only the
database.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from reconciler import metrics
from reconciler.database.calls import count_open, stuck_calls
from reconciler.errors import ConfigError
from reconciler.logs import get_logger
from reconciler.model import JobName
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts
from reconciler.sync.cursors import FreezeCursor, WarmCursor, load
from reconciler.sync.run import Run, run
from reconciler.twilio.listing import RETENTION

FREEZE_BATCH: Final = 1000  # rows in one commit
NAMED_AT_MOST: Final = 100  # stuck calls logged by one run; the next run logs the next ones
NEVER: Final = datetime.min.replace(tzinfo=UTC)

log = get_logger(__name__)


def freeze(context: JobContext) -> Counts:
    """Freeze every call that is past its deadline, in batches; log the calls that became stuck.

    - A call that REST has confirmed, or that is gone, freezes `freeze_after` past its end.
    - An account counts as covered by warm if warm has a cursor for it, or if it is in the option `scheduled_accounts`
      (None: all accounts). A covered call freezes only after warm has asked about it once past the deadline.
    - A call that only webhooks have reported freezes when it is older than Twilio's retention.
    - A call is stuck if it is open for longer than `stuck_after`.

    Raises:
        ConfigError: the cursor cannot be right; calls were frozen, but stuck calls were not logged.
        Refused: the database role lacks a privilege.
        Retriable: the database did not come back; committed batches stay frozen.
        JobHeld: another process runs this job.

    """
    with run(context, Counts()) as this:
        now = this.now()
        # One day more, because Twilio counts its 400 days on its own clock.
        kept_since = now - RETENTION - timedelta(days=1)
        stuck_since = now - context.settings.stuck_after
        _freeze_due(this, kept_since, now)
        _name_stuck(this, stuck_since, now)
        counts = this.ask(partial(count_open, stuck_since=stuck_since, kept_since=kept_since))
        metrics.open_calls.set(counts.open)
        metrics.stuck_calls.set(counts.stuck)
        metrics.unfrozen_calls.set(counts.unfrozen)
    return this.counts


def _freeze_due(this: Run[Counts], kept_since: datetime, now: datetime) -> None:
    settings, options = this.context.settings, this.context.options
    batch = options.batch_size or FREEZE_BATCH
    looks = _read_looks(this, options.scheduled_accounts or (), now)
    frozen = batch
    while frozen >= batch and not this.stop.is_set():
        frozen = len(
            this.commit(
                lambda transaction: transaction.freeze_due(
                    freeze_after=settings.freeze_after,
                    kept_since=kept_since,
                    warm_looks=looks,
                    warm_is_everywhere=options.scheduled_accounts is None,
                    limit=batch,
                    origin=this.origin,
                    now=now,
                )
            )
        )
        this.counts.frozen += frozen


def _read_looks(this: Run[Counts], scheduled_accounts: tuple[str, ...], now: datetime) -> dict[str, datetime]:
    """Return the time of warm's last run by account. An unreadable cursor is left out; warm's own run reports it."""
    looks = dict.fromkeys(scheduled_accounts, NEVER)
    for value in this.persist(lambda: this.context.store.read_cursors("warm")):
        with suppress(ConfigError):
            cursor = load(JobName("warm"), value, WarmCursor, now=now)
            if cursor is not None:
                looks[cursor.account] = cursor.looked_at
    return looks


def _name_stuck(this: Run[Counts], stuck_since: datetime, now: datetime) -> None:
    """Log the calls that became stuck since the last log; the cursor holds the begin of the last call logged."""
    cursor = this.read_cursor(FreezeCursor)
    named_since = None if cursor is None else cursor.named_since
    stuck = this.ask(partial(stuck_calls, stuck_since=stuck_since, named_since=named_since, limit=NAMED_AT_MOST))
    if len(stuck) == NAMED_AT_MOST:
        # More calls may have begun in the same second as the last one. The next run logs all of that second together.
        stuck = [call for call in stuck if call.began_at < stuck[-1].began_at] or stuck
    for call in stuck:
        log.warning(
            "call.stuck",
            call_sid=call.call_sid,
            account=call.account_sid,
            status=call.status,
            open_seconds=round((now - call.began_at).total_seconds()),
        )
    if stuck:
        this.keep_cursor(FreezeCursor(named_since=stuck[-1].began_at))

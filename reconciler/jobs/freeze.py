"""The freeze job: it freezes calls that have waited for their price long enough, and logs stuck calls, each once.

The merge freezes calls that are complete. This job freezes calls that will never be complete; it needs only the
database.

Design rules
- A deadline passes on Twilio's clock. Our clock may be ahead, and a call that freezes too early never gets its price.
- The job does not ask Twilio: it goes by the time at which Twilio last answered another job (`sync/heard.py`).
- So nothing more freezes while Twilio is away, and nothing at all before a job has asked. What a backfill reads past
  its deadline freezes in the merge.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from reconciler import metrics
from reconciler.database.calls import count_open, stuck_calls
from reconciler.logs import get_logger
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts
from reconciler.sync.cursors import FreezeCursor, WarmCursor, is_ahead
from reconciler.sync.heard import heard_at, read_cursors
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
        heard = heard_at(this)
        # One day more, because Twilio counts its 400 days on its own clock.
        kept_since = (heard or now) - RETENTION - timedelta(days=1)
        stuck_since = now - context.settings.stuck_after
        if heard is not None:
            _freeze_due(this, kept_since, heard, now)
        _name_stuck(this, stuck_since, now)
        counts = this.ask(partial(count_open, stuck_since=stuck_since, kept_since=kept_since, now=now))
        metrics.open_calls.set(counts.open)
        metrics.oldest_open_call.set(counts.oldest_seconds)
        metrics.stuck_calls.set(counts.stuck)
        metrics.unfrozen_calls.set(counts.unfrozen)
    return this.counts


def _freeze_due(this: Run[Counts], kept_since: datetime, heard: datetime, now: datetime) -> None:
    settings, options = this.context.settings, this.context.options
    batch = options.batch_size or FREEZE_BATCH
    looks = _read_looks(this, options.scheduled_accounts or (), now)
    frozen = batch
    while frozen >= batch and not this.stop.is_set():
        frozen = len(
            this.commit(
                lambda transaction: transaction.freeze_due(
                    freeze_after=settings.freeze_after,
                    ended_before=heard - settings.freeze_after,
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
    """Return the time of warm's last run by account; NEVER for a cursor in the future."""
    looks = dict.fromkeys(scheduled_accounts, NEVER)
    for cursor in read_cursors(this, "warm", WarmCursor):
        looks[cursor.account] = NEVER if is_ahead(cursor, now) else cursor.looked_at
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

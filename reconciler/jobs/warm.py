"""The warm job: it fetches values that Twilio adds after a call's end, above all the price; complete calls freeze.

Design rules
- warm asks about calls that ended and are not frozen: at once, and again each time a call's age has doubled. A call
  whose price never comes costs ten requests until its deadline, not a hundred.
- The merge of the record freezes the row; past the deadline also without a price.
- The cursor moves past calls that warm has asked about after their deadline. After downtime the cursor is old, so warm
  asks about all calls that ended meanwhile. A first run asks about all calls that REST has confirmed and that are not
  frozen.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import Final

from reconciler.database.calls import KnownCall, unfrozen_calls
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts
from reconciler.sync.cursors import WarmCursor
from reconciler.sync.lookup import look_again
from reconciler.sync.run import Run, run
from reconciler.twilio.listing import RETENTION, Listing

# The cursor moves by Twilio's clock. A process that asked nothing (`once`) does not know it, and the cursor stays.
_CLOCK_LEARNT_EVERY: Final = timedelta(days=1)


def warm(context: JobContext) -> Counts:
    """Ask about the calls that ended and are not frozen: about all of them, or in a scheduled run about those due.

    With the option `since`, ask about the calls that ended since then, and ignore the cursor.

    Raises:
        ConfigError: the cursor cannot be right; nothing was read.
        Refused: Twilio or the database refused.
        Retriable: Twilio or the database did not come back; the cursor does not move.
        JobHeld: another process runs this job.

    """
    with run(context, Counts()) as this:
        cursor = this.read_cursor_unless(context.options.since, WarmCursor)
        if cursor is None or this.now() - cursor.looked_at > _CLOCK_LEARNT_EVERY:
            this.learn_twilios_clock()
        now = this.now()
        since = context.options.since or (_settled_by(this, now) if cursor is None else cursor.settled_until)
        wanted = this.ask(_due_calls(this, cursor, since, now))
        if wanted and not this.session.requests:
            # A 404 for a single call proves something only if we may see the account: this listing shows that we may.
            this.session.page(Listing(this.account.sid, page_size=1))
        looked_at = min(now, this.now()) if this.knows_twilios_clock or cursor is None else cursor.looked_at
        look_again(this, wanted)
        if this.counts.problem is None and not this.stop.is_set():
            until = max(since, _settled_by(this, looked_at))
            this.keep_cursor(WarmCursor(account=this.account.sid, settled_until=until, looked_at=looked_at))
    return this.counts


def _settled_by(this: Run[Counts], now: datetime) -> datetime:
    """Return the time before which ended calls are past their deadline."""
    return now - this.context.settings.freeze_after - this.context.settings.overlap


def _due_calls(
    this: Run[Counts], cursor: WarmCursor | None, since: datetime, now: datetime
) -> partial[list[KnownCall]]:
    """Return the query for the calls that warm must ask about."""
    settings, options, account = this.context.settings, this.context.options, this.account
    # A first run leaves old calls that only webhooks reported to cold and backfill. It asks about calls that hot has
    # read while warm did not run.
    is_first = cursor is None and options.since is None
    return partial(
        unfrozen_calls,
        account_sid=account.sid,
        owns_unassigned=account.owns_unassigned,
        is_only_account=account.is_only,
        now=now,
        since=since,
        confirmed_since=now - RETENTION if is_first else since,
        looked_at=cursor.looked_at if cursor is not None and options.is_scheduled else None,
        interval=settings.warm_interval if options.is_scheduled else None,
        freeze_after=settings.freeze_after,
    )

"""The warm job: what comes after a call's end arrives, its price above all; a complete call freezes.

Design rules
- Warm asks about calls that ended and are not frozen: at once, and again each time a call's age has doubled. A call
  whose price never comes costs ten requests until its deadline, not a hundred.
- The merge of the record freezes the row; past the deadline it does so without a price.
- The cursor moves past calls that warm asked about after their deadline. After downtime the cursor lies behind, so warm
  asks about all calls that ended meanwhile. A first run asks about all calls that REST has confirmed and left open.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial

from reconciler.database.calls import KnownCall, unfrozen_calls
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts
from reconciler.sync.cursors import WarmCursor
from reconciler.sync.lookup import look_again
from reconciler.sync.run import Run, run
from reconciler.twilio.listing import RETENTION, Listing


def warm(context: JobContext) -> Counts:
    """Ask about the calls that ended and are not frozen: about all of them, or in a scheduled run about those due.

    With the option `since`, about the calls that ended since then, wherever the cursor is.

    Raises:
        ConfigError: the cursor is impossible; nothing was read.
        Refused: Twilio or the database does.
        Retriable: Twilio or the database stayed away; the cursor stays.
        JobHeld: another process runs this job.

    """
    with run(context, Counts()) as this:
        now = this.now()
        cursor = this.read_cursor_unless(context.options.since, WarmCursor)
        settled_until = _settled_by(this, now)
        since = context.options.since or (settled_until if cursor is None else cursor.settled_until)
        wanted = this.ask(_due_calls(this, cursor, since, now))
        if wanted:
            # Singles are to be believed only if the account can be seen: the first listing tells.
            this.session.page(Listing(this.account.sid, page_size=1))
            look_again(this, wanted)
        if this.counts.problem is None and not this.stop.is_set():
            until = max(since, settled_until)
            this.keep_cursor(WarmCursor(account=this.account.sid, settled_until=until, looked_at=now))
    return this.counts


def _settled_by(this: Run[Counts], now: datetime) -> datetime:
    """Calls that ended before this are past their deadline."""
    return now - this.context.settings.freeze_after - this.context.settings.overlap


def _due_calls(
    this: Run[Counts], cursor: WarmCursor | None, since: datetime, now: datetime
) -> partial[list[KnownCall]]:
    """The question which calls warm is to ask about."""
    settings, options, account = this.context.settings, this.context.options, this.account
    # A first look leaves to cold and backfill what old webhooks said, but not what hot read while warm did not run.
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

"""The warm job: what comes after a call's end, its price above all, arrives; what is complete freezes.

Design rules
- Asked about are calls that ended and are not frozen: at once, and again each time they have grown twice as old, so
  that a call whose price never comes costs ten requests until its deadline, not a hundred.
- The merge of the record freezes the row; past the deadline it does so without a price.
- The cursor moves past calls that were asked about after their deadline. After downtime it is behind, and so all that
  ended meanwhile is asked about. A first run asks about all that REST has confirmed and left open, whatever its age.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from reconciler.database.store import Store
from reconciler.model import Job
from reconciler.sync.cursors import check_cursor
from reconciler.sync.lookup import look_again, read_known
from reconciler.sync.run import Run, Terms, Totals, run
from reconciler.twilio.client import Session
from reconciler.twilio.listing import RETENTION, Listing


def warm(
    account_sid: str,
    *,
    job: Job,
    is_main: bool,
    is_alone: bool = True,
    store: Store,
    source: Session,
    terms: Terms,
    freeze_after: timedelta,
    overlap: timedelta,
    interval: timedelta | None,
    since: datetime | None = None,
) -> Totals:
    """Ask about the calls that ended and are not frozen: all of them, or with `interval` those that are due.

    `since`: those that ended since then, wherever the cursor is. `is_main`: this account looks after rows that name
    no account; if it `is_alone`, what it does not know is gone.

    Raises:
        ConfigError: the cursor is impossible; nothing was read.
        Refused: Twilio or the database does.
        Retriable: Twilio or the database stayed away; the cursor stays.
        JobHeld: another process runs this job.

    """
    totals = Totals()
    with run(job, totals, account_sid=account_sid, store=store, source=source, terms=terms) as this:
        now = this.now()
        settled_until, looked_at = _read_place(this, account_sid, since, now - freeze_after - overlap)
        # A first look leaves to cold and backfill what old webhooks said, but not what hot read while warm did not run.
        is_first = since is None and looked_at is None
        wanted = read_known(
            this,
            "unfrozen_calls",
            account_sid=account_sid,
            is_main=is_main,
            is_alone=is_alone,
            now=now,
            since=settled_until,
            confirmed_since=now - RETENTION if is_first else settled_until,
            looked_at=None if interval is None else looked_at,
            interval=interval,
            freeze_after=freeze_after,
        )
        if wanted:
            # Singles are to be believed only if the account can be seen: the first listing tells.
            source.page(Listing(account_sid, page_size=1))
            look_again(this, source, account_sid, wanted)
        totals.interrupted = this.stop.is_set()
        if totals.problem is None and not totals.interrupted:
            settled_until = max(settled_until, now - freeze_after - overlap)
            this.save_cursor(
                {"account": account_sid, "settled_until": settled_until.isoformat(), "looked_at": now.isoformat()}
            )
    return totals


def _read_place(
    this: Run, account_sid: str, since: datetime | None, first: datetime
) -> tuple[datetime, datetime | None]:
    """Until when calls ended that need not be asked about any more, and when the last run looked."""
    cursor = this.read_cursor()
    if since is not None:
        return since, None
    if cursor is None:
        return first, None
    now = this.now()
    settled_until = check_cursor(this.job, cursor, field="settled_until", account_sid=account_sid, now=now)
    return settled_until, check_cursor(this.job, cursor, field="looked_at", account_sid=account_sid, now=now)

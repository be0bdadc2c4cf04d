"""One call, read from Twilio and made equal to its record: `reconcile call CA… --repair` and `--thaw`.

Only here can a frozen row change, and only if a person says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from reconciler.database.calls import KnownCall
from reconciler.database.transaction import Decision, Merged, Transaction
from reconciler.logs import get_logger
from reconciler.model import JobName, Page
from reconciler.sync import telemetry
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts
from reconciler.sync.lookup import is_gone
from reconciler.sync.run import run
from reconciler.twilio.client import Session
from reconciler.twilio.listing import Listing

REPAIR: Final = JobName("call")

log = get_logger(__name__)


@dataclass(slots=True)
class RepairCounts(Counts):
    """Twilio's record, as a page that holds it, and what came of it.

    `change` is what the merge wrote, field by field; None if it wrote nothing.
    """

    page: Page | None = None
    change: Decision | None = None
    is_thawed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairContext(JobContext):
    """The repair of one call. `held` is our row, None if there is none; `thaws`: open it if it is frozen."""

    call_sid: str
    held: KnownCall | None
    thaws: bool = False


def read_call(session: Session, account_sid: str, call_sid: str) -> Page:
    """Twilio's record, as a page that holds it; an empty page if Twilio has no such call (any more).

    Raises:
        Refused: Twilio does, or shows nothing of this account.
        Retriable: Twilio stayed away.

    """
    page = session.call(account_sid, call_sid)
    if not page.observations and not page.dead_letters:
        # For an account that we may not see every call is unknown; then the listing is refused.
        session.page(Listing(account_sid, page_size=1))
    return page


def repair(context: RepairContext) -> RepairCounts:
    """Merge Twilio's record of one call, in one commit; with `thaws` the row is opened in that commit, if it is frozen.

    - A call without a row is inserted.
    - A frozen row that is not opened stays as it is; if it differs, that is reported as drift.
    - A record that cannot be read becomes a dead letter.
    - A call that Twilio does not know is marked as gone.

    Raises:
        Refused: Twilio or the database does.
        Retriable: Twilio or the database stayed away; the row is as it was.
        JobHeld: another process is repairing a call.

    """
    with run(context, RepairCounts()) as this:
        counts = this.counts
        page = counts.page = read_call(this.session, this.account.sid, context.call_sid)
        now = this.now()

        def merge(transaction: Transaction) -> Merged:
            counts.is_thawed = context.thaws and transaction.thaw(context.call_sid, origin=this.origin, now=now)
            explained = transaction.preview(page.observations, origin=this.origin, now=now)
            merged = Merged.of(1, transaction.apply(page.observations, origin=this.origin, now=now))
            counts.change = explained[0] if explained and merged.inserted + merged.updated else None
            return merged

        if page.observations:
            merged = this.commit(merge)
            if counts.is_thawed:
                log.info("call.thawed", call_sid=context.call_sid)
            counts.count_page(merged)
            telemetry.report_page(merged)
        elif page.dead_letters:
            this.merge_page(page)
        elif context.held is not None and is_gone(context.held, page, now=now):
            this.mark_gone([context.call_sid])
    return counts

"""One call, looked up at Twilio and thawed if a person says so: the only way in which a frozen row changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from reconciler.database.transaction import Merged, Transaction
from reconciler.logs import get_logger
from reconciler.model import JobName, Page
from reconciler.sync import telemetry
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts
from reconciler.sync.run import run
from reconciler.twilio.client import Session
from reconciler.twilio.listing import Listing

THAW: Final = JobName("call")

log = get_logger(__name__)


@dataclass(slots=True)
class ThawCounts(Counts):
    """Twilio's record, as a page that holds it, and whether the row was thawed."""

    page: Page | None = None
    is_thawed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ThawContext(JobContext):
    """The thawing of one call."""

    call_sid: str


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


def thaw(context: ThawContext) -> ThawCounts:
    """Open a frozen row and merge Twilio's record, in one commit; a complete call is frozen again by it.

    The row stays as it is if it is not frozen, or if Twilio has no record of it that can be read.

    Raises:
        Refused: Twilio or the database does.
        Retriable: Twilio or the database stayed away; the row is as it was.
        JobHeld: another process is thawing a call.

    """
    with run(context, ThawCounts()) as this:
        page = this.counts.page = read_call(this.session, this.account.sid, context.call_sid)
        now = this.now()

        def open_and_merge(transaction: Transaction) -> Merged | None:
            if not transaction.thaw(context.call_sid, origin=this.origin, now=now):
                return None
            return Merged.of(1, transaction.apply(page.observations, origin=this.origin, now=now))

        merged = this.commit(open_and_merge) if page.observations else None
        if merged is not None:
            this.counts.is_thawed = True
            log.info("call.thawed", call_sid=context.call_sid)
            this.counts.count_page(merged)
            telemetry.report_page(merged)
    return this.counts

"""The repair of one call: its row is made equal to Twilio's record (`reconcile call CA… --repair`, `--thaw`).

Only this module can change a frozen row, and only if a person asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

from reconciler.database.calls import KnownCall
from reconciler.database.decisions import Decision, Merged
from reconciler.database.transaction import Transaction
from reconciler.errors import NotPermitted
from reconciler.logs import get_logger
from reconciler.model import JobName, Page, Said
from reconciler.sync import telemetry
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts
from reconciler.sync.lookup import is_gone
from reconciler.sync.run import run
from reconciler.twilio.client import Session
from reconciler.twilio.listing import Listing, RecordingListing
from reconciler.twilio.permissions import read_if_permitted

REPAIR: Final = JobName("call")

log = get_logger(__name__)


@dataclass(slots=True)
class RepairCounts(Counts):
    """The result of a repair: Twilio's record, as a page, and the changes.

    `change` holds the fields that the merge wrote; None if it wrote nothing.
    """

    page: Page | None = None
    change: Decision | None = None
    is_thawed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairContext(JobContext):
    """The context of a repair. `held`: our row, None if there is none. `thaws`: whether to open a frozen row."""

    looks_after: ClassVar[bool] = False

    call_sid: str
    held: KnownCall | None
    thaws: bool = False


def read_call(session: Session, account_sid: str, call_sid: str) -> Page:
    """Return a page with Twilio's record of a call and its recordings; an empty page if Twilio has no such call.

    If the credentials may not read recordings, the page has none, which is logged.

    Raises:
        Refused: Twilio refused, or does not show this account.
        Retriable: Twilio did not answer, or refused credentials that worked a moment ago.

    """
    page = session.call(account_sid, call_sid)
    if not page.observations and not page.dead_letters:
        # If we may not see the account, every call is unknown. The listing then raises Refused.
        session.page(Listing(account_sid, page_size=1))
    if not page.observations:
        return page
    listing = RecordingListing(account_sid, call_sid=call_sid)
    try:
        recordings = read_if_permitted(session, account_sid, partial(session.page, listing))
    except NotPermitted as exc:
        log.warning("recordings.refused", error=str(exc), hint=exc.hint)
        return page
    return page._replace(recordings=recordings.recordings, dead_letters=[*page.dead_letters, *recordings.dead_letters])


def repair(context: RepairContext) -> RepairCounts:
    """Merge Twilio's record of one call, and its recordings, in one commit. With `thaws` a frozen row is opened in it.

    - A call without a row is inserted.
    - A frozen row that is not opened does not change; if it differs, that is reported as drift.
    - A record that cannot be read becomes a dead letter.
    - A call that Twilio does not know is marked as gone.

    Raises:
        Refused: Twilio or the database refused.
        Retriable: Twilio or the database did not come back; the row is unchanged.
        JobHeld: another process is repairing a call.

    """
    with run(context, RepairCounts()) as this:
        counts = this.counts
        page = counts.page = read_call(this.session, this.account.sid, context.call_sid)
        now = this.now()

        def merge(transaction: Transaction) -> Merged:
            counts.is_thawed = context.thaws and transaction.thaw(context.call_sid, origin=this.origin, now=now)
            explained = transaction.preview(page.observations, origin=this.origin, now=now)
            items: list[Said] = [*page.observations, *page.recordings]
            merged = Merged.of(1, transaction.write(items, origin=this.origin, now=now))
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

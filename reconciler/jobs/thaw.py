"""One call, looked up at Twilio and, if a person says so, thawed: the one door through which a frozen row changes."""

from __future__ import annotations

from typing import Final

from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.database.transaction import Merged, Transaction
from reconciler.logs import get_logger
from reconciler.model import Job, Page
from reconciler.sync.run import Terms, Totals, run
from reconciler.twilio.client import Session
from reconciler.twilio.listing import Listing

JOB: Final = Job("call")

log = get_logger(__name__)

_queries = db.load_queries("thaw")


def read_call(source: Session, account_sid: str, call_sid: str) -> Page:
    """Twilio's record, as a page that holds it; an empty page if Twilio has no such call (any more).

    Raises:
        Refused: Twilio does, or shows nothing of this account.
        Retriable: Twilio stayed away.

    """
    page = source.call(account_sid, call_sid)
    if not page.observations and not page.dead_letters:
        # For an account that we may not see every call is unknown; then the listing is refused.
        source.page(Listing(account_sid, page_size=1))
    return page


def thaw(call_sid: str, account_sid: str, *, store: Store, source: Session, terms: Terms) -> tuple[Page, bool]:
    """Open a frozen row and merge Twilio's record, in one commit; a complete call is frozen again by it.

    Returns Twilio's record and whether the row was thawed: it stays as it is if it is not frozen, or if Twilio has
    no record of it that can be read.

    Raises:
        Refused: Twilio or the database does.
        Retriable: Twilio or the database stayed away; the row is as it was.
        JobHeld: another process is thawing a call.

    """
    totals = Totals()
    with run(JOB, totals, account_sid=account_sid, store=store, source=source, terms=terms) as this:
        page = read_call(source, account_sid, call_sid)
        now = this.now()

        def open_and_merge(transaction: Transaction) -> Merged | None:
            transaction.conn.execute(_queries["open_door"])
            params = {**this.origin._asdict(), "call_sid": call_sid, "now": now}
            is_thawed = transaction.conn.execute(_queries["thaw"], params).fetchone() is not None
            transaction.conn.execute(_queries["close_door"])
            if not is_thawed:
                return None
            transaction.changed.append(call_sid)
            return transaction.merge(page.observations, origin=this.origin, now=now)

        merged = this.persist(lambda: store.atomically(open_and_merge)) if page.observations else None
        if merged is not None:
            log.info("call.thawed", call_sid=call_sid)
            totals.add(merged)
            this.report(merged)
    return page, merged is not None

"""The hot job: a call that the webhooks missed shows up, and a call that ended is final, within one interval.

Design rules
- New calls: the newest are listed back to the cursor less an overlap. Twilio lists newest first by date_created, which
  is observed and not promised; where it does not hold, or the cursor lies days back, the days are swept.
- Ended calls: of the open rows that were not just seen, Status listings tell which still live; those that left are
  looked at again. So requests grow with what changed, not with what is open.
- The cursor moves when all that lies behind it was read. What is under way stands beside it, so that a killed run
  reads no page twice but the one in hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from reconciler.cursors import check_cursor
from reconciler.errors import TwilioAnswerError
from reconciler.logs import get_logger
from reconciler.plan import Plan, describe, work_through
from reconciler.recheck import look_again, read_known
from reconciler.runs import Job, Run, Terms, Totals, run
from reconciler.source import PAGE_SIZE, Listing, Source
from reconciler.store import Cursor, Store
from reconciler.sweep import LIVING, Failed, Slice, dates_created, fetch, is_newest_first
from reconciler.wire import Page

FIRST_LOOK: Final = timedelta(days=1)  # how far back a first run reads; before that is the backfill's
LISTED_AT_MOST: Final = timedelta(days=2)  # further back the days are swept, several at once
SMALLEST_PAGE: Final = 50

log = get_logger(__name__)


@dataclass(slots=True)
class _Place:
    """The cursor: all calls created before `read_until` were read.

    `listed_until` and `next_page` are those of a listing that was interrupted, `plan` is that of a sweep over a longer
    gap, and `usual` is how many calls a listing took lately.
    """

    account_sid: str
    read_until: datetime
    usual: int = 0
    listed_until: datetime | None = None
    next_page: str | None = None
    plan: Plan | None = None

    @classmethod
    def from_json(cls, value: dict[str, Any], read_until: datetime) -> _Place:
        account_sid, listed_until, plan = value["account"], value.get("listed_until"), value.get("plan")
        return cls(
            account_sid,
            read_until,
            value.get("usual", 0),
            None if listed_until is None else datetime.fromisoformat(listed_until),
            value.get("next_page"),
            None if plan is None else Plan.from_json(account_sid, plan),
        )

    def as_json(self) -> dict[str, Any]:
        under_way: dict[str, Any] = {}
        if self.next_page is not None and self.listed_until is not None:
            under_way = {"listed_until": self.listed_until.isoformat(), "next_page": self.next_page}
        if self.plan is not None:
            under_way["plan"] = self.plan.as_json()
        return {
            "account": self.account_sid,
            "read_until": self.read_until.isoformat(),
            "usual": self.usual,
            **under_way,
        }


def hot(
    account_sid: str,
    *,
    job: Job,
    is_main: bool,
    store: Store,
    source: Source,
    terms: Terms,
    overlap: timedelta,
    since: datetime | None = None,
) -> Totals:
    """Read what is new and what ended, since the last run or since `since`.

    `is_main`: this account looks after open rows that name no account.

    Raises:
        ConfigError: the cursor is impossible; nothing was read.
        Refused: Twilio or the database does.
        Retriable: Twilio or the database stayed away; the cursor tells what is still to be read.
        JobHeld: another process runs this job.

    """
    totals = Totals()
    with run(job, totals, account_sid=account_sid, store=store, source=source, terms=terms) as this:
        place = _begin(this, account_sid, since)
        seen = _read_new(this, source, place, overlap)
        if totals.problem is None and not this.stop.is_set():
            _look_after_open(this, source, account_sid, seen, is_main=is_main)
        totals.interrupted = this.stop.is_set()
        totals.lag = this.now() - place.read_until
    return totals


def _begin(this: Run, account_sid: str, since: datetime | None) -> _Place:
    now = this.now()
    cursor = this.read_cursor()
    if since is not None:
        return _Place(account_sid, since)
    if cursor is None:
        return _Place(account_sid, now - FIRST_LOOK)
    read_until = check_cursor(this.job, cursor, field="read_until", account_sid=account_sid, now=now)
    return _Place.from_json(cursor, read_until)


def _read_new(this: Run, source: Source, place: _Place, overlap: timedelta) -> set[str]:
    """Read every call created since the cursor, less the overlap; returns those seen, as far as they fit a listing."""
    if place.plan is None and place.read_until < this.now() - LISTED_AT_MOST:
        place.plan = Plan(place.account_sid, [place.read_until - overlap, this.now()])
    if place.plan is not None and not _sweep(this, source, place):
        return set()
    seen: set[str] = set()
    if place.next_page is not None and not _list(this, source, place, overlap, seen):
        return seen
    if not this.stop.is_set():
        _list(this, source, place, overlap, seen)
    return seen


def _sweep(this: Run, source: Source, place: _Place) -> bool:
    """Work through the days of a longer gap; True when all were read."""
    plan = place.plan
    assert plan is not None
    failed = work_through(this, plan, source=source, cursor=place.as_json)
    if failed or this.stop.is_set():
        this.totals.problem = describe(failed)
        return False
    place.read_until, place.plan = plan.bounds[-1], None
    place.next_page = place.listed_until = None
    this.save_cursor(place.as_json())
    return True


def _list(this: Run, source: Source, place: _Place, overlap: timedelta, seen: set[str]) -> bool:
    """List the newest calls back to the cursor less the overlap, or go on where that was left; True when done."""
    down_to = place.read_until - overlap
    page_size = min(PAGE_SIZE, max(SMALLEST_PAGE, -(-place.usual * 3 // 2 // 50) * 50))
    listing = Listing(place.account_sid, page_size=page_size)
    before: list[datetime] = []
    path, listed = place.next_page, 0
    while True:
        try:
            page = source.page(listing, path)
        except TwilioAnswerError:
            if path is None:
                raise
            # A page token names a call, and may die with it: from the beginning.
            path = place.next_page = place.listed_until = None
            before.clear()
            continue
        if place.listed_until is None:
            place.listed_until = page.observed_at
        created = dates_created(page)
        if not is_newest_first([*before, *created]):
            log.warning("listing.disordered")
            return _sweep_instead(this, source, place, down_to)
        before = created[-1:]
        listed += sum(time >= down_to for time in created)
        is_last = page.next_uri is None or (bool(created) and created[-1] < down_to)
        if is_last:
            # Twilio's clock, not ours, tells until when the listing is complete.
            place.read_until, place.usual = max(place.read_until, place.listed_until), listed
            place.listed_until = place.next_page = None
        else:
            place.next_page = page.next_uri
        seen.update(observation.call_sid for observation in page.observations)
        this.merge(page, cursor=Cursor(this.job, place.as_json()))
        if is_last or this.stop.is_set():
            return is_last
        path = page.next_uri


def _sweep_instead(this: Run, source: Source, place: _Place, down_to: datetime) -> bool:
    """Read the days, whose end does not depend on the order of a listing."""
    place.next_page = place.listed_until = None
    place.plan = Plan(place.account_sid, [down_to, this.now()])
    return _sweep(this, source, place)


def _look_after_open(this: Run, source: Source, account_sid: str, seen: set[str], *, is_main: bool) -> None:
    """Find out which of the open calls ended, and how."""
    known = read_known(this, "open_calls", account_sid=account_sid, is_main=is_main, now=this.now())
    # Where seen, the listing's record was merged: if the call is still open, it lives.
    left = [call for call in known if call.call_sid not in seen]
    if len(left) > len(LIVING):
        living = _list_living(this, source, account_sid)
        if living is None:
            return
        left = [call for call in left if call.call_sid not in living]
    look_again(this, source, account_sid, left)


def _list_living(this: Run, source: Source, account_sid: str) -> set[str] | None:
    """The calls that Twilio says are alive, merged; None if they could not all be listed."""
    now = this.now()
    slices = [Slice(status.value, Listing(account_sid, status=status), now, now) for status in LIVING]
    living: set[str] = set()
    failed = []
    for item in fetch(source, slices, concurrency=source.pacer.ceiling, stop=this.stop):
        if isinstance(item, Failed):
            failed.append(item)
            continue
        living.update(observation.call_sid for observation in item.page.observations)
        this.merge(Page(item.page.observations, item.page.dead_letters, None, item.page.observed_at))
    this.totals.problem = describe(failed)
    return None if failed or this.stop.is_set() else living

"""The hot job: a call that the webhooks missed shows up, and a call that ended is final, within one interval.

Design rules
- New calls: the newest are listed back to the cursor less an overlap. Twilio lists newest first by date_created, which
  is observed and not promised; where it does not hold, or the cursor lies days back, the days are swept.
- Ended calls: of the open rows that were not just seen, Status listings tell which still live; those that left are
  looked at again. So requests grow with what changed, not with what is open.
- The cursor moves when all that lies behind it was read, or stands in the plan of a sweep beside it: a backlog of days,
  or a day that cannot be read, keeps nobody from seeing what is new.
- A run that was killed or stopped is gone on with: no page is read twice but the one in hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from reconciler.database.store import Store
from reconciler.database.transaction import Cursor
from reconciler.errors import TwilioAnswerError
from reconciler.logs import get_logger
from reconciler.model import Job
from reconciler.sync.cursors import check_cursor, parse_aware, readable
from reconciler.sync.fetch import Failed, fetch
from reconciler.sync.lookup import look_again, read_known
from reconciler.sync.plan import Plan
from reconciler.sync.run import Run, Terms, Totals, run
from reconciler.sync.slices import LIVING, Slice, dates_created, is_newest_first
from reconciler.sync.sweep import describe, work_through_plan
from reconciler.twilio.client import Session
from reconciler.twilio.listing import PAGE_SIZE, Listing

FIRST_LOOK: Final = timedelta(days=1)  # how far back a first run reads; before that is the backfill's
LISTED_AT_MOST: Final = timedelta(days=2)  # further back the days are swept, several at once
SMALLEST_PAGE: Final = 50
USUAL_GAP: Final = timedelta(minutes=30)  # after a longer one there is more to read than usual

log = get_logger(__name__)


@dataclass(slots=True)
class _Place:
    """The cursor: all calls created before `read_until` were read.

    With a `plan`, that of a sweep over a longer gap, all created before `ahead_until` were, but for those that it still
    holds. `listed_until` and `next_page` are those of a listing that was interrupted, and `usual` is how many calls the
    last listing took, or would have taken after no longer a gap than usual. At `looked_at` strays were asked about.
    """

    account_sid: str
    read_until: datetime
    usual: int = 0
    listed_until: datetime | None = None
    next_page: str | None = None
    plan: Plan | None = None
    ahead_until: datetime | None = None
    looked_at: datetime | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any], read_until: datetime) -> _Place:
        account_sid, listed_until, plan = value["account"], value.get("listed_until"), value.get("plan")
        next_page, ahead_until, looked_at = value.get("next_page"), value.get("ahead_until"), value.get("looked_at")
        return cls(
            account_sid,
            read_until,
            int(value.get("usual", 0)),
            None if listed_until is None else parse_aware(listed_until),
            None if next_page is None or listed_until is None else str(next_page),
            None if plan is None else Plan.from_json(account_sid, plan),
            None if plan is None or ahead_until is None else parse_aware(ahead_until),
            None if looked_at is None else parse_aware(looked_at),
        )

    @property
    def newest(self) -> datetime:
        """From where on calls are new."""
        return self.ahead_until or self.read_until

    def reach(self, until: datetime) -> None:
        """Note that all calls created before `until` were read, but for those of the plan."""
        until = max(self.newest, until)
        if self.plan is None:
            self.read_until, self.ahead_until = until, None
        else:
            self.ahead_until = until

    def as_json(self) -> dict[str, Any]:
        under_way: dict[str, Any] = {}
        if self.next_page is not None and self.listed_until is not None:
            under_way = {"listed_until": self.listed_until.isoformat(), "next_page": self.next_page}
        if self.plan is not None:
            under_way |= {"plan": self.plan.as_json(), "ahead_until": self.newest.isoformat()}
        if self.looked_at is not None:
            under_way["looked_at"] = self.looked_at.isoformat()
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
    is_alone: bool = True,
    store: Store,
    source: Session,
    terms: Terms,
    overlap: timedelta,
    since: datetime | None = None,
) -> Totals:
    """Read what is new and what ended, since the last run or since `since`.

    `is_main`: this account looks after open rows that name no account; if it `is_alone`, what it does not know is gone.

    Raises:
        ConfigError: the cursor is impossible; nothing was read.
        Refused: Twilio or the database does.
        Retriable: Twilio or the database stayed away; the cursor tells what is still to be read.
        JobHeld: another process runs this job.

    """
    totals = Totals()
    with run(job, totals, account_sid=account_sid, store=store, source=source, terms=terms) as this:
        place = _begin(this, account_sid, since)
        if place.newest < this.now() - LISTED_AT_MOST:
            _leave_to_sweep(place, place.newest - overlap, this.now())
        seen = _read_new(this, source, place, overlap)
        if place.plan is not None and not this.stop.is_set():
            _sweep(this, source, place)
        if not this.stop.is_set():
            _look_after_open(this, source, place, seen, is_main=is_main, is_alone=is_alone)
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
    with readable(this.job):
        return _Place.from_json(cursor, read_until)


def _read_new(this: Run, source: Session, place: _Place, overlap: timedelta) -> set[str]:
    """List every call created since the cursor, less the overlap; returns those seen."""
    seen: set[str] = set()
    if place.next_page is None or _list(this, source, place, overlap, seen):
        _list(this, source, place, overlap, seen)
    return seen


def _list(this: Run, source: Session, place: _Place, overlap: timedelta, seen: set[str]) -> bool:
    """List the newest calls back to the cursor less the overlap, or go on where that was left; True if all were."""
    down_to = place.newest - overlap
    is_usual = this.now() - place.newest <= USUAL_GAP
    listing = Listing(place.account_sid, page_size=_page_size(place.usual) if is_usual else PAGE_SIZE)
    before: list[datetime] = []
    path, begun_anew = place.next_page, False
    while True:
        try:
            page = source.page(listing, path)
        except TwilioAnswerError:
            if path is None or begun_anew:
                raise
            # A page token names a call, and may die with it: from the beginning.
            path = place.next_page = place.listed_until = None
            before, begun_anew = [], True
            continue
        if place.listed_until is None:
            # Of two clocks that differ, the one that is behind claims less.
            place.listed_until = min(page.observed_at, this.now())
            place.usual = 0
        created = dates_created(page)
        if not is_newest_first([*before, *created]):
            log.warning("listing.disordered")
            _leave_to_sweep(place, down_to, this.now())
            this.merge(page, cursor=Cursor(this.job, place.as_json()))
            return False
        before = created[-1:]
        usual_from = down_to if is_usual else place.listed_until - overlap
        place.usual += sum(time >= usual_from for time in created)
        is_last = page.next_uri is None or (bool(created) and created[-1] < down_to)
        if is_last:
            place.reach(place.listed_until)
            place.listed_until = place.next_page = None
        else:
            place.next_page = page.next_uri
        seen.update(observation.call_sid for observation in page.observations)
        this.merge(page, cursor=Cursor(this.job, place.as_json()))
        if is_last or this.stop.is_set():
            return is_last
        path = page.next_uri


def _page_size(usual: int) -> int:
    """Half as much again as a listing took lately, in fifties."""
    return min(PAGE_SIZE, max(SMALLEST_PAGE, -(-usual * 3 // 100) * 50))


def _leave_to_sweep(place: _Place, since: datetime, now: datetime) -> None:
    """Have the days swept, whose end depends neither on the order of a listing nor on its length."""
    if place.plan is None:
        place.plan = Plan.of(place.account_sid, since, now)
    else:
        place.plan.extend(now)
    place.reach(now)
    place.next_page = place.listed_until = None


def _sweep(this: Run, source: Session, place: _Place) -> None:
    """Work through the days of a longer gap."""
    plan = place.plan
    assert plan is not None
    failed = work_through_plan(this, plan, source=source, cursor=place.as_json)
    if failed:
        this.save_cursor(place.as_json())
    this.totals.problem = describe(failed)
    if not failed and not this.stop.is_set():
        place.plan = None
        place.reach(place.newest)
        this.save_cursor(place.as_json())


def _look_after_open(
    this: Run, source: Session, place: _Place, seen: set[str], *, is_main: bool, is_alone: bool
) -> None:
    """Find out which of the open calls ended, and how."""
    account_sid, now = place.account_sid, this.now()
    known = read_known(
        this, "open_calls", account_sid=account_sid, is_main=is_main, is_alone=is_alone, looked_at=place.looked_at,
        now=now,
    )  # fmt: skip
    # Where seen, the listing's record was merged: if the call is still open, it lives.
    left = [call for call in known if call.call_sid not in seen]
    if len(left) > len(LIVING):
        living = _list_living(this, source, account_sid)
        if living is None:
            return
        left = [call for call in left if call.call_sid not in living]
    look_again(this, source, account_sid, left)
    if any(call.is_stray for call in left) and this.totals.problem is None and not this.stop.is_set():
        place.looked_at = now
        this.save_cursor(place.as_json())


def _list_living(this: Run, source: Session, account_sid: str) -> set[str] | None:
    """The calls that Twilio says are alive, merged; None if they could not all be listed."""
    now = this.now()
    slices = [Slice(status.value, Listing(account_sid, status=status), now, now) for status in LIVING]
    living: set[str] = set()
    failed = []
    for item in fetch(source, slices, concurrency=source.concurrency, stop=this.stop):
        if isinstance(item, Failed):
            failed.append(item)
            continue
        living.update(observation.call_sid for observation in item.page.observations)
        this.merge(item.page)
    this.totals.problem = this.totals.problem or describe(failed)
    return None if failed or this.stop.is_set() else living

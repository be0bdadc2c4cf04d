"""The hot job: within one interval a call that the webhooks missed gets a row, and a call that ended becomes final.

Design rules
- New calls: hot lists the newest calls, back to the cursor less an overlap. Twilio lists newest first by date_created;
  this is observed, not promised. If a page is not in that order, or the cursor is days old, hot sweeps the days.
- Ended calls: Status listings show which open rows are still open at Twilio. hot asks about the others one by one. The
  number of requests therefore depends on the calls that changed, not on the calls that are open.
- Trunk calls: Twilio lists a call of a SIP trunk only after its end, among the calls of the time when it began
  (https://help.twilio.com/articles/223132267). For an account that has trunks, hot also lists the calls that ended
  since the last run. Listed calls and our rows show whether an account has trunks, so that costs no request.
- The cursor moves when every call behind it has been read or is in the plan of a sweep. Neither a backlog of days nor a
  day that cannot be read delays new calls.
- After a kill or a stop the next run resumes. Only the page that was under way is read twice.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import Final

from reconciler.database.calls import has_trunk_calls, open_calls
from reconciler.database.connection import Connection
from reconciler.database.decisions import Merged
from reconciler.logs import get_logger
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts
from reconciler.sync.cursors import HotCursor, unreadable
from reconciler.sync.fetch import Fetched
from reconciler.sync.lookup import look_again
from reconciler.sync.order import Order
from reconciler.sync.plan import Plan
from reconciler.sync.run import Run, run
from reconciler.sync.slices import OPEN, Slice, dates_created, slice_of_ended, slice_of_newest
from reconciler.sync.sweep import describe, read, read_in_order, read_plan
from reconciler.twilio.listing import Listing

FIRST_LOOK: Final = timedelta(days=1)  # how far back a first run reads; older calls are left to a backfill
LISTED_AT_MOST: Final = timedelta(days=2)  # days further back are swept, several at once
# A larger page costs no further request. A page of 200 calls shows a trunk call that began hours ago and that Twilio
# lists only after its end. hot therefore learns from the first trunk call that an account has trunks.
SMALLEST_PAGE: Final = 200
USUAL_GAP: Final = timedelta(minutes=30)  # after a longer gap there is more to read than usual

# If EndTime filters compare only days, the listing of ended calls holds all of today's. It is then read less often.
ENDED_BY_DAY_EVERY: Final = timedelta(minutes=15)
ENDED_FIRST_LOOK: Final = timedelta(hours=1)  # how far back the first such listing reads; cold has read older calls
TRUNKS_SOUGHT_IN: Final = timedelta(days=3)  # rows that show whether there are trunks: cold's usual window
TRUNKS_SOUGHT_AMONG: Final = 10_000  # rows

log = get_logger(__name__)


def hot(context: JobContext) -> Counts:
    """Read the calls that are new and those that ended, since the last run or since the option `since`.

    Raises:
        ConfigError: the cursor cannot be right; nothing was read.
        Refused: Twilio or the database refused.
        Retriable: Twilio or the database did not come back; the cursor holds what is still to be read.
        JobHeld: another process runs this job.

    """
    with run(context, Counts()) as this:
        place = _begin(this)
        if place.newest < this.now() - LISTED_AT_MOST:
            this.learn_twilios_clock()
            place.leave_to_sweep(place.newest - context.settings.overlap, this.now())
        seen = _read_new(this, place)
        if place.plan is not None and not this.stop.is_set():
            _sweep(this, place, place.plan)
        if not this.stop.is_set():
            _read_ended(this, place, seen)
        if not this.stop.is_set():
            _look_after_open(this, place, seen)
        this.counts.lag = this.now() - place.cursor.read_until
    return this.counts


class _Place:
    """hot's cursor during a run, and the plan of the sweep if one is under way."""

    def __init__(self, cursor: HotCursor, plan: Plan | None = None) -> None:
        self.cursor = cursor
        self.plan = plan
        self.shows_trunks = False  # whether this run has listed a trunk call
        if plan is None:
            cursor.plan = cursor.ahead_until = None
        if cursor.listed_until is None:
            cursor.next_page = None

    @property
    def newest(self) -> datetime:
        """The time from which on created calls are new."""
        return self.cursor.ahead_until or self.cursor.read_until

    def reach(self, until: datetime) -> None:
        """Record that all calls created before `until` have been read, except those in the plan."""
        until = max(self.newest, until)
        if self.plan is None:
            self.cursor.read_until, self.cursor.ahead_until = until, None
        else:
            self.cursor.ahead_until = until

    def leave_to_sweep(self, since: datetime, now: datetime) -> None:
        """Leave the days from `since` to a sweep, which depends neither on the order of a listing nor on its length."""
        if self.plan is None:
            self.plan = Plan.of(self.cursor.account, since, now)
            self.cursor.plan = self.plan.state
        else:
            self.plan.extend(now)
        self.reach(now)
        self.cursor.next_page = self.cursor.listed_until = None

    def end_sweep(self) -> None:
        """Record that the whole plan has been read."""
        self.plan = self.cursor.plan = None
        self.reach(self.newest)


def _begin(this: Run[Counts]) -> _Place:
    cursor = this.read_cursor_unless(this.context.options.since, HotCursor)
    if cursor is None:
        return _Place(HotCursor(account=this.account.sid, read_until=_begin_at(this)))
    try:
        return _Place(cursor, None if cursor.plan is None else Plan.resume(this.account.sid, cursor.plan))
    except ValueError:
        raise unreadable(this.job) from None


def _begin_at(this: Run[Counts]) -> datetime:
    """Return the moment at which a run without a cursor begins to read."""
    if (since := this.context.options.since) is not None:
        return since
    this.learn_twilios_clock()
    return this.now() - FIRST_LOOK


def _read_new(this: Run[Counts], place: _Place) -> set[str]:
    """List every call created since the cursor, less the overlap; return the SIDs of the listed calls."""
    seen: set[str] = set()
    if place.cursor.next_page is None or _list_newest(this, place, seen):
        _list_newest(this, place, seen)
    return seen


def _list_newest(this: Run[Counts], place: _Place, seen: set[str]) -> bool:
    """List the newest calls, or resume an interrupted listing; return whether all were listed."""
    overlap, cursor = this.context.settings.overlap, place.cursor
    down_to = place.newest - overlap
    is_usual = this.now() - place.newest <= USUAL_GAP
    page_size = _page_size(cursor.usual, this.session.page_size) if is_usual else this.session.page_size
    slice_ = slice_of_newest(cursor.account, down_to=down_to, page_size=page_size)
    is_done = False

    def move(item: Fetched) -> HotCursor:
        nonlocal is_done
        if item.is_first:
            cursor.listed_until, cursor.usual = min(item.page.observed_at, this.now()), 0
        if not item.in_order:
            log.warning("listing.disordered")
            place.leave_to_sweep(down_to, this.now())
            return cursor
        assert cursor.listed_until is not None
        usual_from = down_to if is_usual else cursor.listed_until - overlap
        cursor.usual += sum(time >= usual_from for time in dates_created(item.page))
        is_done = item.next_uri is None
        if is_done:
            place.reach(cursor.listed_until)
            cursor.listed_until = None
        cursor.next_page = item.next_uri
        seen.update(observation.call_sid for observation in item.page.observations)
        place.shows_trunks |= any((o.direction or "").startswith("trunking-") for o in item.page.observations)
        return cursor

    read_in_order(this, slice_, resume_at=cursor.next_page, cursor_after=move)
    return is_done


def _page_size(usual: int, largest: int) -> int:
    """Return a page size for one and a half times the usual number of calls, rounded up to fifties."""
    return min(largest, max(SMALLEST_PAGE, -(-usual * 3 // 100) * 50))


def _sweep(this: Run[Counts], place: _Place, plan: Plan) -> None:
    """Read the days of a longer gap, as the plan has them."""
    this.counts.slices = len(plan.left)
    failed = read_plan(this, plan, cursor=place.cursor)
    this.fail(describe(failed))
    if failed:
        this.keep_cursor(place.cursor)
    elif not this.stop.is_set():
        place.end_sweep()
        this.keep_cursor(place.cursor)


def _read_ended(this: Run[Counts], place: _Place, seen: set[str]) -> None:
    """If the account has trunks, list every call that ended since the last such listing, less the overlap."""
    cursor, now = place.cursor, this.now()
    ended_until = cursor.ended_until
    if ended_until is None:
        if not place.shows_trunks and not this.ask(partial(_has_trunks, account_sid=cursor.account, now=now)):
            return
        ended_until = now - ENDED_FIRST_LOOK
    elif cursor.ends_by_day and now - ended_until < ENDED_BY_DAY_EVERY:
        return
    slice_ = slice_of_ended(
        cursor.account, since=ended_until - this.context.settings.overlap, page_size=this.session.page_size
    )
    read_until = now

    def note(item: Fetched, _: Merged) -> None:
        nonlocal read_until
        read_until = min(read_until, item.page.observed_at)
        cursor.ends_by_day |= slice_.listing.shows_whole_days(item.page.observations)
        seen.update(observation.call_sid for observation in item.page.observations)

    failed = read(this, Order([slice_]), on_page=note)
    this.fail(describe(failed))
    if not failed and not this.stop.is_set():
        cursor.ended_until = max(ended_until, read_until)
        this.keep_cursor(cursor)


def _has_trunks(conn: Connection, *, account_sid: str, now: datetime) -> bool:
    return has_trunk_calls(conn, account_sid=account_sid, since=now - TRUNKS_SOUGHT_IN, limit=TRUNKS_SOUGHT_AMONG)


def _look_after_open(this: Run[Counts], place: _Place, seen: set[str]) -> None:
    """Find out which open calls ended, and merge their records."""
    account, now = this.account, this.now()
    known = this.ask(
        partial(
            open_calls,
            account_sid=account.sid,
            owns_unassigned=account.owns_unassigned,
            is_only_account=account.is_only,
            looked_at=place.cursor.looked_at,
            now=now,
        )
    )
    # The records of the calls in `seen` have just been merged: if such a row is still open, so is the call.
    left = [call for call in known if call.call_sid not in seen]
    if len(left) > len(OPEN):
        still_open = _list_open(this)
        if still_open is None:
            return
        left = [call for call in left if call.call_sid not in still_open]
    look_again(this, left)
    if any(call.account_unknown for call in left) and this.counts.problem is None and not this.stop.is_set():
        place.cursor.looked_at = now
        this.keep_cursor(place.cursor)


def _list_open(this: Run[Counts]) -> set[str] | None:
    """List and merge the calls that are open at Twilio; return their SIDs, or None if not all could be listed."""
    now = this.now()
    slices = [Slice(status.value, Listing(this.account.sid, status=status), now, now) for status in OPEN]
    still_open: set[str] = set()

    def note(item: Fetched, _: Merged) -> None:
        still_open.update(observation.call_sid for observation in item.page.observations)

    failed = read(this, Order(slices), on_page=note)
    this.fail(describe(failed))
    return None if failed or this.stop.is_set() else still_open

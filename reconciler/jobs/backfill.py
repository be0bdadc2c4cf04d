"""The backfill: a one-off sweep of a window that a person names (`reconcile --since 7d`).

Design rules
- Each page commits with the backfill's cursor, which has a row of its own in `sync_state`. A backfill never moves the
  daemon's cursors. After a kill the same command continues where the killed one stopped.
- A window keeps its begin when a backfill is resumed; the time that has passed since is added to its end.
- A run in which a slice failed is no success, in `sync_state` too.
- Several accounts are read one after another, each with a cursor of its own. One more row holds the accounts that are
  done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from typing import Any, Final, NamedTuple

from msgspec.structs import asdict

from reconciler.database.decisions import Decision, Merged
from reconciler.database.store import Store
from reconciler.database.transaction import Cursor
from reconciler.errors import ExitCode, ReconcilerError, Unavailable
from reconciler.jobs.accounts import for_each_account
from reconciler.logs import get_logger
from reconciler.model import JobName
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts, Outcome
from reconciler.sync.cursors import BackfillCursor, BatchCursor, encode, load, unreadable
from reconciler.sync.fetch import Failed, Fetched
from reconciler.sync.plan import Plan
from reconciler.sync.run import Run, run
from reconciler.sync.slices import MARGIN, OPEN
from reconciler.sync.sweep import describe, read_plan
from reconciler.twilio.listing import RETENTION

# A backfill with the same options that began longer ago than this is another backfill.
_STALE: Final = timedelta(days=1)

# The counts of pages, of their calls and recordings, and of requests.
READ: Final = (
    "pages", "seen", "inserted", "updated", "imported", "frozen", "drifted", "gone", "dead_letters", "requests",
    "retries", "recordings_seen", "recordings_told", "recordings_deleted",
)  # fmt: skip

_SEVERAL: Final = JobName("backfill")  # of several accounts

log = get_logger(__name__)


class Window(NamedTuple):
    """The window to read, and the options as the person wrote them: by these a killed backfill is recognized."""

    since: datetime
    until: datetime
    asked: dict[str, str | None]


@dataclass(slots=True)
class BackfillCounts(Counts):
    """The counts of a backfill, in calls and slices (UTC days and statuses).

    With several accounts these are the sums; `accounts` holds the counts of each account that was read, and `unread`
    the error of each account that was not.
    """

    pages: int = 0
    resumed: bool = False
    failed: list[Failed] = field(default_factory=list)
    accounts: dict[str, BackfillCounts] = field(default_factory=dict)
    unread: dict[str, ReconcilerError] = field(default_factory=dict)

    def add(self, other: BackfillCounts) -> None:
        """Add the counts of another account, of a slice, or of an earlier run. The outcome stays."""
        for name in (*READ, "slices", "slices_done", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.gaps.update(other.gaps)
        self.failed += other.failed
        self.lag = max(self.lag, other.lag)
        self.resumed |= other.resumed

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the command."""
        if self.outcome is Outcome.INTERRUPTED:
            return ExitCode.INTERRUPTED
        if self.accounts or self.unread:
            codes = [counts.exit_code for counts in self.accounts.values()]
            return max(codes + [error.exit_code for error in self.unread.values()])
        if self.failed:
            nothing_came = not self.pages and all(isinstance(f.error, Unavailable) for f in self.failed)
            is_refused = any(f.error.is_refusal for f in self.failed)
            return ExitCode.UNAVAILABLE if nothing_came else ExitCode.REFUSED if is_refused else ExitCode.TRY_AGAIN
        return self.usual_exit_code()

    def as_dict(self) -> dict[str, Any]:
        """Return the result for `--json`; its shape is a contract."""
        return {
            **self.counts(),
            "slices": self.slices,
            "slices_done": self.slices_done,
            "slices_failed": [{"slice": part, "error": str(f.error)} for f in self.failed for part in f.slice.parts],
            "resumed": self.resumed,
            "interrupted": self.outcome is Outcome.INTERRUPTED,
            **({"accounts": self._by_account()} if self.accounts or self.unread else {}),
        }

    def _by_account(self) -> dict[str, Any]:
        done = {account_sid: counts.as_dict() for account_sid, counts in self.accounts.items()}
        return done | {account_sid: {"error": str(error)} for account_sid, error in self.unread.items()}


class Watcher:
    """Callbacks during a backfill. Each method does nothing unless it is overridden."""

    def turned_to(self, account_sid: str, number: int, of: int) -> None:
        """Called before each account if there are several."""

    def planned(self, slices: int, remaining: int) -> None:
        """Called once for each account, before the first request."""

    def merged(self, counts: BackfillCounts, decisions: Sequence[Decision]) -> None:
        """Called after each page, with the counts so far and the decisions of this page."""

    def finished(self, counts: BackfillCounts) -> None:
        """Called at the end, unless the run failed as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillContext(JobContext):
    """The context of a backfill of one account's `window`. A dry run only finds out what would change."""

    window: Window
    watcher: Watcher = field(default_factory=Watcher)


def name_backfill(account_sid: str) -> JobName:
    """Return the name of an account's backfill."""
    return JobName("backfill", account_sid)


def backfill(context: BackfillContext) -> BackfillCounts:
    """Make the calls of the window equal to Twilio's, or in a dry run find out what would change.

    The function returns when every slice has been read or has failed, or when the run is stopped. Merged pages stay,
    and are not read again.

    Raises:
        ConfigError: the cursor of this backfill cannot be right; nothing was read.
        Refused: Twilio or the database refused.
        Retriable: the database did not come back.
        JobHeld: another process is running the backfill of this account.

    """
    watcher = context.watcher
    with run(context, BackfillCounts()) as this:
        counts, cursor = this.counts, _begin(this)
        plan = Plan(this.account.sid, cursor)
        left = len(plan.left)
        counts.slices, counts.slices_done = left + cursor.done, cursor.done
        log.info(
            "job.started", since=cursor.since.isoformat(), until=cursor.until.isoformat(), slices=left,
            resumed=counts.resumed,
        )  # fmt: skip
        watcher.planned(counts.slices, left)

        def tell(_: Fetched, merged: Merged) -> None:
            counts.pages += 1
            watcher.merged(counts, merged.decisions)

        preview = _Preview(this) if context.dry_run else None
        counts.failed = read_plan(this, plan, cursor=cursor, on_page=tell, preview=preview)
        this.fail(describe(counts.failed))
        counts.lag = max(timedelta(0), this.now() - cursor.until)
        if counts.slices_done >= counts.slices:
            this.finish()
        if not context.dry_run and not this.is_cut_short:
            cursor.finished = not counts.failed
            this.keep_cursor(cursor)
    return this.counts


class _Preview:
    """Finds out what a page would change. A call that was listed by Status before is left out: it would count twice."""

    def __init__(self, this: Run[BackfillCounts]) -> None:
        self._this = this
        self._open: set[str] = set()  # calls listed by Status; they are listed again in their day

    def __call__(self, item: Fetched) -> Merged:
        news = [o for o in item.page.observations if o.call_sid not in self._open]
        if item.slice.listing.status in OPEN:
            self._open.update(observation.call_sid for observation in news)
        return self._this.context.store.preview_page(
            news,
            recordings=item.page.recordings,
            origin=self._this.origin,
            now=self._this.now(),
            dead_letters=len(item.page.dead_letters),
        )


def _begin(this: Run[BackfillCounts]) -> BackfillCursor:
    """Return the cursor of the same backfill, extended to now, or a new one."""
    assert isinstance(this.context, BackfillContext)
    left = None if this.context.dry_run else this.read_cursor(BackfillCursor)
    cursor, this.counts.resumed = begin_or_go_on(this.job, left, this.account.sid, this.context.window, this.now())
    return cursor


def begin_or_go_on(
    job: JobName, left: BackfillCursor | None, account_sid: str, window: Window, now: datetime
) -> tuple[BackfillCursor, bool]:
    """Return `left` extended to now, if that is the same backfill, else a new cursor; and whether it goes on.

    Raises:
        ConfigError: the cursor cannot be right.

    """
    if left is not None and _goes_on(left, window, now):
        try:
            plan, read_to = Plan.resume(account_sid, left), left.until
            plan.extend(window.until)
            if left.until > read_to:
                plan.add_recordings(read_to - MARGIN, window.until)
        except ValueError:
            raise unreadable(job) from None
        return left, True
    plan = Plan.of(account_sid, window.since, window.until)
    plan.add_recordings(window.since, window.until)
    return BackfillCursor(**asdict(plan.state), asked=window.asked, begun_at=now, finished=False), False


def _goes_on(cursor: BackfillCursor, window: Window, now: datetime) -> bool:
    """Whether the cursor belongs to the same backfill, begun less than a day ago and not finished."""
    if cursor.finished or cursor.asked != window.asked or not -_STALE < now - cursor.begun_at <= _STALE:
        return False
    # The plan's end was rounded up to a second.
    return cursor.until - window.until <= timedelta(seconds=1)


def backfill_accounts(
    accounts: Sequence[str],
    window: Window,
    work: Callable[[str, Window], BackfillCounts],
    *,
    store: Store | None,
    watcher: Watcher,
    stop: threading.Event,
    has_worked: Callable[[], bool],
) -> BackfillCounts:
    """Read the same window of one account after another, and return the sums. See `for_each_account`.

    - With a `store`, an account that the killed command had finished is read only from that time on.
    - If Twilio is away, the function returns early.

    Raises:
        Refused: Twilio refused the credentials, or the database refused its own.
        Retriable: the database did not come back.

    """
    batch = _Batch(store, window)
    done: dict[str, BackfillCounts] = {}
    unread: dict[str, ReconcilerError] = {}
    numbers = count(1)

    def read_one(account_sid: str) -> BackfillCounts:
        watcher.turned_to(account_sid, next(numbers), len(accounts))
        return work(account_sid, batch.left_of(account_sid))

    for account_sid, result in for_each_account(accounts, read_one, has_worked=has_worked):
        if isinstance(result, ReconcilerError):
            unread[account_sid] = result
            continue
        done[account_sid] = result
        if stop.is_set() or result.exit_code is ExitCode.UNAVAILABLE:
            return _sum_up(done, unread, interrupted=stop.is_set())
        if not result.failed:
            batch.note(account_sid)
    batch.end()
    return _sum_up(done, unread, interrupted=False)


class _Batch:
    """The accounts that a backfill of several has read; kept in the database if there is a `store`."""

    def __init__(self, store: Store | None, window: Window) -> None:
        self._store = store
        self._window = window
        self._cursor = BatchCursor(asked=window.asked, begun_at=window.until, done={})
        if store is not None:
            self._cursor = _read_batch(store, window) or self._cursor

    def left_of(self, account_sid: str) -> Window:
        """Return what is left to read of an account: all, or the time since the killed command had read it."""
        since = self._cursor.done.get(account_sid, self._window.since)
        return self._window._replace(since=max(self._window.since, since))

    def note(self, account_sid: str) -> None:
        """Note that an account was read."""
        if self._store is not None:
            self._cursor.done[account_sid] = self._window.until
            self._store.commit_cursor(Cursor(_SEVERAL, encode(self._cursor)), now=self._window.until)

    def end(self) -> None:
        """Forget the batch: the same command begins anew."""
        if self._store is not None:
            self._store.commit_cursor(Cursor(_SEVERAL, "{}"), now=self._window.until)


def _read_batch(store: Store, window: Window) -> BatchCursor | None:
    """Return the cursor of a batch with the same options that began less than a day ago; None if there is none."""
    batch = load(_SEVERAL, store.read_cursor(_SEVERAL), BatchCursor, now=window.until)
    is_same = batch is not None and batch.asked == window.asked and window.until - batch.begun_at <= _STALE
    return batch if is_same else None


def _sum_up(
    accounts: Mapping[str, BackfillCounts], unread: Mapping[str, ReconcilerError], *, interrupted: bool
) -> BackfillCounts:
    """Return the sums of a backfill of several accounts."""
    total = BackfillCounts(accounts=dict(accounts), unread=dict(unread))
    total.outcome = Outcome.INTERRUPTED if interrupted else Outcome.SUCCEEDED
    for one in accounts.values():
        total.add(one)
    return total


def clamp(since: datetime, *, now: datetime) -> datetime:
    """Return `since`, or the begin of Twilio's retention if that is later, with a warning."""
    oldest = now - RETENTION
    if since >= oldest:
        return since
    log.warning("window.clamped", since=since.isoformat(), retention_days=RETENTION.days)
    return oldest

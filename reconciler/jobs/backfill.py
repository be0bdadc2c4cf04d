"""The one-off sweep of a window that a person names: `reconcile --since 7d`.

Design rules
- Each page commits with the cursor that speaks of it, in a row of `sync_state` of its own: the daemon's cursors are
  never moved, and the same command goes on where a killed one stopped.
- A window that was begun is finished as it was begun; what has passed since is added to its end.
- A run in which any slice failed is not a success, and says so in `sync_state`.
- Several accounts are worked through one after another, each with a place of its own; which of them are done stands in
  a row beside theirs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from reconciler.database.store import Store
from reconciler.database.transaction import Cursor, Decision, Merged
from reconciler.errors import CredentialsDoubted, ExitCode, JobHeld, ReconcilerError, Refused, Unavailable
from reconciler.logs import get_logger
from reconciler.model import Job
from reconciler.sync.fetch import Failed, Fetched
from reconciler.sync.plan import Plan
from reconciler.sync.run import Terms, Totals, run, usual_exit_code
from reconciler.sync.slices import LIVING
from reconciler.sync.sweep import describe, work_through_plan
from reconciler.twilio.client import Session
from reconciler.twilio.listing import RETENTION

# A backfill begun longer ago than this with the same words is another backfill.
_STALE: Final = timedelta(days=1)

_SUMS: Final = (
    "seen", "inserted", "updated", "frozen", "drifted", "gone", "dead_letters", "requests", "retries", "seconds",
    "pages", "slices", "slices_done",
)  # fmt: skip

log = get_logger(__name__)


class Window(NamedTuple):
    """What to read, and the words it was asked for with, by which a killed backfill is known again."""

    account_sid: str
    since: datetime
    until: datetime
    asked: dict[str, str | None]


@dataclass(slots=True)
class Summary(Totals):
    """What a backfill did, in calls and slices (UTC days, and statuses); of several accounts the sums, and each one's.

    `unread` are the accounts that were not read.
    """

    pages: int = 0
    slices: int = 0
    slices_done: int = 0
    resumed: bool = False
    failed: list[Failed] = field(default_factory=list)
    accounts: dict[str, Summary] = field(default_factory=dict)
    unread: dict[str, ReconcilerError] = field(default_factory=dict)

    @property
    def exit_code(self) -> ExitCode:
        """How the run ended, for a shell."""
        if self.interrupted:
            return ExitCode.INTERRUPTED
        if self.accounts or self.unread:
            codes = [summary.exit_code for summary in self.accounts.values()]
            return max(codes + [error.exit_code for error in self.unread.values()])
        if self.failed:
            nothing_came = not self.pages and all(isinstance(f.error, Unavailable) for f in self.failed)
            is_refused = any(f.error.exit_code is ExitCode.REFUSED for f in self.failed)
            return ExitCode.UNAVAILABLE if nothing_came else ExitCode.REFUSED if is_refused else ExitCode.TRY_AGAIN
        return usual_exit_code(self)

    def as_dict(self) -> dict[str, Any]:
        """The shape of `--json`; a contract."""
        return {
            **self.counts(),
            "slices": self.slices,
            "slices_done": self.slices_done,
            "slices_failed": [{"slice": part, "error": str(f.error)} for f in self.failed for part in f.slice.parts],
            "resumed": self.resumed,
            "interrupted": self.interrupted,
            **({"accounts": self._by_account()} if self.accounts or self.unread else {}),
        }

    def _by_account(self) -> dict[str, Any]:
        done = {account_sid: summary.as_dict() for account_sid, summary in self.accounts.items()}
        return done | {account_sid: {"error": str(error)} for account_sid, error in self.unread.items()}


class Watcher:
    """Who is told while a backfill runs; each method does nothing until a subclass has a use for it."""

    def turned_to(self, account_sid: str, number: int, of: int) -> None:
        """Told before each account, where there are several."""

    def planned(self, slices: int, remaining: int) -> None:
        """Told once for each account, before the first request."""

    def merged(self, summary: Summary, decisions: Sequence[Decision]) -> None:
        """Told after each page, with the sums so far and what this page decided."""

    def finished(self, summary: Summary) -> None:
        """Told at the end, unless the run failed as a whole."""


BATCH: Final = Job("backfill")  # of several accounts


class Batch(NamedTuple):
    """A backfill of several accounts: its words, when it began, and until when which account has been read."""

    asked: Mapping[str, str | None]
    begun_at: datetime
    done: dict[str, datetime]


def read_batch(store: Store, asked: Mapping[str, str | None], *, now: datetime) -> Batch:
    """The batch of the same words that was left less than a day after it began, or a new one."""
    cursor = store.read_cursor(BATCH)
    if cursor and cursor["asked"] == asked:
        begun_at = datetime.fromisoformat(cursor["begun_at"])
        if now - begun_at <= _STALE:
            return Batch(asked, begun_at, {sid: datetime.fromisoformat(at) for sid, at in cursor["done"].items()})
    return Batch(asked, now, {})


def keep_batch(store: Store, batch: Batch | None, *, now: datetime) -> None:
    """Keep how far a batch has come; None: it is over, and the next one begins anew."""
    value = {}
    if batch is not None:
        done = {sid: until.isoformat() for sid, until in batch.done.items()}
        value = {"asked": batch.asked, "begun_at": batch.begun_at.isoformat(), "done": done}
    store.save_cursor(Cursor(BATCH, value), now=now)


def in_turn(
    accounts: Sequence[str],
    window: Window,
    read: Callable[[Window], Summary],
    *,
    store: Store | None,
    watcher: Watcher,
    stop: threading.Event,
    is_believed: Callable[[], bool],
) -> Summary:
    """Read the same window of one account after another, and sum up; an account that is refused keeps no other from it.

    With a `store`, an account that was done before the same command was killed is only read from there on. Ends early
    when Twilio is away. `is_believed`: whether Twilio accepted the credentials once; until then a refusal ends it all.

    Raises:
        Refused: Twilio does not know the credentials, or the database refuses its own.
        Retriable: the database stayed away.

    """
    batch = None if store is None else read_batch(store, window.asked, now=window.until)
    done: dict[str, Summary] = {}
    unread: dict[str, ReconcilerError] = {}
    for number, account_sid in enumerate(accounts, start=1):
        watcher.turned_to(account_sid, number, len(accounts))
        since = window.since if batch is None else batch.done.get(account_sid, window.since)
        try:
            summary = read(window._replace(account_sid=account_sid, since=max(window.since, since)))
        except (Refused, CredentialsDoubted, JobHeld) as exc:
            if not is_believed() and not isinstance(exc, JobHeld):
                raise
            unread[account_sid] = exc
            continue
        done[account_sid] = summary
        if stop.is_set() or summary.exit_code is ExitCode.UNAVAILABLE:
            return sum_up(done, unread, interrupted=stop.is_set())
        if batch is not None and store is not None and not summary.failed:
            batch.done[account_sid] = window.until
            keep_batch(store, batch, now=window.until)
    if store is not None:
        keep_batch(store, None, now=window.until)
    return sum_up(done, unread, interrupted=False)


def sum_up(accounts: Mapping[str, Summary], unread: Mapping[str, ReconcilerError], *, interrupted: bool) -> Summary:
    """What a backfill of several accounts did in all."""
    total = Summary(accounts=dict(accounts), unread=dict(unread), interrupted=interrupted)
    for one in accounts.values():
        for name in _SUMS:
            setattr(total, name, getattr(total, name) + getattr(one, name))
        total.gaps.update(one.gaps)
        total.failed += one.failed
        total.lag = max(total.lag, one.lag)
        total.resumed |= one.resumed
    return total


def job_name(account_sid: str) -> Job:
    """The name of an account's backfill in `sync_state`, and of its lock."""
    return Job(f"backfill:{account_sid}")


def clamp(since: datetime, *, now: datetime) -> datetime:
    """`since`, or the oldest moment Twilio still keeps, with a warning."""
    oldest = now - RETENTION
    if since >= oldest:
        return since
    log.warning("window.clamped", since=since.isoformat(), retention_days=RETENTION.days)
    return oldest


def backfill(
    window: Window,
    *,
    source: Session,
    store: Store,
    watcher: Watcher,
    terms: Terms,
    dry_run: bool = False,
) -> Summary:
    """Make the calls of `window` equal to Twilio's, or with `dry_run` find out what would change.

    Returns when all slices were read, or failed, or the run was stopped; what was merged until then stays and is not
    read again. Reports to the log under one run_id.

    Raises:
        Refused: Twilio or the database does.
        Retriable: the database stayed away.
        JobHeld: another process is at the backfill of this account.

    """
    job = job_name(window.account_sid)
    summary = Summary()
    with run(
        job, summary, account_sid=window.account_sid, store=store, source=source, terms=terms, dry_run=dry_run
    ) as this:
        begun_at, plan = this.now(), Plan.of(window.account_sid, window.since, window.until)
        if not dry_run and (left_over := _taken_up(window, this.read_cursor(), now=begun_at)) is not None:
            (begun_at, plan), summary.resumed = left_over, True
        left = len(plan.left)
        summary.slices = left + plan.done
        summary.slices_done = plan.done
        log.info(
            "job.started", since=plan.since.isoformat(), until=plan.until.isoformat(), slices=left,
            resumed=summary.resumed,
        )  # fmt: skip
        watcher.planned(summary.slices, left)

        def place() -> dict[str, Any]:
            return {"asked": window.asked, "begun_at": begun_at.isoformat(), "finished": False, **plan.as_json()}

        living: set[str] = set()

        def preview(item: Fetched) -> Merged:
            # Nothing is written, so what is listed among the living and in its day would be told twice.
            news = [o for o in item.page.observations if o.call_sid not in living]
            if item.slice.listing.status in LIVING:
                living.update(o.call_sid for o in news)
            merged = store.preview(news, origin=this.origin, now=this.now())
            merged.dead_letters = len(item.page.dead_letters)
            return merged

        def tell(_: Fetched, merged: Merged) -> None:
            summary.pages += 1
            summary.slices_done = plan.done
            watcher.merged(summary, merged.decisions)

        summary.failed = work_through_plan(
            this, plan, source=source, cursor=place, on_page=tell, merge=preview if dry_run else None
        )
        summary.problem = describe(summary.failed)
        summary.interrupted = this.stop.is_set() and summary.slices_done < summary.slices
        summary.lag = max(timedelta(0), this.now() - plan.until)
        if not dry_run and not summary.interrupted:
            this.save_cursor({**place(), "finished": not summary.failed})
    return summary


def _taken_up(window: Window, cursor: dict[str, Any] | None, *, now: datetime) -> tuple[datetime, Plan] | None:
    """When an unfinished run of the same words was begun, and its plan, extended to now; None if there is none."""
    if not cursor or cursor.get("finished") or cursor.get("asked") != window.asked:
        return None
    try:
        begun_at = datetime.fromisoformat(cursor["begun_at"])
        plan = Plan.from_json(window.account_sid, cursor)
        is_stale = not -_STALE < now - begun_at <= _STALE
    except (KeyError, TypeError, ValueError):
        return None  # it cannot be read: begun anew, it costs requests, and loses nothing
    # The plan's end was rounded up to a second.
    if is_stale or plan.until - window.until > timedelta(seconds=1):
        return None
    plan.extend(window.until)
    return begun_at, plan

"""The one-off sweep of a window that a person names: `reconcile --since 7d`.

Design rules
- Each page commits with the cursor that speaks of it, in a row of `sync_state` of its own: the daemon's cursors are
  never moved, and the same command goes on where a killed one stopped.
- A window that was begun is finished as it was begun; what has passed since is added to its end.
- A run in which any slice failed is not a success, and says so in `sync_state`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol

from reconciler.errors import ExitCode, Unavailable
from reconciler.logs import get_logger
from reconciler.runs import Run, Totals, run
from reconciler.source import RETENTION, Source
from reconciler.store import Cursor, Decision, Merged, Store
from reconciler.sweep import Failed, Fetched, Slice, fetch, slices_of

# A backfill begun longer ago than this with the same words is another backfill.
_STALE: Final = timedelta(days=1)

log = get_logger(__name__)


class Window(NamedTuple):
    """What to read, and the words it was asked for with, by which a killed backfill is known again."""

    account_sid: str
    since: datetime
    until: datetime
    asked: dict[str, str | None]


@dataclass(slots=True)
class Summary(Totals):
    """What a backfill did: calls, and slices."""

    pages: int = 0
    slices: int = 0
    slices_done: int = 0
    resumed: bool = False
    interrupted: bool = False
    failed: list[Failed] = field(default_factory=list)

    @property
    def exit_code(self) -> ExitCode:
        """How the run ended, for a shell."""
        if self.interrupted:
            return ExitCode.INTERRUPTED
        if self.failed:
            nothing_came = not self.pages and all(isinstance(f.error, Unavailable) for f in self.failed)
            is_refused = any(f.error.exit_code is ExitCode.REFUSED for f in self.failed)
            return ExitCode.UNAVAILABLE if nothing_came else ExitCode.REFUSED if is_refused else ExitCode.TRY_AGAIN
        return ExitCode.UNRECONCILED if self.drifted or self.dead_letters else ExitCode.DONE

    def as_dict(self) -> dict[str, Any]:
        """The shape of `--json`; a contract."""
        return {
            **self.counts(),
            "slices": self.slices,
            "slices_done": self.slices_done,
            "slices_failed": [{"slice": f.slice.name, "error": str(f.error)} for f in self.failed],
            "resumed": self.resumed,
            "interrupted": self.interrupted,
        }


class Watcher(Protocol):
    """Who is told while a backfill runs."""

    def planned(self, slices: int, remaining: int) -> None:
        """Told once, before the first request."""

    def merged(self, summary: Summary, decisions: Sequence[Decision]) -> None:
        """Told after each page, with the sums so far and what this page decided."""

    def finished(self, summary: Summary) -> None:
        """Told at the end, unless the run failed as a whole."""


def job_name(account_sid: str) -> str:
    """The name of an account's backfill in `sync_state`, and of its lock."""
    return f"backfill:{account_sid}"


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
    source: Source,
    store: Store,
    watcher: Watcher,
    concurrency: int,
    stop: threading.Event,
    dry_run: bool = False,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Summary:
    """Make the calls of `window` equal to Twilio's, or with `dry_run` find out what would change.

    Returns when all slices were read, or failed, or `stop` was set; what was merged until then stays and is not read
    again. Reports to the log under one run_id.

    Raises:
        Refused: Twilio or the database does.
        Retriable: the database stayed away.

    """
    job = job_name(window.account_sid)
    plan = _Plan.begun_anew(window) if dry_run else _Plan.taken_up(window, store.read_cursor(job))
    todo = plan.todo()
    summary = Summary(slices=len(plan.slices), slices_done=len(plan.done), resumed=plan.resumed)
    with run(
        job,
        kind="backfill",
        account_sid=window.account_sid,
        store=store,
        source=source,
        totals=summary,
        stop=stop,
        clock=clock,
    ) as this:
        log.info(
            "job.started", since=plan.bounds[0].isoformat(), until=plan.bounds[-1].isoformat(),
            slices=len(todo), resumed=plan.resumed,
        )  # fmt: skip
        watcher.planned(len(plan.slices), len(todo))
        for item in fetch(source, todo, resume_at=plan.open, concurrency=concurrency, stop=stop):
            if isinstance(item, Failed):
                summary.failed.append(item)
                continue
            plan.move(item)
            merged = _preview(this, item) if dry_run else _merge(this, item, plan)
            summary.add(merged, seen=item.slice.count(item.page))
            summary.pages += 1
            summary.slices_done += item.next_uri is None
            this.report(merged, item.page.dead_letters, is_bulk=True)
            watcher.merged(summary, merged.decisions)
        summary.interrupted = stop.is_set() and summary.slices_done < summary.slices
        summary.lag = clock() - plan.bounds[-1]
        if not dry_run:
            _conclude(this, plan, summary)
    return summary


def _merge(this: Run, item: Fetched, plan: _Plan) -> Merged:
    return this.persist(
        lambda: this.store.merge(
            item.page.observations,
            origin=this.origin,
            now=this.clock(),
            cursor=Cursor(this.job, plan.as_json()),
            dead_letters=item.page.dead_letters,
        )
    )


def _preview(this: Run, item: Fetched) -> Merged:
    merged = this.store.preview(item.page.observations, origin=this.origin, now=this.clock())
    merged.dead_letters = len(item.page.dead_letters)
    return merged


@dataclass(slots=True)
class _Plan:
    """The slices of a backfill and how far each has come; what the cursor holds."""

    account_sid: str
    asked: dict[str, str | None]
    bounds: list[datetime]  # the window's start, the end it was begun with, and each end it was extended to
    done: list[str]
    open: dict[str, str]
    resumed: bool = False

    @classmethod
    def begun_anew(cls, window: Window) -> _Plan:
        return cls(window.account_sid, window.asked, [window.since, window.until], [], {})

    @classmethod
    def taken_up(cls, window: Window, cursor: dict[str, Any] | None) -> _Plan:
        """The plan that an unfinished run of the same words left, extended to now; or a new one."""
        plan = cls.begun_anew(window)
        if not cursor or cursor.get("finished") or cursor.get("asked") != window.asked:
            return plan
        bounds = [datetime.fromisoformat(bound) for bound in cursor["bounds"]]
        if window.since - bounds[0] > _STALE or window.until < bounds[-1]:
            return plan
        if window.until > bounds[-1]:
            bounds.append(window.until)
        return cls(window.account_sid, window.asked, bounds, cursor["done"], cursor["open"], resumed=True)

    @property
    def slices(self) -> list[Slice]:
        return [
            slice_
            for since, until in zip(self.bounds, self.bounds[1:], strict=False)
            for slice_ in slices_of(self.account_sid, since, until)
        ]

    def todo(self) -> list[Slice]:
        done = set(self.done)
        return [slice_ for slice_ in self.slices if slice_.name not in done]

    def move(self, item: Fetched) -> None:
        """Note that `item` is about to be merged."""
        if item.next_uri is None:
            self.open.pop(item.slice.name, None)
            self.done.append(item.slice.name)
        else:
            self.open[item.slice.name] = item.next_uri

    def as_json(self, *, finished: bool = False) -> dict[str, Any]:
        return {
            "asked": self.asked,
            "bounds": [bound.isoformat() for bound in self.bounds],
            "done": [] if finished else self.done,
            "open": self.open,
            "finished": finished,
        }


def _conclude(this: Run, plan: _Plan, summary: Summary) -> None:
    now = this.clock()
    if summary.failed:
        reasons = "; ".join(sorted({str(failure.error) for failure in summary.failed}))
        this.store.record_failure(this.job, error=f"{len(summary.failed)} slices were not read: {reasons}", now=now)
    elif not summary.interrupted:
        this.store.save_cursor(Cursor(this.job, plan.as_json(finished=True)), now=now)
        this.store.record_success(this.job, now=now)

"""The one-off sweep of a window that a person names: `reconcile --since 7d`.

Design rules
- Each page commits with the cursor that speaks of it, in a row of `sync_state` of its own: the daemon's cursors are
  never moved, and the same command goes on where a killed one stopped.
- A window that was begun is finished as it was begun; what has passed since is added to its end.
- A run in which any slice failed is not a success, and says so in `sync_state`.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol

from structlog.contextvars import bound_contextvars

from reconciler.errors import ExitCode, Retriable, Unavailable
from reconciler.logs import get_logger
from reconciler.model import Gap
from reconciler.pacing import retrying
from reconciler.source import RETENTION, Source
from reconciler.store import Cursor, Decision, Merged, Origin, Store
from reconciler.sweep import Failed, Fetched, Slice, fetch, slices_of

EVENT_SOURCE: Final = "reconcile_backfill"

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
class Summary:
    """What a backfill did, in calls."""

    seen: int = 0
    inserted: int = 0
    updated: int = 0
    frozen: int = 0
    drifted: int = 0
    dead_letters: int = 0
    gaps: Counter[Gap] = field(default_factory=Counter)
    requests: int = 0
    retries: int = 0
    seconds: float = 0.0
    pages: int = 0
    slices: int = 0
    slices_done: int = 0
    resumed: bool = False
    interrupted: bool = False
    failed: list[Failed] = field(default_factory=list)

    def add(self, item: Fetched, merged: Merged) -> None:
        """Count one page, and its slice if the page was the last one."""
        self.pages += 1
        self.slices_done += item.next_uri is None
        self.seen += item.slice.count(item.page)
        self.inserted += merged.inserted
        self.updated += merged.updated
        self.frozen += merged.frozen
        self.drifted += merged.drifted
        self.dead_letters += merged.dead_letters
        self.gaps.update(merged.gaps)

    @property
    def unchanged(self) -> int:
        """Calls that were as Twilio says already."""
        return max(0, self.seen - self.inserted - self.updated)

    @property
    def exit_code(self) -> ExitCode:
        """How the run ended, for a shell."""
        if self.interrupted:
            return ExitCode.INTERRUPTED
        if self.failed:
            nothing_came = not self.pages and all(isinstance(f.error, Unavailable) for f in self.failed)
            refused = [f.error.exit_code for f in self.failed if f.error.exit_code is ExitCode.REFUSED]
            return ExitCode.UNAVAILABLE if nothing_came else refused[0] if refused else ExitCode.TRY_AGAIN
        return ExitCode.UNRECONCILED if self.drifted or self.dead_letters else ExitCode.DONE

    def counts(self) -> dict[str, Any]:
        """The counts of `job.finished`, zeros included."""
        return {
            "calls_seen": self.seen,
            "inserted": self.inserted,
            "updated": self.updated,
            "unchanged": self.unchanged,
            **{f"gaps_{gap.value}": self.gaps[gap] for gap in Gap},
            "frozen": self.frozen,
            "drifted": self.drifted,
            "dead_letters": self.dead_letters,
            "requests": self.requests,
            "retries": self.retries,
            "duration_seconds": round(self.seconds, 3),
        }

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
    run_id = str(uuid.uuid4())
    with bound_contextvars(job="backfill", account=window.account_sid, run_id=run_id):
        started = time.monotonic()
        plan = _Plan.begun_anew(window) if dry_run else _Plan.taken_up(window, store.read_cursor(job))
        todo = plan.todo()
        summary = Summary(slices=len(plan.slices), slices_done=len(plan.done), resumed=plan.resumed)
        log.info(
            "job.started", since=plan.bounds[0].isoformat(), until=plan.bounds[-1].isoformat(),
            slices=len(todo), resumed=plan.resumed,
        )  # fmt: skip
        watcher.planned(len(plan.slices), len(todo))
        origin = Origin(EVENT_SOURCE, run_id)
        persist = retrying(stop, before_sleep=_announce)
        try:
            for item in fetch(source, todo, resume_at=plan.open, concurrency=concurrency, stop=stop):
                if isinstance(item, Failed):
                    summary.failed.append(item)
                    continue
                plan.move(item)
                if dry_run:
                    merged = store.preview(item.page.observations, origin=origin, now=clock())
                else:
                    merged = persist.copy()(
                        store.merge,
                        item.page.observations,
                        origin=origin,
                        now=clock(),
                        cursor=Cursor(job, plan.as_json()),
                        dead_letters=item.page.dead_letters,
                    )
                summary.add(item, merged)
                _report(item, merged)
                watcher.merged(summary, merged.decisions)
        except BrokenPipeError:
            raise  # whoever read the differences has seen enough
        except Exception as exc:
            log.error("job.failed", error=str(exc), kind=type(exc).__name__, will_retry_at=None)
            raise
        finally:
            summary.requests, summary.retries = source.requests, source.retries
            summary.seconds = time.monotonic() - started
        summary.interrupted = stop.is_set() and summary.slices_done < summary.slices
        if not dry_run:
            _conclude(store, job, plan, summary, now=clock())
        log.info("job.finished", lag_seconds=round((clock() - plan.bounds[-1]).total_seconds(), 3), **summary.counts())
        return summary


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


def _conclude(store: Store, job: str, plan: _Plan, summary: Summary, *, now: datetime) -> None:
    if summary.failed:
        reasons = "; ".join(sorted({str(failure.error) for failure in summary.failed}))
        store.record_failure(job, error=f"{len(summary.failed)} slices were not read: {reasons}", now=now)
    elif not summary.interrupted:
        store.save_cursor(Cursor(job, plan.as_json(finished=True)), now=now)
        store.record_success(job, now=now)


def _report(item: Fetched, merged: Merged) -> None:
    for letter in item.page.dead_letters:
        log.warning("record.dead_lettered", call_sid=letter.call_sid, reason=letter.reason)
    for decision in merged.decisions:
        if decision.action == "drift" and decision.is_news:
            log.warning("call.frozen_drift", call_sid=decision.call_sid, fields=sorted(decision.theirs or ()))
        elif decision.gap is not None:
            # One line a gap is for a job that finds a few; a backfill finds all of them and sums them up.
            log.debug(
                "gap.filled", call_sid=decision.call_sid, kind=decision.gap.value, from_status=decision.from_status,
                to_status=decision.to_status, late_seconds=decision.late_seconds,
            )  # fmt: skip


def _announce(error: Retriable, attempt: int, wait: float) -> None:
    log.warning("database.retried", error=str(error), attempt=attempt, wait_seconds=round(wait, 3))

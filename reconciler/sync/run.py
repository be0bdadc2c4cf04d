"""One execution of a job: its lock, its run_id, its counts, its log lines, its outcome in `sync_state`."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString, TypeVar

from structlog.contextvars import bound_contextvars

from reconciler import metrics
from reconciler.database.store import Store
from reconciler.database.transaction import Cursor, Merged, Origin
from reconciler.errors import CredentialsDoubted, ExitCode, JobHeld, ReconcilerError, Refused, Retriable
from reconciler.logs import get_logger
from reconciler.masking import mask, redact
from reconciler.model import FINAL, DeadLetter, Gap, Job, Page
from reconciler.retry import retrying
from reconciler.twilio.client import Session
from reconciler.twilio.records import bury_observation

log = get_logger(__name__)

T = TypeVar("T")

# The database is ours, and asking it costs nothing: who waits for it goes on soon after it is back.
_DATABASE_TRIED_EVERY: Final = 5.0  # seconds
_DATABASE_TRIES: Final = 60  # more than fit into the patience of `pacing`

_shown: Final = set[tuple[str, str]]()  # kinds of jobs and accounts whose counts monitoring can see


@dataclass(slots=True)
class Totals:
    """What a run did, in calls; `problem` is why it did not finish its work, if it went on to its end all the same."""

    seen: int = 0
    inserted: int = 0
    updated: int = 0
    frozen: int = 0
    drifted: int = 0
    gone: int = 0
    dead_letters: int = 0
    gaps: Counter[Gap] = field(default_factory=Counter)
    requests: int = 0
    retries: int = 0
    lag: timedelta = timedelta(0)  # between the end of what was read and now
    seconds: float = 0.0
    problem: str | None = None
    interrupted: bool = False

    def add(self, merged: Merged, *, seen: int | None = None) -> None:
        """Count a page; `seen` if not all of its calls are this one's to count."""
        self.seen += merged.seen if seen is None else seen
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
        return usual_exit_code(self)

    @property
    def outcome(self) -> str:
        """How the run ended, for monitoring."""
        return "interrupted" if self.interrupted else "succeeded" if self.problem is None else "failed"

    def counts(self) -> dict[str, Any]:
        """The counts of `job.finished`, zeros included."""
        return {
            "calls_seen": self.seen,
            "requests": self.requests,
            "retries": self.retries,
            "inserted": self.inserted,
            "updated": self.updated,
            "unchanged": self.unchanged,
            **{f"gaps_{gap.value}": self.gaps[gap] for gap in Gap},
            "frozen": self.frozen,
            "drifted": self.drifted,
            "gone": self.gone,
            "dead_letters": self.dead_letters,
            "lag_seconds": round(self.lag.total_seconds(), 3),
            "duration_seconds": round(self.seconds, 3),
        }

    def as_dict(self) -> dict[str, Any]:
        """The shape of `--json`; a contract."""
        return self.counts()


def usual_exit_code(totals: Totals) -> ExitCode:
    """How a run ended, for a shell, if its kind has nothing to add."""
    if totals.interrupted:
        return ExitCode.INTERRUPTED
    if totals.problem is not None:
        return ExitCode.TRY_AGAIN
    return ExitCode.UNRECONCILED if totals.drifted or totals.dead_letters else ExitCode.DONE


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a run works: until `stop` is set or `within` has passed, by which clock, watched by whom."""

    stop: threading.Event = field(default_factory=threading.Event)  # of this run alone, if `within` is given
    clock: Callable[[], datetime] = _utc_now
    within: timedelta | None = None
    on_progress: Callable[[], None] = lambda: None
    retry_at: Callable[[], datetime | None] = lambda: None  # when the job is due next
    rest: timedelta | None = None  # how long the job is left alone when it is refused, if not until it is due


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a job, while it runs."""

    job: Job
    origin: Origin
    store: Store
    totals: Totals
    terms: Terms

    @property
    def stop(self) -> threading.Event:
        """Set when the run is to end, between two pages."""
        return self.terms.stop

    def now(self) -> datetime:
        """The time, in UTC."""
        return self.terms.clock()

    def persist(self, work: Callable[[], T]) -> T:
        """Do `work` on the store, again after a while when the database was away."""
        policy = retrying(
            self.stop, before_sleep=self._announce, longest_wait=_DATABASE_TRIED_EVERY, attempts=_DATABASE_TRIES
        )
        result = policy(work)
        self.terms.on_progress()
        return result

    def ask(
        self, queries: Mapping[str, LiteralString], name: str, params: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """The rows that a query gives, asked again after a while when the database was away."""

        def ask() -> list[tuple[Any, ...]]:
            with self.store.session() as conn:
                return conn.execute(queries[name], params).fetchall()

        return self.persist(ask)

    def merge(
        self, page: Page, *, cursor: Cursor | None = None, seen: int | None = None, is_bulk: bool = False
    ) -> Merged:
        """Merge a page, keep its dead letters and move the cursor in one commit; count and report what it found."""
        merged = self.persist(
            lambda: self.store.merge(
                page.observations,
                origin=self.origin,
                now=self.now(),
                cursor=cursor,
                dead_letters=page.dead_letters,
                refuse=bury_observation,
            )
        )
        self.totals.add(merged, seen=seen)
        for decision in merged.decisions:
            if decision.to_status in FINAL and decision.from_status not in FINAL:
                metrics.repair_seconds.observe(decision.late_seconds)
        self.report(merged, [*page.dead_letters, *merged.refused], is_bulk=is_bulk)
        return merged

    def mark_gone(self, call_sids: Sequence[str]) -> None:
        """Note which calls Twilio has no more."""
        if not call_sids:
            return
        now = self.now()
        gone = self.persist(
            lambda: self.store.atomically(
                lambda transaction: transaction.mark_gone(call_sids, origin=self.origin, now=now)
            )
        )
        self.totals.gone += len(gone)
        for call_sid in gone:
            log.warning("call.gone", call_sid=call_sid)

    def read_cursor(self) -> dict[str, Any] | None:
        """Where this job stands, or None if it never ran."""
        return self.persist(lambda: self.store.read_cursor(self.job)) or None

    def save_cursor(self, value: dict[str, Any]) -> None:
        """Move this job's cursor, which speaks of no new rows."""
        self.persist(lambda: self.store.save_cursor(Cursor(self.job, value), now=self.now()))

    def report(self, merged: Merged, dead_letters: Sequence[DeadLetter] = (), *, is_bulk: bool = False) -> None:
        """Log what a page found. A job that finds a few gaps names each; bulk work names them at level debug."""
        for letter in dead_letters:
            log.warning("record.dead_lettered", call_sid=letter.call_sid, reason=letter.reason)
        are_gaps_told = not is_bulk or log.is_enabled_for(logging.DEBUG)
        for decision in merged.decisions:
            if decision.action == "drift" and decision.is_news:
                log.warning("call.frozen_drift", call_sid=decision.call_sid, fields=sorted(decision.theirs or ()))
            elif decision.gap is not None and are_gaps_told:
                gap = {
                    "call_sid": decision.call_sid,
                    "kind": decision.gap.value,
                    "from_status": decision.from_status,
                    "to_status": decision.to_status,
                    "late_seconds": decision.late_seconds,
                }
                if is_bulk:
                    log.debug("gap.filled", **gap)
                else:
                    log.info("gap.filled", **gap)

    def _announce(self, error: Retriable, attempt: int, wait: float) -> None:
        self.terms.on_progress()
        log.warning("database.retried", error=str(error), attempt=attempt, wait_seconds=round(wait, 3))


@contextmanager
def run(
    job: Job,
    totals: Totals,
    *,
    account_sid: str | None,
    store: Store,
    source: Session | None,
    terms: Terms,
    dry_run: bool = False,
) -> Iterator[Run]:
    """Surround one execution: holds the job's lock, binds job, account and run_id to the log, says how it ended.

    The outcome goes to `sync_state`, unless this is a `dry_run`, which takes no lock either. A run that ends with
    `totals.problem` set, or that its deadline interrupted, has failed; one that was stopped otherwise before it was
    done has neither succeeded nor failed.

    Raises:
        JobHeld: another process runs this job, or took it over; nothing is recorded.

    """
    run_id = str(uuid.uuid4())
    started = time.monotonic()
    account = {} if account_sid is None else {"account": account_sid}
    labels = (job.kind, account_sid or "")
    this = Run(job, Origin(f"reconcile_{job.kind}", run_id), store, totals, terms)
    _show_counts(labels, terms.clock())
    with bound_contextvars(job=job.kind, **account, run_id=run_id):
        try:
            with nullcontext() if dry_run else store.holding(job), _deadline(terms) as overdue:
                yield this
                if totals.interrupted and overdue.is_set():
                    totals.interrupted, totals.problem = False, f"not done within {terms.within}; the next run goes on"
                if not dry_run:
                    _record_outcome(this, labels)
        except (BrokenPipeError, JobHeld):
            raise  # whoever read the differences has seen enough; the job is another's now
        except Exception as exc:
            is_refused = isinstance(exc, Refused | CredentialsDoubted)
            metrics.runs.labels(*labels, "refused" if is_refused else "failed").inc()
            rest_until = terms.clock() + terms.rest if is_refused and terms.rest is not None else None
            _say_failed(str(exc), type(exc).__name__, retry_at=rest_until or terms.retry_at())
            if not dry_run:
                with suppress(ReconcilerError):  # the database may be what failed
                    _record_failure(this, labels, str(exc) or type(exc).__name__)
            raise
        finally:
            totals.seconds = time.monotonic() - started
            if source is not None:
                totals.requests, totals.retries = source.requests, source.retries
        _count(totals, labels, terms.clock())
        if totals.problem is not None:
            _say_failed(totals.problem, "Unfinished", retry_at=terms.retry_at())
        log.info("job.finished", **totals.counts())


def _show_counts(labels: tuple[str, str], now: datetime) -> None:
    """Show what a job will count from 0 on, before its first run counts.

    Of a counter that is born with its first count, Prometheus' `increase()` sees nothing. Until its last success is
    known, a job is as old as its first run, which begins `now`.
    """
    if labels in _shown:
        return
    _shown.add(labels)
    for outcome in ("succeeded", "failed", "refused", "interrupted", "skipped"):
        metrics.runs.labels(*labels, outcome)
    metrics.missed_runs.labels(*labels)
    metrics.last_success.labels(*labels).set(now.timestamp())
    _add_counts(Totals(), labels)


def forget_counts(account_sid: str) -> None:
    """Show monitoring nothing more of an account that is not looked after any more."""
    metrics.forget(account_sid)
    _shown.difference_update([labels for labels in list(_shown) if labels[1] == account_sid])


def _say_failed(error: str, kind: str, *, retry_at: datetime | None) -> None:
    log.error("job.failed", error=error, kind=kind, will_retry_at=None if retry_at is None else retry_at.isoformat())


@contextmanager
def _deadline(terms: Terms) -> Iterator[threading.Event]:
    """An event that is set, and `stop` with it, when the time of a run is up."""
    overdue = threading.Event()

    def expire() -> None:
        overdue.set()
        terms.stop.set()

    timer = threading.Timer(0 if terms.within is None else terms.within.total_seconds(), expire)
    timer.daemon = True
    if terms.within is not None:
        timer.start()
    try:
        yield overdue
    finally:
        timer.cancel()


def _record_outcome(this: Run, labels: tuple[str, str]) -> None:
    if (problem := this.totals.problem) is not None:
        this.persist(lambda: _record_failure(this, labels, problem))
    elif not this.totals.interrupted:
        now = this.now()
        this.persist(lambda: this.store.record_success(this.job, now=now))


def _record_failure(this: Run, labels: tuple[str, str], error: str) -> None:
    """Keep why it failed; what succeeded last may have been a run of another process."""
    last_success = this.store.record_failure(this.job, error=mask(redact(error)), now=this.now())
    if last_success is not None:
        metrics.last_success.labels(*labels).set(last_success.timestamp())


def _count(totals: Totals, labels: tuple[str, str], now: datetime) -> None:
    metrics.runs.labels(*labels, totals.outcome).inc()
    metrics.run_seconds.labels(*labels).set(totals.seconds)
    metrics.lag.labels(*labels).set(totals.lag.total_seconds())
    _add_counts(totals, labels)
    if totals.outcome == "succeeded":
        metrics.last_success.labels(*labels).set(now.timestamp())


def _add_counts(totals: Totals, labels: tuple[str, str]) -> None:
    kind, account = labels
    metrics.calls_seen.labels(*labels).inc(totals.seen)
    for gap in Gap:
        metrics.gaps.labels(gap.value, *labels).inc(totals.gaps[gap])
    metrics.drift.labels(account).inc(totals.drifted)
    metrics.frozen.labels(kind).inc(totals.frozen)
    metrics.dead_letters_found.labels(kind).inc(totals.dead_letters)

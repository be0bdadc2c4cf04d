"""One execution of a job: its lock, its run_id, its deadline, and its outcome in `sync_state`."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from functools import partial
from typing import Any, Final, Generic, TypeVar

from structlog.contextvars import bound_contextvars

from reconciler import metrics
from reconciler.database.connection import Connection
from reconciler.database.decisions import Merged
from reconciler.database.store import Store
from reconciler.database.transaction import Cursor, Origin, Transaction
from reconciler.errors import JobHeld, ReconcilerError, Retriable
from reconciler.logs import get_logger
from reconciler.masking import mask, redact
from reconciler.model import FINAL, Page, name_job
from reconciler.retry import retrying
from reconciler.sync import telemetry
from reconciler.sync.context import Account, JobContext
from reconciler.sync.counts import Counts, Outcome
from reconciler.sync.cursors import AccountCursor, JobCursor, decode, encode, is_ahead, load, name_account
from reconciler.sync.right_of_way import RightOfWay
from reconciler.twilio.client import Session
from reconciler.twilio.listing import Listing
from reconciler.twilio.recording_records import dead_letter_of_refused
from reconciler.twilio.server_clock import CLOCKS_DIFFER

# The database may be asked often. A run that waits for it therefore continues soon after it is back.
_DATABASE_TRIED_EVERY: Final = 5.0  # seconds
_DATABASE_TRIES: Final = 60  # more than fit into `retry.GIVE_UP_AFTER`

log = get_logger(__name__)

C = TypeVar("C", bound=Counts)
K = TypeVar("K", bound=JobCursor)
T = TypeVar("T")

# As `transaction.Move`, with the cursor's value: entered when the rows are written, left after their commit.
Move = Callable[[], AbstractContextManager[JobCursor | None]]


class Run(Generic[C]):
    """One execution of a job: its context, its counts, and its way to Twilio and the database."""

    def __init__(self, context: JobContext, counts: C) -> None:
        self.context = context
        self.counts = counts
        self.job = context.job
        self.stop = context.stop  # set when the run is to end, between two pages
        # Each event holds it, so it is short: 64 random bits tell the runs of a database apart.
        self.origin = Origin(f"reconcile_{context.job.kind}", secrets.token_hex(8))
        self._right_of_way = self._hots_right_of_way()
        self._is_finished = False
        self._is_overdue = False
        self._progress_told_at = time.monotonic()

    @property
    def session(self) -> Session:
        """The session with Twilio; only for jobs that ask Twilio."""
        assert self.context.session is not None
        return self.context.session

    @property
    def account(self) -> Account:
        """The account; only for jobs that ask Twilio."""
        assert self.context.account is not None
        return self.context.account

    def now(self) -> datetime:
        """Return the time, in UTC: by our clock or Twilio's, whichever is behind.

        If two clocks differ, the one that is behind is the safe one. Twilio's clock is known after its first answer to
        this process.
        """
        ours, theirs = self.context.clock(), self._twilios_clock()
        return ours if theirs is None else min(ours, theirs)

    @property
    def knows_twilios_clock(self) -> bool:
        """Whether an answer has told this process what Twilio's clock shows."""
        return self._twilios_clock() is not None

    def learn_twilios_clock(self) -> None:
        """List one call, unless an answer has told already what Twilio's clock shows."""
        if not self.knows_twilios_clock:
            self.session.page(Listing(self.account.sid, page_size=1))

    # How it ends

    def fail(self, reason: str | None) -> None:
        """Make the run end as failed because of `reason`; the first reason counts. None changes nothing."""
        if self.counts.problem is None:
            self.counts.problem = reason

    def finish(self) -> None:
        """Record that all work is done: a later stop does not interrupt the run."""
        self._is_finished = True

    def expire(self) -> None:
        """Stop the run because its time limit has passed."""
        self._is_overdue = True
        self.stop.set()

    @property
    def is_cut_short(self) -> bool:
        """Whether the run was stopped before its work was done."""
        return self.stop.is_set() and not self._is_finished

    def conclude(self) -> None:
        """Compute the outcome."""
        if self.is_cut_short and self._is_overdue:
            self.fail(f"not done within {self.context.time_limit}; the next run goes on")
        if self.is_cut_short and not self._is_overdue:
            self.counts.outcome = Outcome.INTERRUPTED
        elif self.counts.problem is not None:
            self.counts.outcome = Outcome.FAILED

    # The database

    def persist(self, work: Callable[[], T]) -> T:
        """Call `work` on the store and return its result; repeat it while the database is away."""
        policy = retrying(
            self.stop, before_sleep=self._announce, longest_wait=_DATABASE_TRIED_EVERY, attempts=_DATABASE_TRIES
        )
        result = policy(work)
        self.context.on_progress()
        return result

    def ask(self, question: Callable[[Connection], T]) -> T:
        """Return the result of `question`, a function of `database` that takes a connection."""

        def ask() -> T:
            with self.context.store.session() as conn:
                return question(conn)

        return self.persist(ask)

    def commit(self, work: Callable[[Transaction], T]) -> T:
        """Call `work` in one transaction and return its result; `work` may be called several times."""
        return self.persist(lambda: self.context.store.atomically(work))

    def merge_page(
        self, page: Page, *, cursor: JobCursor | None = None, seen: int | None = None, is_bulk: bool = False
    ) -> Merged:
        """Merge a page, keep its dead letters and move the cursor in one commit; count and log the result.

        `seen` is the number of the page's calls that this run counts; None means all of them.
        """
        merged = self.write_page(page, move=lambda: nullcontext(cursor))
        self.count_page(page, merged, seen=seen, is_bulk=is_bulk)
        return merged

    def write_page(
        self, page: Page, *, move: Move = nullcontext, store: Store | None = None, is_brief: bool = False
    ) -> Merged:
        """Merge a page, keep its dead letters and move the cursor in one commit; see `Store.commit_page`.

        Several threads may call this at once, each with a `store` of its own, see `Store.mergers`. A run of bulk work
        lets hot go first, see `RightOfWay`.
        """
        merging = store or self.context.store

        def write() -> Merged:
            if self._right_of_way is not None:
                self._right_of_way.give(merging)
            return merging.commit_page(
                page.observations,
                origin=self.origin,
                now=self.now(),
                move=partial(self._moving, move),
                dead_letters=page.dead_letters,
                recordings=page.recordings,
                refuse=dead_letter_of_refused,
                is_brief=is_brief,
            )

        return self.persist(write)

    def count_page(self, page: Page, merged: Merged, *, seen: int | None = None, is_bulk: bool = False) -> None:
        """Count and log what the merge of a page did; `seen` as in `merge_page`."""
        named = self.counts.gaps.total() + self.counts.recordings_told
        self.counts.count_page(merged, seen=seen)
        for decision in merged.decisions:
            if decision.to_status in FINAL and decision.from_status not in FINAL and not decision.is_imported:
                metrics.repair_seconds.observe(decision.late_seconds)
        telemetry.report_page(merged, [*page.dead_letters, *merged.refused], named=named, is_bulk=is_bulk)

    def mark_gone(self, call_sids: Sequence[str]) -> None:
        """Mark calls as gone: Twilio no longer has them."""
        if not call_sids:
            return
        now = self.now()
        gone = self.commit(lambda transaction: transaction.mark_gone(call_sids, origin=self.origin, now=now))
        self.counts.gone += len(gone)
        for call_sid in gone:
            log.warning("call.gone", call_sid=call_sid)

    def read_cursor(self, kind: type[K]) -> K | None:
        """Return this job's cursor; None if it has never run.

        Raises:
            ConfigError: the cursor cannot be right; see `cursors.load`.

        """
        value = self.persist(lambda: self.context.store.read_cursor(self.job))
        account = self.context.account
        return load(self.job, value, kind, now=self.now(), account_sid=None if account is None else account.sid)

    def read_cursor_unless(self, since: datetime | None, kind: type[K]) -> K | None:
        """Return this job's cursor; None if it has never run, or if a person gave the moment `since` to begin at.

        Raises:
            ConfigError: the cursor cannot be right; see `cursors.load`.

        """
        return self.read_cursor(kind) if since is None else None

    def keep_cursor(self, cursor: JobCursor) -> None:
        """Move this job's cursor in a commit of its own, without rows."""
        moved = self._encoded(cursor)
        self.persist(lambda: self.context.store.commit_cursor(moved, now=self.now()))

    def move_cursor(self, transaction: Transaction, cursor: JobCursor) -> None:
        """Move this job's cursor in a transaction of `commit`."""
        transaction.move_cursor(self._encoded(cursor), now=self.now())

    # Progress

    def tell_progress(self) -> None:
        """Log the progress of a sweep, every few seconds."""
        if time.monotonic() - self._progress_told_at >= self.context.progress_every.total_seconds():
            self._progress_told_at = time.monotonic()
            counts = self.counts
            log.info(
                "job.progressed", calls_seen=counts.seen, slices_done=counts.slices_done, slices=counts.slices
            )  # fmt: skip

    def tell_difference(self) -> None:
        """Log by how much our clock differs from Twilio's, if they differ by minutes."""
        theirs = self._twilios_clock()
        if theirs is not None and abs(ahead := self.context.clock() - theirs) > CLOCKS_DIFFER:
            log.warning("clock.differed", seconds=round(ahead.total_seconds()))

    def _twilios_clock(self) -> datetime | None:
        session = self.context.session
        return None if session is None else session.client.server_clock.now()

    def _hots_right_of_way(self) -> RightOfWay | None:
        session, account = self.context.session, self.context.account
        if session is None or account is None or not session.is_bulk:
            return None
        return RightOfWay(name_job("hot", account.sid, main=session.client.account_sid), self.stop)

    def _encoded(self, cursor: JobCursor) -> Cursor:
        return Cursor(self.job, encode(cursor))  # a copy: the caller may change the cursor later

    @contextmanager
    def _moving(self, move: Move) -> Iterator[Cursor | None]:
        with move() as cursor:
            yield None if cursor is None else self._encoded(cursor)

    def _announce(self, error: Retriable, attempt: int, wait: float) -> None:
        self.context.on_progress()
        log.warning("database.retried", error=str(error), attempt=attempt, wait_seconds=round(wait, 3))


@contextmanager
def run(context: JobContext, counts: C) -> Iterator[Run[C]]:
    """Surround one execution: hold the job's lock, bind job, account and run_id to the log, record the outcome.

    The outcome is in `counts` afterwards, and in `sync_state` unless this is a dry run. A run has failed if `fail` was
    called, or if its deadline cut it short. A run that was stopped before its end has neither succeeded nor failed.

    Raises:
        JobHeld: another process runs this job, or took it over; no outcome is recorded.

    """
    started = time.monotonic()
    account_sid = None if context.account is None else context.account.sid
    labels = telemetry.Labels(context.job.kind, account_sid or "")
    this = Run(context, counts)
    telemetry.show_counts(labels, context.clock())
    with bound_contextvars(**telemetry.log_fields(context.job, account_sid), run_id=this.origin.run_id):
        try:
            with nullcontext() if context.dry_run else context.store.holding(context.job), _deadline(this):
                this.origin = this.origin._replace(imported_before=_looked_after_since(this))
                yield this
                this.conclude()
                if not context.dry_run:
                    _record_outcome(this, labels)
        except (BrokenPipeError, JobHeld):
            raise  # the reader of the output is gone, or another process has the job
        except Exception as exc:
            _record_exception(this, labels, exc)
            raise
        finally:
            counts = this.counts  # the job may have set others
            counts.seconds = time.monotonic() - started
            if context.session is not None:
                counts.requests, counts.retries = context.session.requests, context.session.retries
            this.tell_difference()
        telemetry.count_run(counts, labels, context.clock())
        if counts.problem is not None:
            telemetry.log_failure(counts.problem, "Unfinished", retry_at=context.retry_at())
        log.info("job.finished", **counts.counts())


def _looked_after_since(this: Run[Any]) -> datetime | None:
    """When this installation first looked after the run's account; None if the run is not about one.

    Raises:
        ConfigError: the note of it cannot be read.

    """
    context = this.context
    if context.account is None:
        return None
    note = name_account(context.account.sid)
    begins = context.looks_after and not context.dry_run
    value = this.persist(lambda: context.store.first_look(note, begins=begins, now=this.now()))
    cursor, now = decode(note, value, AccountCursor), this.now()
    if cursor is not None and is_ahead(cursor, now):  # a clock that was ahead wrote it
        cursor = AccountCursor(since=now)
        if begins:
            moved = Cursor(note, encode(cursor))
            this.persist(lambda: context.store.commit_cursor(moved, now=now))
    return now if cursor is None else cursor.since


@contextmanager
def _deadline(this: Run[Any]) -> Iterator[None]:
    """Stop the run when its time limit has passed."""
    limit = this.context.time_limit
    if limit is None:
        yield
        return
    timer = threading.Timer(limit.total_seconds(), this.expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _record_outcome(this: Run[Any], labels: telemetry.Labels) -> None:
    if (problem := this.counts.problem) is not None:
        this.persist(lambda: _record_failure(this, labels, problem))
    elif this.counts.outcome is Outcome.SUCCEEDED:
        now = this.now()
        this.persist(lambda: this.context.store.record_success(this.job, now=now))


def _record_exception(this: Run[Any], labels: telemetry.Labels, error: Exception) -> None:
    context = this.context
    is_refused = isinstance(error, ReconcilerError) and error.is_refusal
    this.counts.outcome = Outcome.REFUSED if is_refused else Outcome.FAILED
    metrics.runs.labels(*labels, this.counts.outcome).inc()
    pause = context.pause_if_refused if is_refused else None
    retry_at = context.retry_at() if pause is None else context.clock() + pause
    telemetry.log_failure(str(error), type(error).__name__, retry_at=retry_at)
    if not context.dry_run:
        with suppress(ReconcilerError):  # perhaps it is the database that failed
            _record_failure(this, labels, str(error) or type(error).__name__)


def _record_failure(this: Run[Any], labels: telemetry.Labels, reason: str) -> None:
    """Store the reason of a failure, and show the last success, which may be another process's."""
    last_success = this.context.store.record_failure(this.job, error=mask(redact(reason)), now=this.now())
    if last_success is not None:
        metrics.last_success.labels(*labels).set(last_success.timestamp())

"""A backfill by the workers of a fleet: `reconcile --since 400d --fleet`.

Design rules
- The command plans and counts; workers read. The plan of each account is that of a backfill by one process, so that the
  requests are the same. Each slice of it is a task.
- Open calls first: the slices of days wait for them, unless the days are long past (see `sync.fetch`).
- The plan is committed before its tasks are deferred. When the command is typed again, after a kill, it finds in the
  plan which slices were begun, and in their cursors how far they are.
- A slice is counted once: in the commit that takes it out of the plan its own row goes.
- Twilio's budget is shared by all processes, whoever reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from reconciler.database.transaction import Cursor, Transaction
from reconciler.errors import ExitCode, ReconcilerError, Refused, Retriable, Unavailable
from reconciler.jobs.backfill import SUMS, BackfillCounts, Watcher, Window, begin_or_go_on
from reconciler.jobs.backfill_slice import KIND, name_slice
from reconciler.model import Gap, JobName
from reconciler.service.backfill_queue import BackfillQueue, SliceTask
from reconciler.sync.context import JobContext
from reconciler.sync.cursors import BackfillCursor, SliceCursor, decode, encode, load
from reconciler.sync.fetch import Failed
from reconciler.sync.order import Order
from reconciler.sync.plan import Plan
from reconciler.sync.run import Run, run
from reconciler.sync.slices import Slice
from reconciler.sync.sweep import describe
from reconciler.twilio.listing import PAGE_SIZE

FLEET: Final = JobName(KIND, None, "fleet")  # one backfill by the fleet at a time
_LOOKED_EVERY: Final = 0.1  # seconds
_COUNTED_EVERY: Final = 3.0  # seconds between two looks for workers
_WAITS_FOR_WORKERS: Final = 30.0  # seconds
_AHEAD: Final = 2  # tasks for each slot: a worker that has read a slice finds the next one
_BESIDE_OPEN_CALLS: Final = 3  # slices; the first ones have one day each, and tell how many days fill a page
_FAILURES_ENOUGH: Final = 3  # in a row

T = TypeVar("T")


class Progress(NamedTuple):
    """A slice's cursor and the error of its last run, as its row holds them."""

    cursor: SliceCursor | None
    error: str | None


@dataclass(slots=True)
class Account:
    """One account's part: the plan, what the workers are at, and the counts of the slices that are done."""

    sid: str
    job: JobName
    cursor: BackfillCursor
    plan: Plan
    order: Order
    recordings: Iterator[Slice]  # read after the calls
    counts: BackfillCounts
    at_once: int  # requests, at most
    under_way: dict[JobName, Slice] = field(default_factory=dict)
    failures_in_a_row: int = 0
    is_changed: bool = True  # since its plan was committed
    counted: list[JobName] = field(default_factory=list)  # slices whose rows go with the next commit

    def draw(self) -> SliceTask | None:
        """Return the next slice to read; None if there is none now."""
        if self.failures_in_a_row >= _FAILURES_ENOUGH or len(self.under_way) >= self._room:
            return None
        slice_ = self.order.draw()
        if slice_ is None and not self.under_way:  # a recording's URL goes into the row of its call
            slice_ = next(self.recordings, None)
        if slice_ is None:
            return None
        job = name_slice(self.sid, self.cursor.begun_at, slice_)
        self.under_way[job] = slice_
        self.is_changed = True
        return SliceTask(job, slice_.name)

    @property
    def _room(self) -> int:
        """How many slices may be under way: Twilio's budget leaves no room for more at work."""
        open_calls = sum(map(self.order.is_first, self.under_way.values()))
        return open_calls + _BESIDE_OPEN_CALLS if open_calls else self.at_once * _AHEAD

    def settle(self, job: JobName, cursor: SliceCursor) -> None:
        """Count a slice that was read to its end."""
        slice_ = self.under_way.pop(job)
        self.plan.settle(slice_, int(cursor.counts.get("seen", 0)))
        self.order.end(slice_)
        add_counts(self.counts, cursor)
        self.counts.slices_done += len(slice_.parts)
        self.failures_in_a_row = 0
        self.is_changed = True
        self.counted.append(job)

    def fail(self, job: JobName, error: ReconcilerError) -> None:
        """Note a slice that could not be read; it stays in the plan."""
        slice_ = self.under_way.pop(job)
        self.order.end(slice_)
        self.plan.split(slice_)
        self.counts.failed.append(Failed(slice_, error))
        self.failures_in_a_row += 1
        self.is_changed = True
        self.counted.append(job)

    def give_up(self) -> None:
        """After too many failures in a row: the slices that were not begun have failed too."""
        if self.failures_in_a_row >= _FAILURES_ENOUGH and not self.under_way:
            error = self.counts.failed[-1].error
            self.counts.failed += [Failed(slice_, error) for slice_ in self.order.rest()]
            self.failures_in_a_row = 0


def add_counts(counts: BackfillCounts, cursor: SliceCursor) -> None:
    """Add the counts of a slice, those of its slices left out: the plan has them."""
    for name in SUMS:
        if name not in ("slices", "slices_done"):
            kind = type(getattr(counts, name))
            setattr(counts, name, getattr(counts, name) + kind(cursor.counts.get(name, 0)))
    counts.gaps.update({Gap(kind): count for kind, count in cursor.gaps.items()})


def error_of(progress: Progress) -> ReconcilerError | None:
    """Return the error that a slice ended with, by its exit code; None if it did not end."""
    cursor = progress.cursor
    if cursor is not None and cursor.error is not None:
        kinds: Mapping[int | None, type[ReconcilerError]] = {
            ExitCode.REFUSED: Refused, ExitCode.UNAVAILABLE: Unavailable,
        }  # fmt: skip
        return kinds.get(cursor.exit_code, Retriable)(cursor.error)
    return None if progress.error is None else Retriable(progress.error)


def backfill_by_fleet(
    context: JobContext, accounts: Sequence[str], window: Window, queue: BackfillQueue, watcher: Watcher
) -> BackfillCounts:
    """Make the calls of the window equal to Twilio's, by the workers of the fleet; see `jobs.backfill.backfill`.

    Raises:
        ConfigError: a cursor cannot be right; nothing was read.
        JobHeld: another fleet backfill is under way.
        Unavailable: no worker gives a sign of life, or the database did not come back.
        Refused: the database refused.

    """
    with run(context, BackfillCounts()) as this:
        work = _Work(this, window, queue, watcher)
        work.begin(accounts)
        work.do()
        this.fail(describe(this.counts.failed))
        if this.counts.slices_done >= this.counts.slices:
            this.finish()
    return this.counts


class _Work:
    """The backfill while it is under way."""

    def __init__(self, this: Run[BackfillCounts], window: Window, queue: BackfillQueue, watcher: Watcher) -> None:
        self._this = this
        self._window = window
        self._queue = queue
        self._watcher = watcher
        self._accounts: list[Account] = []
        self._capacity = 0
        self._counted_at = -_COUNTED_EVERY
        self._seen_workers_at = time.monotonic()
        self._is_drained = False  # no slice was left to draw when last asked

    def begin(self, accounts: Sequence[str]) -> None:
        """Make the plan of each account, or go on with the one that is there."""
        self._count_workers()
        names = {sid: JobName(KIND, sid, "fleet") for sid in accounts}
        found = self._progress(names.values())
        for sid, job in names.items():
            left = load(job, found.get(str(job), (None,))[0], BackfillCursor, now=self._this.now())
            cursor, goes_on = begin_or_go_on(job, left, sid, self._window, self._this.now())
            if not goes_on:
                self._persist(lambda sid=sid: self._forget(sid))  # type: ignore[misc]
            self._accounts.append(self._account(sid, job, cursor, resumed=goes_on))
        self._sum_up()
        counts = self._this.counts
        self._watcher.planned(counts.slices, counts.slices - counts.slices_done)

    def do(self) -> None:
        """Defer, wait and count until nothing is left, or the run is stopped."""
        stop = self._this.stop
        while not stop.is_set():
            self._look()
            self._defer()
            self._commit()
            self._sum_up()
            self._watcher.merged(self._this.counts, [])
            self._this.tell_progress()
            if self._is_drained and not any(account.under_way for account in self._accounts):
                break
            stop.wait(_LOOKED_EVERY)
        if stop.is_set():
            for account in self._accounts:
                if account.under_way:
                    self._persist(lambda sid=account.sid: self._queue.withdraw(f"{KIND}:{sid}:"))  # type: ignore[misc]
        for account in self._accounts:
            account.cursor.finished = not account.plan.left
            account.is_changed = True
        self._commit()
        self._sum_up()

    def _account(self, sid: str, job: JobName, cursor: BackfillCursor, *, resumed: bool) -> Account:
        plan, counts = Plan(sid, cursor), BackfillCounts(resumed=resumed)
        counts.slices, counts.slices_done = len(plan.left) + cursor.done, cursor.done
        now = self._this.now()
        at_once = self._this.context.settings.max_concurrency  # as of one process: the slices are the same
        order = Order(
            plan.others(at_once, PAGE_SIZE),
            first=plan.open_calls(),
            is_independent=lambda slice_: slice_.is_settled(now),
        )
        return Account(sid, job, cursor, plan, order, iter(plan.recordings()), counts, at_once)

    def _look(self) -> None:
        """Take note of the slices that were read, or failed; defer those again that were lost."""
        jobs = {job: account for account in self._accounts for job in account.under_way}
        if not jobs:
            return
        # Tasks first: a task that ends between the two questions has left its result when the second is asked.
        known = self._persist(lambda: self._queue.known(jobs))
        rows = self._progress(jobs)
        lost = []
        for job, account in jobs.items():
            value, error = rows.get(str(job), (None, None))
            progress = Progress(decode(job, value, SliceCursor), error)
            if str(job) in known:  # its run also writes after the slice is read
                continue
            if progress.cursor is not None and progress.cursor.finished:
                account.settle(job, progress.cursor)
            elif (failure := error_of(progress)) is not None:
                account.fail(job, failure)
            else:
                lost.append(SliceTask(job, account.under_way[job].name))
        self._persist(lambda: self._queue.put(lost))

    def _defer(self) -> None:
        """Defer as many slices as keep the workers busy."""
        self._count_workers()
        room = self._capacity * _AHEAD - sum(len(account.under_way) for account in self._accounts)
        tasks = list(self._draw(room))
        for account in self._accounts:
            account.give_up()
        if not tasks:
            return
        self._commit()
        found = self._progress(task.job for task in tasks)  # of a command that was killed
        self._persist(lambda: self._queue.put(task for task in tasks if not _is_read(found, task.job)))

    def _draw(self, room: int) -> Iterator[SliceTask]:
        for account in self._accounts:
            while room > 0 and (task := account.draw()) is not None:
                room -= 1
                yield task
        self._is_drained = room > 0

    def _commit(self) -> None:
        """Commit the plans that have changed, and with them the deletion of the rows of counted slices."""
        for account in self._accounts:
            if not account.is_changed:
                continue
            cursor, names = Cursor(account.job, encode(account.cursor)), [str(job) for job in account.counted]

            def work(transaction: Transaction, cursor: Cursor = cursor, names: list[str] = names) -> None:
                transaction.move_cursor(cursor, now=self._this.now())
                transaction.forget_jobs(names)

            self._this.commit(work)
            account.is_changed, account.counted = False, []

    def _forget(self, sid: str) -> None:
        """Forget what an earlier backfill of the account has left."""
        self._queue.withdraw(f"{KIND}:{sid}:")
        self._this.context.store.atomically(lambda transaction: transaction.forget_slices(sid))

    def _count_workers(self) -> None:
        if time.monotonic() - self._counted_at < _COUNTED_EVERY:
            return
        self._counted_at = time.monotonic()
        self._capacity = self._persist(self._queue.capacity)
        if self._capacity:
            self._seen_workers_at = time.monotonic()
        elif time.monotonic() - self._seen_workers_at > _WAITS_FOR_WORKERS:
            hint = "start a daemon with RECONCILER_ENGINE=procrastinate; the same command then goes on"
            raise Unavailable("no daemon of the fleet works", hint=hint)

    def _progress(self, jobs: Iterable[JobName]) -> dict[str, tuple[Any, str | None]]:
        names = [str(job) for job in jobs]
        return self._persist(lambda: self._this.context.store.progress_of(names))

    def _persist(self, work: Callable[[], T]) -> T:
        return self._this.persist(work)

    def _sum_up(self) -> None:
        """Make the counts of the run those of all accounts."""
        total = self._this.counts
        for name in SUMS:
            if name != "seconds":
                setattr(total, name, sum(getattr(account.counts, name) for account in self._accounts))
        total.gaps = sum((account.counts.gaps for account in self._accounts), start=type(total.gaps)())
        total.failed = [failure for account in self._accounts for failure in account.counts.failed]
        total.resumed = any(account.counts.resumed for account in self._accounts)
        if len(self._accounts) > 1:
            total.accounts = {account.sid: account.counts for account in self._accounts}


def _is_read(found: Mapping[str, tuple[Any, str | None]], job: JobName) -> bool:
    cursor = decode(job, found.get(str(job), (None,))[0], SliceCursor)
    return cursor is not None and cursor.finished

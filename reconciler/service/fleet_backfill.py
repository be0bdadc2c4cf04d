"""A backfill by the workers of a fleet: `reconcile --since 400d --fleet`.

Design rules
- The command plans and counts; workers read. The plan of each account is that of a backfill by one process, so that the
  requests are the same. Each slice of it is a task.
- The plan is committed before its tasks are deferred. When a person types the command again, after a kill, it finds the
  slices that were begun in the plan. Their cursors say how far they are.
- A slice is counted once: in the commit that takes it out of the plan its own row goes.
- All processes share Twilio's budget, whichever of them reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from reconciler.database.transaction import Cursor, Transaction
from reconciler.errors import ExitCode, ReconcilerError, Refused, Retriable, Unavailable
from reconciler.jobs.backfill import BackfillCounts, Watcher, Window, begin_or_go_on
from reconciler.jobs.backfill_slice import KIND
from reconciler.model import JobName
from reconciler.service.backfill_queue import BackfillQueue, SliceTask
from reconciler.service.fleet_account import AHEAD, Account
from reconciler.sync.context import JobContext
from reconciler.sync.cursors import BackfillCursor, SliceCursor, decode, encode, load
from reconciler.sync.run import Run, run
from reconciler.sync.sweep import describe

FLEET: Final = JobName(KIND, None, "fleet")  # one backfill by the fleet at a time
_LOOKED_EVERY: Final = 0.1  # seconds
_COUNTED_EVERY: Final = 3.0  # seconds between two looks for workers
_WAITS_FOR_WORKERS: Final = 30.0  # seconds

T = TypeVar("T")


class Progress(NamedTuple):
    """A slice's cursor and the error of its last run, as its row holds them."""

    cursor: SliceCursor | None
    error: str | None


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
        self._at_once = this.context.settings.max_concurrency

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
            self._accounts.append(
                Account.of(sid, job, cursor, resumed=goes_on, at_once=self._at_once, now=self._this.now())
            )
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
            if not any(account.under_way for account in self._accounts) and self._is_drained():
                break
            stop.wait(_LOOKED_EVERY)
        for account in self._accounts:
            self._persist(lambda sid=account.sid: self._queue.withdraw(f"{KIND}:{sid}:"))  # type: ignore[misc]
            account.cursor.finished = not account.plan.left
            account.counts.lag = max(timedelta(0), self._this.now() - account.cursor.until)
            account.is_changed = True
        self._commit()
        self._sum_up()

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
                if progress.cursor is not None:
                    account.note(job, progress.cursor)
            elif progress.cursor is not None and progress.cursor.finished:
                account.settle(job, progress.cursor)
            elif (failure := error_of(progress)) is not None:
                account.fail(job, failure)
            else:
                lost.append(SliceTask(job, account.under_way[job].name))
        self._persist(lambda: self._queue.put(lost))

    def _defer(self) -> None:
        """Defer as many slices as keep the workers busy."""
        self._count_workers()
        tasks = list(self._draw(self._capacity * AHEAD - self._under_way()))
        room = max(0, min(self._capacity, self._at_once) - self._under_way()) if self._is_drained() else 0
        for account in self._accounts:
            account.give_up()
        if not tasks:
            return
        self._commit()
        found = self._progress(task.job for task in tasks)  # of a command that was killed
        self._persist(
            lambda: self._queue.put(task._replace(room=room) for task in tasks if not _is_read(found, task.job))
        )

    def _under_way(self) -> int:
        return sum(len(account.under_way) for account in self._accounts)

    def _is_drained(self) -> bool:
        return all(account.is_drained for account in self._accounts)

    def _draw(self, room: int) -> Iterator[SliceTask]:
        for account in self._accounts:
            while room > 0 and (task := account.draw()) is not None:
                room -= 1
                yield task

    def _commit(self) -> None:
        """Commit the plans that have changed, and with them the deletion of the rows of counted slices."""
        for account in self._accounts:
            if not account.is_changed:
                continue
            self._this.commit(partial(self._write, account))
            account.is_changed, account.counted = False, []

    def _write(self, account: Account, transaction: Transaction) -> None:
        transaction.move_cursor(Cursor(account.job, encode(account.cursor)), now=self._this.now())
        transaction.forget_jobs([str(job) for job in account.counted])
        if account.cursor.finished:  # a command that was killed may have left slices that are not in the plan any more
            transaction.forget_slices(account.sid)

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
        total = self._this.counts = BackfillCounts()
        for account in self._accounts:
            total.add(account.counts)
        if len(self._accounts) > 1:
            total.accounts = {account.sid: account.counts for account in self._accounts}


def _is_read(found: Mapping[str, tuple[Any, str | None]], job: JobName) -> bool:
    cursor = decode(job, found.get(str(job), (None,))[0], SliceCursor)
    return cursor is not None and cursor.finished

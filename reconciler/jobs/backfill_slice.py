"""One slice of a backfill, read by a worker of a fleet (`reconcile --since 400d --fleet`).

Design rules
- A long slice is cut into parts after its first page. A backfill that says for how many slices the fleet has room gets
  the parts back. They stay in the cursor, and other workers read them.
- A slice is a job of its own: its lock, its cursor and its outcome have the name that the backfill gave it. If its
  worker dies, another goes on at the page where that one stopped.
- The backfill reads the result from the cursor. An error of the slice is a result too: no other worker tries it again.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from reconciler.database.decisions import Merged
from reconciler.errors import ConfigError, JobHeld, ReconcilerError, Refused
from reconciler.jobs.backfill import READ, BackfillCounts
from reconciler.model import Gap, JobName
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Outcome
from reconciler.sync.cursors import SliceCursor
from reconciler.sync.fetch import Failed, Fetched
from reconciler.sync.plan import Plan
from reconciler.sync.run import Run, run
from reconciler.sync.slices import Slice, slice_named
from reconciler.sync.sweep import describe, read_plan

KIND = "backfill"


def name_slice(account_sid: str, begun_at: datetime, slice_: Slice) -> JobName:
    """Return the job that reads a slice of the backfill that began then. The parts of a job's name have no colon."""
    return JobName(KIND, account_sid, f"{begun_at:%Y%m%dT%H%M%S}.{slice_.name.replace(':', '')}")


def read_slice(context: JobContext) -> BackfillCounts:
    """Read and merge the slice that `context.options` names, and leave the result in the job's cursor.

    Raises:
        JobHeld: another process reads this slice.

    """
    try:
        return _read(context)
    except JobHeld:
        raise
    except ReconcilerError as exc:  # `run` has recorded it, where the backfill finds it
        return BackfillCounts(outcome=Outcome.FAILED, problem=str(exc))


def _read(context: JobContext) -> BackfillCounts:
    assert context.account is not None
    try:
        slice_ = slice_named(context.account.sid, context.options.slice or "")
    except ValueError:
        raise ConfigError(f"{context.job} reads no slice {context.options.slice!r}") from None
    with run(context, BackfillCounts()) as this:
        cursor = this.read_cursor(SliceCursor) or SliceCursor(
            since=slice_.since, until=slice_.until, done=0, pending_windows=[], begun={slice_.name: None}
        )
        if not cursor.finished:
            _read_from(this, slice_, cursor)
        this.finish()
    return this.counts


def _read_from(this: Run[BackfillCounts], slice_: Slice, cursor: SliceCursor) -> None:
    before = counts_in(cursor)

    def tally() -> None:
        this.counts.requests, this.counts.retries = this.session.requests, this.session.retries
        total = BackfillCounts()
        total.add(before)
        total.add(this.counts)
        cursor.counts = {name: getattr(total, name) for name in READ}
        cursor.gaps = {gap.value: total.gaps[gap] for gap in Gap}

    def tell(_: Fetched, __: Merged) -> None:
        this.counts.pages += 1
        tally()

    room, failed = this.context.options.room, list[Failed]()
    try:
        if room is None or slice_.name in cursor.begun:  # else a worker that died has cut it
            failed = read_plan(this, Plan.resume(this.account.sid, cursor), cursor=cursor, on_page=tell, room=room)
    except Refused as exc:
        failed = [Failed(slice_, exc)]
    if this.is_cut_short:
        return
    cursor.finished = not failed
    if failed:
        _note(cursor, failed)
        this.fail(describe(failed))
    tally()
    this.keep_cursor(cursor)


def counts_in(cursor: SliceCursor) -> BackfillCounts:
    """Return the counts that a slice's cursor holds. It counts no slices: the plan of the backfill does."""
    counts = BackfillCounts(gaps=Counter({Gap(kind): number for kind, number in cursor.gaps.items()}))
    for name in READ:
        setattr(counts, name, int(cursor.counts.get(name, 0)))
    return counts


def _note(cursor: SliceCursor, failed: list[Failed]) -> None:
    error = failed[0].error
    cursor.error, cursor.exit_code = str(error), int(error.exit_code)

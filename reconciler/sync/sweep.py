"""The one reading loop: it reads slices from Twilio and merges each page in one commit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from queue import SimpleQueue
from typing import Any

from reconciler.database.decisions import Merged
from reconciler.database.store import Store
from reconciler.errors import Refused
from reconciler.logs import get_logger
from reconciler.sync.counts import Counts
from reconciler.sync.cursors import JobCursor
from reconciler.sync.fetch import Cut, Failed, Fetched, Inline, fetch, fetch_in_order
from reconciler.sync.order import Order
from reconciler.sync.plan import Plan
from reconciler.sync.run import Run
from reconciler.sync.slices import Slice, cut_into_hours, cut_recordings
from reconciler.twilio.listing import RecordingListing
from reconciler.twilio.permissions import lacking_permission

CursorAfter = Callable[[Fetched], JobCursor | None]
Move = Callable[[Fetched], AbstractContextManager[JobCursor | None]]  # see `transaction.Move`
OnPage = Callable[[Fetched, Merged], None]
Merge = Callable[[Fetched], Merged]

log = get_logger(__name__)


def _move_nothing(_: Fetched) -> AbstractContextManager[None]:
    return nullcontext()


def cut_nothing(_item: Fetched, _room: int) -> tuple[Slice, ...]:
    """Read each slice as a whole."""
    return ()


def cut_busy(this: Run[Any], room: int | None = None) -> Cut:
    """Read a slice of many recordings by its days, and a busy day by its hours where Twilio counts the time.

    With `room`, other processes read slices too, and have so many places left.
    """

    def cut(item: Fetched, here: int) -> tuple[Slice, ...]:
        slice_, page, at_once = item.slice, item.page, this.session.concurrency
        if slice_.is_of_recordings:
            # They are read last: in this process there is room for all that may be read at once.
            return cut_recordings(slice_, page, room=at_once if room is None else room)
        hours = cut_into_hours(slice_, page, at_once=at_once, room=here if room is None else room)
        return hours if hours and this.session.counts_time(slice_.listing.account_sid, page) else ()

    return cut


def _ignore_page(_item: Fetched, _merged: Merged) -> None:
    return None


def _ignore_arrival(_: Fetched) -> None:
    return None


def _ignore_failure(_: Slice) -> None:
    return None


def read(
    this: Run[Any],
    order: Order,
    *,
    resume_at: Mapping[str, str | None] | None = None,
    move: Move = _move_nothing,
    on_arrived: Callable[[Fetched], None] = _ignore_arrival,
    on_page: OnPage = _ignore_page,
    on_failed: Callable[[Slice], None] = _ignore_failure,
    merge: Merge | None = None,
    handlers: Executor | None = None,
    is_bulk: bool = False,
    cut: Cut = cut_nothing,
) -> list[Failed]:
    """Read and merge slices until the run is stopped; return those that failed. See `fetch`.

    - `move` is entered with each page when it is merged, and left after the commit. It yields the cursor that commits
      with the page.
    - `on_arrived` is called with each page before the merge, and `on_page` after it.
    - `on_failed` is called with each slice that could not be read.
    - `merge` replaces the merge, and `handlers` the thread of the caller as the place where it happens.

    Raises:
        Refused: Twilio or the database refused.
        Retriable: the database did not come back.

    """
    items = fetch(
        this.session,
        order,
        resume_at=resume_at,
        cut=cut,
        on_arrived=on_arrived,
        handle=merge or (lambda item: this.write_page(item.page, move=partial(move, item))),
        handlers=handlers or Inline(),
        make_executor=this.context.make_executor,
        stop=this.stop,
    )
    failed: list[Failed] = []
    # If a merge fails, the threads of `fetch` end here. Otherwise the garbage collector ends them, perhaps in a thread
    # that is just starting and holds the lock of all starts: Python 3.11 then waits for itself, for ever
    # (`threading._maintain_shutdown_locks`, https://github.com/python/cpython/pull/25226).
    with closing(items):
        for found in items:
            if isinstance(found, Failed):
                failed.append(found)
                on_failed(found.slice)
                continue
            _count(this, found.item, found.result, is_bulk=is_bulk)
            on_page(*found)
    return failed


def read_in_order(this: Run[Any], slice_: Slice, *, resume_at: str | None, cursor_after: CursorAfter) -> None:
    """Read and merge one slice while its pages are in order, newest first. See `fetch_in_order`.

    `cursor_after` is called with each page before the merge; it returns the cursor that commits with the page.

    Raises:
        ReconcilerError: the slice cannot be read.

    """
    for item in fetch_in_order(this.session, slice_, resume_at=resume_at, stop=this.stop):
        this.merge_page(item.page, cursor=cursor_after(item))


def read_recordings(
    this: Run[Any],
    slices: Sequence[Slice],
    *,
    resume_at: Mapping[str, str | None] | None = None,
    move: Move = _move_nothing,
    on_page: OnPage = _ignore_page,
) -> list[Failed] | None:
    """Read slices of recordings, and write their events; see `read`. None: the credentials may not read recordings.

    Read them after the calls of the same time: a recording's URL goes into the row of its call.

    Raises:
        Refused: Twilio refuses the credentials or the account, perhaps for a moment.

    """
    failed = read(
        this, Order(last=slices), resume_at=resume_at, move=move, on_page=on_page, is_bulk=True, cut=cut_busy(this)
    )
    return failed if _may_read_recordings(this, failed) else None


def _may_read_recordings(this: Run[Any], failed: Sequence[Failed]) -> bool:
    """Whether the credentials may read recordings, as far as is known; log it if they may not.

    Raises:
        Refused: Twilio refuses the credentials or the account, perhaps for a moment.

    """
    refusal = next((failure.error for failure in failed if _is_refusal_of_recordings(failure)), None)
    if refusal is None:
        return True
    account_sid = this.account.sid
    newest = RecordingListing(account_sid, page_size=1)
    lacking = lacking_permission(this.session, account_sid, partial(this.session.page, newest), refusal)
    if lacking is not None:
        log.warning("recordings.refused", error=str(lacking), hint=lacking.hint)
    elif isinstance(refusal, Refused):
        raise refusal
    return lacking is None


def _is_refusal_of_recordings(failure: Failed) -> bool:
    return failure.slice.is_of_recordings and failure.error.is_refusal


def read_plan(
    this: Run[Any],
    plan: Plan,
    *,
    cursor: JobCursor,
    on_page: OnPage = _ignore_page,
    preview: Merge | None = None,
    room: int | None = None,
) -> list[Failed]:
    """Read and merge the slices left in `plan`, calls first. Each page commits with `cursor`, which holds the plan.

    Pages are merged on as many connections at once as the context says. `preview` replaces the merge. If the
    credentials may not read recordings, these are left out.

    With `room`, other processes read slices too, and have so many places left. The parts of a slice that is cut then
    stay in the plan.

    Raises:
        Refused: Twilio or the database refused.
        Retriable: the database did not come back.

    """
    now = this.now()
    with _merging(this, plan, cursor, preview) as (merge, handlers):
        order = Order(
            plan.others(this.session.concurrency, this.session.page_size),
            first=plan.open_calls(),
            last=plan.recordings(),
            is_independent=lambda slice_: slice_.is_settled(now),
            knows_size=lambda: plan.knows_days,
            reads_parts=room is None,
        )
        failed = read(
            this,
            order,
            resume_at=plan.state.begun,
            on_arrived=plan.expect,
            on_page=on_page,
            on_failed=plan.split,
            merge=merge,
            handlers=handlers,
            is_bulk=True,
            cut=cut_busy(this, room),
        )
        if not _may_read_recordings(this, failed):
            this.counts.slices_done += plan.leave_out_recordings()
            failed = [failure for failure in failed if not _is_refusal_of_recordings(failure)]
        return failed


@contextmanager
def _merging(this: Run[Any], plan: Plan, cursor: JobCursor, preview: Merge | None) -> Iterator[tuple[Merge, Executor]]:
    """Yield what merges a page of a plan, and the threads that do it, each with a connection."""

    @contextmanager
    def move(item: Fetched) -> Iterator[JobCursor]:
        with plan.moving(item):
            yield cursor

    if preview is not None:

        def look(item: Fetched) -> Merged:
            with plan.moving(item):
                return preview(item)

        yield look, Inline()
        return
    is_brief = not log.is_enabled_for(logging.DEBUG)  # at that level each gap is logged
    with this.context.store.mergers(min(this.context.mergers, this.session.concurrency)) as stores:
        free = SimpleQueue[Store]()  # in turn: a connection that is idle for too long ends, and with it the job's lock
        for store in stores:
            free.put(store)

        def merge(item: Fetched) -> Merged:
            store = free.get()
            try:
                return this.write_page(item.page, move=partial(move, item), store=store, is_brief=is_brief)
            finally:
                free.put(store)

        if len(stores) == 1:
            yield merge, Inline()
            return
        with ThreadPoolExecutor(len(stores), thread_name_prefix="merge") as threads:
            yield merge, threads


def describe(failed: Sequence[Failed]) -> str | None:
    """Return in one line why slices were not read; None if all were."""
    if not failed:
        return None
    reasons = "; ".join(sorted({str(failure.error) for failure in failed}))
    return f"{sum(len(failure.slice.parts) or 1 for failure in failed)} slices were not read: {reasons}"


def _count(this: Run[Any], item: Fetched, merged: Merged, *, is_bulk: bool) -> None:
    # In a sweep an open call that has started is also in one of the days, and counted there.
    seen = item.slice.count(item.page) if is_bulk else None
    if item.instead:  # the page is read again, and counted then
        seen = 0
    else:
        this.counts.recordings_seen += len({recording.recording_sid for recording in item.page.recordings})
    this.count_page(item.page, merged, seen=seen, is_bulk=is_bulk)
    if is_bulk:
        _count_slices(this.counts, item)
        this.tell_progress()


def _count_slices(counts: Counts, item: Fetched) -> None:
    if item.instead:
        counts.slices += len(item.instead) - len(item.slice.parts)
    elif item.next_uri is None:
        counts.slices_done += len(item.slice.parts) or 1

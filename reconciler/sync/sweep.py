"""The one reading loop: it reads slices from Twilio and merges each page in one commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from typing import Any, Final

from reconciler.database.transaction import Merged
from reconciler.sync import telemetry
from reconciler.sync.counts import Counts
from reconciler.sync.cursors import JobCursor
from reconciler.sync.fetch import Cut, Failed, Fetched, fetch, fetch_in_order
from reconciler.sync.plan import Plan
from reconciler.sync.run import Run
from reconciler.sync.slices import Slice, cut

# A start moves while a call waits for its answer: minutes, not days.
_STARTS_MOVE_FOR: Final = timedelta(days=1)

CursorAfter = Callable[[Fetched], JobCursor | None]
OnPage = Callable[[Fetched, Merged], None]


def _no_cursor(_: Fetched) -> None:
    return None


def _ignore_page(_item: Fetched, _merged: Merged) -> None:
    return None


def _ignore_failure(_: Slice) -> None:
    return None


def read(
    this: Run[Any],
    slices: Iterable[Slice],
    *,
    first: Sequence[Slice] = (),
    resume_at: Mapping[str, str | None] | None = None,
    cursor_after: CursorAfter = _no_cursor,
    on_page: OnPage = _ignore_page,
    on_failed: Callable[[Slice], None] = _ignore_failure,
    preview: Callable[[Fetched], Merged] | None = None,
    is_bulk: bool = False,
    is_independent: Callable[[Slice], bool] = lambda _: False,
    cut: Cut = lambda _: (),
) -> list[Failed]:
    """Read and merge `first`, then `slices`, until the run is stopped; return the slices that failed. See `fetch`.

    - `cursor_after` is called with each page before the merge; it returns the cursor that commits with the page.
    - `on_page` is called after the merge, and `on_failed` with each slice that could not be read.
    - `preview` replaces the merge.

    Raises:
        Refused: Twilio or the database refused.
        Retriable: the database did not come back.

    """
    items = fetch(
        this.session,
        slices,
        first=first,
        resume_at=resume_at,
        is_independent=is_independent,
        cut=cut,
        make_executor=this.context.make_executor,
        stop=this.stop,
    )
    failed: list[Failed] = []
    # If a merge fails, the threads of `fetch` end here. Otherwise the garbage collector ends them, perhaps in a thread
    # that is just starting and holds the lock of all starts: Python 3.11 then waits for itself, for ever
    # (`threading._maintain_shutdown_locks`, https://github.com/python/cpython/pull/25226).
    with closing(items):
        for item in items:
            if isinstance(item, Failed):
                failed.append(item)
                on_failed(item.slice)
            else:
                on_page(item, _merge(this, item, cursor_after, preview, is_bulk=is_bulk))
                if is_bulk:
                    this.tell_progress()
    return failed


def read_in_order(this: Run[Any], slice_: Slice, *, resume_at: str | None, cursor_after: CursorAfter) -> None:
    """Read and merge one slice while its pages are in order, newest first. See `fetch_in_order`.

    Raises:
        ReconcilerError: the slice cannot be read.

    """
    for item in fetch_in_order(this.session, slice_, resume_at=resume_at, stop=this.stop):
        _merge(this, item, cursor_after, None, is_bulk=False)


def read_plan(
    this: Run[Any],
    plan: Plan,
    *,
    cursor: JobCursor,
    on_page: OnPage = _ignore_page,
    preview: Callable[[Fetched], Merged] | None = None,
) -> list[Failed]:
    """Read and merge the slices left in `plan`. Each page commits with `cursor`, which holds the plan."""

    def move(item: Fetched) -> JobCursor:
        plan.move(item)
        return cursor

    settled = this.now() - _STARTS_MOVE_FOR

    def is_independent(slice_: Slice) -> bool:
        # Until Twilio has answered once, three listings show as well as thirty that it is away.
        return this.session.client.has_worked and slice_.listing.status is None and slice_.until <= settled

    def cut_day(item: Fetched) -> tuple[Slice, ...]:
        # A preview would tell the calls of the first page twice.
        hours = () if preview is not None else cut(item.slice, item.page, at_once=this.session.concurrency)
        return hours if hours and this.session.counts_time(item.slice.listing.account_sid, item.page) else ()

    return read(
        this,
        plan.others(this.session.concurrency, this.session.page_size),
        first=plan.open_calls(),
        resume_at=plan.state.begun,
        cursor_after=move,
        on_page=on_page,
        on_failed=plan.split,
        preview=preview,
        is_bulk=True,
        is_independent=is_independent,
        cut=cut_day,
    )


def describe(failed: Sequence[Failed]) -> str | None:
    """Return in one line why slices were not read; None if all were."""
    if not failed:
        return None
    reasons = "; ".join(sorted({str(failure.error) for failure in failed}))
    return f"{sum(len(failure.slice.parts) or 1 for failure in failed)} slices were not read: {reasons}"


def _merge(
    this: Run[Any],
    item: Fetched,
    cursor_after: CursorAfter,
    preview: Callable[[Fetched], Merged] | None,
    *,
    is_bulk: bool,
) -> Merged:
    # In a sweep an open call that has started is also in one of the days, and counted there.
    seen = item.slice.count(item.page) if is_bulk else None
    if item.hours:  # the page is read again, and counted then
        seen = 0
    cursor = cursor_after(item)
    if preview is None:
        merged = this.merge_page(item.page, cursor=cursor, seen=seen, is_bulk=is_bulk)
    else:
        merged = preview(item)
        this.counts.count_page(merged, seen=seen)
        telemetry.report_page(merged, item.page.dead_letters, is_bulk=is_bulk)
    if is_bulk:
        _count_slices(this.counts, item)
    return merged


def _count_slices(counts: Counts, item: Fetched) -> None:
    if item.hours:
        counts.slices += len(item.hours) - len(item.slice.parts)
    elif item.next_uri is None:
        counts.slices_done += len(item.slice.parts) or 1

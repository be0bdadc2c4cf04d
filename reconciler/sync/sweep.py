"""Working through slices: each page one commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from reconciler.database.transaction import Cursor, Merged
from reconciler.sync.fetch import Failed, Fetched, fetch
from reconciler.sync.plan import Plan
from reconciler.sync.run import Run
from reconciler.sync.slices import Slice
from reconciler.twilio.client import Session


def work_through(
    this: Run,
    slices: Iterable[Slice],
    *,
    living: Sequence[Slice] = (),
    resume_at: Mapping[str, str | None] | None = None,
    source: Session,
    move: Callable[[Fetched], dict[str, Any]],
    on_page: Callable[[Fetched, Merged], None] = lambda _item, _merged: None,
    on_failed: Callable[[Slice], None] = lambda _slice: None,
    merge: Callable[[Fetched], Merged] | None = None,
) -> list[Failed]:
    """Read and merge the `living`, then `slices`, and return what failed; ends early on `stop`. See `fetch`.

    `move` is told of each page before it is merged, and returns the job's cursor that commits with it, `on_failed` of
    each slice that could not be read; `merge` replaces the merge, for a preview.

    Raises:
        Refused: Twilio or the database does.
        Retriable: the database stayed away.

    """
    failed = []
    for item in fetch(
        source, slices, living=living, resume_at=resume_at, concurrency=source.concurrency, stop=this.stop
    ):
        if isinstance(item, Failed):
            failed.append(item)
            on_failed(item.slice)
            continue
        cursor = Cursor(this.job, move(item))
        if merge is not None:
            merged = merge(item)
            this.totals.add(merged, seen=item.slice.count(item.page))
            this.report(merged, item.page.dead_letters, is_bulk=True)
        else:
            merged = this.merge(item.page, cursor=cursor, seen=item.slice.count(item.page), is_bulk=True)
        on_page(item, merged)
    return failed


def work_through_plan(
    this: Run,
    plan: Plan,
    *,
    source: Session,
    cursor: Callable[[], dict[str, Any]],
    on_page: Callable[[Fetched, Merged], None] = lambda _item, _merged: None,
    merge: Callable[[Fetched], Merged] | None = None,
) -> list[Failed]:
    """`work_through` what `plan` still holds; `cursor` gives the job's cursor, the plan in it, after each page."""

    def move(item: Fetched) -> dict[str, Any]:
        plan.move(item)
        return cursor()

    return work_through(
        this, plan.others(source.concurrency), living=plan.living(), resume_at=plan.open, source=source, move=move,
        on_page=on_page, on_failed=plan.split, merge=merge,
    )  # fmt: skip


def describe(failed: Sequence[Failed]) -> str | None:
    """Why slices were not read, in one line; None if all were."""
    if not failed:
        return None
    reasons = "; ".join(sorted({str(failure.error) for failure in failed}))
    return f"{sum(len(failure.slice.parts) or 1 for failure in failed)} slices were not read: {reasons}"

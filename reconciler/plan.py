"""A sweep's plan, and working through it: which slices are read, which are under way, each page one commit.

Design rules
- A page commits with the cursor that holds the plan, so a run goes on where a killed one stopped and reads no page
  again but those that were under way.
- A slice that fails leaves the others alone; what was not read is still in the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from reconciler.runs import Run
from reconciler.source import Source
from reconciler.sweep import Failed, Fetched, Slice, fetch, slices_of
from reconciler.transaction import Cursor, Merged


@dataclass(slots=True)
class Plan:
    """The slices of a sweep and how far each has come.

    `bounds` are the window's start, the end it was begun with, and each end it was extended to. `done` names slices,
    `open` maps those under way to their next page.
    """

    account_sid: str
    bounds: list[datetime]
    done: list[str] = field(default_factory=list)
    open: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, account_sid: str, value: dict[str, Any]) -> Plan:
        """The plan that `as_json` wrote."""
        bounds = [datetime.fromisoformat(bound) for bound in value["bounds"]]
        return cls(account_sid, bounds, list(value["done"]), dict(value["open"]))

    def as_json(self) -> dict[str, Any]:
        """What a cursor keeps of it."""
        return {"bounds": [bound.isoformat() for bound in self.bounds], "done": self.done, "open": self.open}

    @property
    def slices(self) -> list[Slice]:
        """All slices, in the order they are read in."""
        return [
            slice_
            for since, until in zip(self.bounds, self.bounds[1:], strict=False)
            for slice_ in slices_of(self.account_sid, since, until)
        ]

    def todo(self) -> list[Slice]:
        """The slices that were not read to their end."""
        done = set(self.done)
        return [slice_ for slice_ in self.slices if slice_.name not in done]

    def move(self, item: Fetched) -> None:
        """Note that `item` is about to be merged."""
        if item.next_uri is None:
            self.open.pop(item.slice.name, None)
            self.done.append(item.slice.name)
        else:
            self.open[item.slice.name] = item.next_uri


def work_through(
    this: Run,
    plan: Plan,
    *,
    source: Source,
    cursor: Callable[[], dict[str, Any]],
    todo: Sequence[Slice] | None = None,
    on_page: Callable[[Fetched, Merged], None] = lambda _item, _merged: None,
    merge: Callable[[Fetched], Merged] | None = None,
) -> list[Failed]:
    """Read and merge what `plan` still holds (or `todo` of it), and return what failed; ends early on `stop`.

    `cursor` gives the job's cursor, the plan in it, after each page; `merge` replaces the merge, for a preview.

    Raises:
        Refused: Twilio or the database does.
        Retriable: the database stayed away.

    """
    failed = []
    slices = plan.todo() if todo is None else todo
    for item in fetch(source, slices, resume_at=plan.open, concurrency=source.pacer.ceiling, stop=this.stop):
        if isinstance(item, Failed):
            failed.append(item)
            continue
        plan.move(item)
        if merge is not None:
            merged = merge(item)
            this.totals.add(merged, seen=item.slice.count(item.page))
            this.report(merged, item.page.dead_letters, is_bulk=True)
        else:
            merged = this.merge(
                item.page, cursor=Cursor(this.job, cursor()), seen=item.slice.count(item.page), is_bulk=True
            )
        on_page(item, merged)
    return failed


def describe(failed: Sequence[Failed]) -> str | None:
    """Why slices were not read, in one line; None if all were."""
    if not failed:
        return None
    reasons = "; ".join(sorted({str(failure.error) for failure in failed}))
    return f"{len(failed)} slices were not read: {reasons}"

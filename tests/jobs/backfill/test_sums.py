"""The counts of several accounts, and of the slices of a fleet, add up."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta

from reconciler.jobs.backfill import READ, BackfillCounts
from reconciler.jobs.backfill_slice import counts_in
from reconciler.model import Gap
from reconciler.sync.cursors import SliceCursor
from tests.harness.names import NOW

NUMBERS = [each.name for each in fields(BackfillCounts) if type(each.default) in (int, float)]


def counts_of(number: int) -> BackfillCounts:
    """Return counts that are all the same number."""
    counts = BackfillCounts()
    for name in NUMBERS:
        setattr(counts, name, number)
    return counts


def test_every_number_adds_up():
    """A number that a later version adds is summed too."""
    total = counts_of(2)
    total.add(counts_of(3))
    assert {name: getattr(total, name) for name in NUMBERS} == dict.fromkeys(NUMBERS, 5)


def test_gaps_add_up_by_kind_and_the_longest_lag_counts():
    total, other = BackfillCounts(lag=timedelta(seconds=5)), BackfillCounts(lag=timedelta(seconds=3), resumed=True)
    total.gaps[Gap.MISSING] = 1
    other.gaps.update({Gap.MISSING: 2, Gap.STALE: 4})
    total.add(other)
    assert total.gaps == {Gap.MISSING: 3, Gap.STALE: 4}
    assert (total.lag, total.resumed) == (timedelta(seconds=5), True)


def test_the_cursor_of_a_slice_counts_no_slices():
    """The plan of the backfill counts them. A cursor of an older version counts them too, as decimal numbers."""
    counts = dict.fromkeys([*READ, "slices", "slices_done", "seconds"], 3.0)
    cursor = SliceCursor(
        since=NOW, until=NOW, done=0, pending_windows=[], begun={}, counts=counts, gaps={"stale": 2}
    )  # fmt: skip
    found = counts_in(cursor)
    assert {name: getattr(found, name) for name in READ} == dict.fromkeys(READ, 3)
    assert (found.slices, found.slices_done, found.gaps) == (0, 0, {Gap.STALE: 2})

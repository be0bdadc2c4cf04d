"""Which slices of an account the workers of a fleet read next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import ceil

import pytest

from reconciler.errors import Unavailable
from reconciler.jobs.backfill import Window, begin_or_go_on
from reconciler.model import JobName
from reconciler.service.backfill_queue import SliceTask
from reconciler.service.fleet_account import AHEAD, Account
from reconciler.sync.cursors import SliceCursor
from reconciler.sync.slices import slice_named, slice_of_hours
from tests.harness.names import ACCOUNT

NOW = datetime(2026, 6, 30, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)
AT_ONCE = 4
OPEN = {"queued", "ringing", "in-progress"}


def make_account(days: int = 60) -> Account:
    """An account of which nothing was read."""
    job = JobName("backfill", ACCOUNT, "fleet")
    cursor, _ = begin_or_go_on(job, None, ACCOUNT, Window(NOW - days * DAY, NOW, {}), NOW)
    return Account.of(ACCOUNT, job, cursor, resumed=False, at_once=AT_ONCE, now=NOW)


def draw_all(account: Account) -> list[SliceTask]:
    """Return the slices that may be read now."""
    tasks = []
    while (task := account.draw()) is not None:
        tasks.append(task)
    return tasks


def read(account: Account, task: SliceTask, calls_a_day: int) -> None:
    """Count a slice that a worker has read to its end."""
    slice_ = slice_named(ACCOUNT, task.slice)
    days = (slice_.until - slice_.since) / DAY if slice_.listing.status is None else 0
    account.settle(task.job, cursor_of(task, seen=round(calls_a_day * days)))


def cursor_after_a_page(task: SliceTask, **counts: int) -> SliceCursor:
    """Return the cursor of a slice after a page that another follows. The counts are those before the page."""
    slice_ = slice_named(ACCOUNT, task.slice)
    begun: dict[str, str | None] = {task.slice: "/2010-04-01/next"}
    return SliceCursor(
        since=slice_.since, until=slice_.until, done=0, pending_windows=[], begun=begun, counts=dict(counts)
    )  # fmt: skip


def cursor_of(task: SliceTask, *, seen: int, left: tuple[str, ...] = ()) -> SliceCursor:
    """Return the cursor of a slice that has ended."""
    slice_ = slice_named(ACCOUNT, task.slice)
    return SliceCursor(
        since=slice_.since, until=slice_.until, done=0, pending_windows=[], begun=dict.fromkeys(left), finished=True,
        counts={"seen": seen, "requests": 1},
    )  # fmt: skip


def read_open_calls(account: Account) -> list[SliceTask]:
    """Read what comes first, and the first page of each day that is read meanwhile; return the tasks of these days."""
    *first, a, b, c = draw_all(account)
    for task in (a, b, c):
        account.note(task.job, cursor_after_a_page(task))
    for task in first:
        read(account, task, 0)
    return [a, b, c]


def read_to_the_end(account: Account, calls_a_day: int) -> list[str]:
    """Read all slices, in the order in which they are drawn; return their names."""
    names, waiting = [], draw_all(account)
    while waiting:
        task = waiting.pop(0)
        names.append(task.slice)
        read(account, task, calls_a_day)
        waiting += draw_all(account)
    return names


def test_few_slices_are_begun_while_nothing_is_known_of_the_account():
    """Each has one day. The first pages tell how many days the next ones have."""
    account = make_account(days=400)
    begun = draw_all(account)
    assert {task.slice.partition("@")[0] for task in begun[:3]} == OPEN
    assert [len(slice_named(ACCOUNT, task.slice).parts) for task in begun[3:]] == [1, 1, 1]
    for task in begun[:3]:
        read(account, task, 0)
    assert len(draw_all(account)) == 4  # calls that were never dialled, today and yesterday
    account.note(begun[3].job, cursor_after_a_page(begun[3]))
    assert [len(slice_named(ACCOUNT, task.slice).parts) for task in draw_all(account)] == [10]


def test_no_more_slices_are_begun_than_the_budget_has_requests():
    """So later slices can use what earlier ones showed, however many workers there are."""
    account = make_account()
    read_open_calls(account)
    draw_all(account)
    assert len(account.under_way) == AHEAD * AT_ONCE


def test_the_recordings_of_a_busy_account_are_read_while_its_last_calls_are():
    """They are those whose calls have been read. A call of the day before may have made one."""
    account = make_account()
    waiting = draw_all(account)
    while not any(task.slice.startswith("recordings@") for task in waiting):
        read(account, waiting.pop(0), 1_000)
        waiting += draw_all(account)
    *calls, task = waiting
    later = slice_named(ACCOUNT, task.slice)
    assert later.until == NOW + timedelta(seconds=1)
    assert later.since == max(slice_named(ACCOUNT, other.slice).until for other in calls) + DAY
    assert task.is_urgent
    read(account, task, 0)
    assert draw_all(account) == []  # few days are left
    for other in calls:
        read(account, other, 1_000)
    (earlier,) = [slice_named(ACCOUNT, task.slice) for task in draw_all(account)]
    assert (earlier.since, earlier.until) == (NOW - 60 * DAY, later.since)


def test_the_recordings_that_are_left_are_read_by_pages():
    """Several workers read them at once: as many as the pages that come, if the days are like those before."""
    account = make_account()
    waiting = draw_all(account)
    while not any(task.slice.startswith("recordings@") for task in waiting):
        read(account, waiting.pop(0), 1_000)
        waiting += draw_all(account)
    *calls, task = waiting
    days = (NOW - slice_named(ACCOUNT, task.slice).since) / DAY
    account.note(task.job, cursor_after_a_page(task, recordings_seen=round(200 * days) - 1_500))
    for other in calls:
        read(account, other, 1_000)
    parts = [slice_named(ACCOUNT, task.slice) for task in draw_all(account)]
    assert len(parts) == ceil(200 * (60 - days) / 1_000) > 1
    assert [part.until for part in parts[1:]] == [part.since for part in parts[:-1]]
    assert parts[-1].since == NOW - 60 * DAY
    for job in list(account.under_way):
        account.settle(job, cursor_of(SliceTask(job, account.under_way[job].name), seen=0))
    assert account.plan.left == []
    assert account.counts.slices == account.counts.slices_done


@pytest.mark.parametrize("calls_a_day", [0, 10, 400])
def test_the_recordings_of_other_accounts_are_one_slice_after_all_calls(calls_a_day):
    """A request more would be many of theirs."""
    names = read_to_the_end(make_account(), calls_a_day)
    assert [name for name in names if name.startswith("recordings@")] == names[-1:]


def test_the_parts_of_a_slice_that_a_worker_cut_are_read_in_its_place():
    """They are the next ones; the plan is done when they are, and the slices add up."""
    account = make_account(days=10)
    busy, *_ = read_open_calls(account)
    draw_all(account)
    day = slice_named(ACCOUNT, busy.slice)
    hours = [slice_of_hours(ACCOUNT, day.since + hour * DAY / 4, day.since + (hour + 1) * DAY / 4) for hour in range(4)]
    account.settle(busy.job, cursor_of(busy, seen=0, left=tuple(part.name for part in hours)))
    assert [task.slice for task in draw_all(account)] == [hours[-1].name]  # there is room for one slice more
    for job in list(account.under_way):
        account.settle(job, cursor_of(SliceTask(job, account.under_way[job].name), seen=1))
    read_to_the_end(account, 1)
    assert account.plan.left == []
    assert account.counts.slices == account.counts.slices_done
    assert account.is_drained


def test_after_three_failures_in_a_row_all_that_was_not_begun_has_failed_the_recordings_too():
    """None of it is read: it stays in the plan, for the next time."""
    account = make_account(days=10)
    for task in draw_all(account):
        account.fail(task.job, Unavailable("away"))
    assert account.draw() is None
    account.give_up()
    assert draw_all(account) == []
    assert account.is_drained
    failed = {failure.slice.name for failure in account.counts.failed}
    assert failed >= {slice_.name for slice_ in account.plan.recordings()}
    assert len(account.counts.failed) == len(failed)
    parts = [part for failure in account.counts.failed for part in failure.slice.parts]
    assert sorted(parts) == sorted(account.plan.left)


def test_an_account_is_not_drained_while_a_slice_may_be_cut():
    """Its parts would be drawn next."""
    account = make_account(days=1)
    read_to_the_end(account, 1)
    assert account.is_drained
    again = make_account(days=10)
    tasks = draw_all(again)
    assert not again.is_drained
    read(again, tasks[0], 0)
    assert not again.is_drained

"""How a window is cut: every moment of it in exactly one slice, and few slices where few calls are."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st
from msgspec import convert

from reconciler.model import Observation, Page, Status, Via
from reconciler.sync.cursors import PlanCursor, encode
from reconciler.sync.fetch import Fetched
from reconciler.sync.plan import Plan
from reconciler.sync.slices import Slice, slice_of_days
from reconciler.twilio.listing import PAGE_SIZE
from tests.harness.names import ACCOUNT

NOW = datetime(2026, 6, 10, 12, 30, 15, 500_000, tzinfo=UTC)
DAY = timedelta(days=1)


def page(calls: int) -> Page:
    """A page of so many calls."""
    nothing = (None,) * 14
    call = Observation("CA" + 32 * "0", *nothing[:3], Status.COMPLETED, *nothing[:9], NOW, NOW, Via.REST)
    return Page([call] * calls, [], None, NOW)


def read_all(plan: Plan, calls_a_day: float, *, at_once: int) -> list[Slice]:
    """Read a plan to its end, one slice after another, each in one page; returns its slices of days."""
    days = []
    for slice_ in chain(plan.open_calls(), plan.others(at_once, PAGE_SIZE)):
        is_days = slice_.listing.status is None
        move(plan, Fetched(slice_, page(round(calls_a_day * len(slice_.parts)) if is_days else 0), None))
        days += [slice_] if is_days else []
    return days


def move(plan: Plan, item: Fetched) -> None:
    """Record that a page is merged."""
    with plan.moving(item):
        pass


def tile(slices: list[Slice]) -> list[tuple[datetime, datetime]]:
    """The windows that slices make up together, where one begins before the other ends."""
    windows: list[tuple[datetime, datetime]] = []
    for since, until in sorted((slice_.since, slice_.until) for slice_ in slices):
        if windows and windows[-1][1] >= since:
            windows[-1] = (windows[-1][0], max(until, windows[-1][1]))
        else:
            windows.append((since, until))
    return windows


@given(
    days=st.floats(0.001, 400), later=st.floats(0, 3), calls_a_day=st.floats(0, 50_000), at_once=st.integers(1, 16),
    stopped_after=st.integers(0, 30),
)  # fmt: skip
def test_every_moment_of_a_window_is_in_one_slice(days, later, calls_a_day, at_once, stopped_after):
    """This also holds after a kill, when the next run has extended the window."""
    plan = Plan.of(ACCOUNT, NOW - days * DAY, NOW)
    parts = plan.left
    assert len(parts) == len(set(parts))
    read = []
    for slice_, _ in zip(chain(plan.open_calls(), plan.others(at_once, PAGE_SIZE)), range(stopped_after), strict=False):
        move(plan, Fetched(slice_, page(round(calls_a_day)), None))
        read += [slice_] if slice_.listing.status is None else []
    taken_up = Plan.resume(ACCOUNT, convert(json.loads(encode(plan.state)), PlanCursor))
    assert (taken_up.left, taken_up.state.done) == (plan.left, plan.state.done)
    assert len(plan.left) + plan.state.done == len(parts)
    taken_up.extend(NOW + later * DAY)
    read += read_all(taken_up, calls_a_day, at_once=at_once)
    assert taken_up.left == []
    ((since, until),) = tile(read)
    assert (since, until) == (taken_up.state.since, taken_up.state.until)
    assert timedelta(0) <= NOW - days * DAY - since < timedelta(seconds=1)
    assert timedelta(0) <= until - (NOW + later * DAY) < timedelta(seconds=1)


def test_few_calls_take_few_slices():
    """With ten calls a day a year fits into some pages. With a hundred thousand a day is a slice of its own."""
    window = (ACCOUNT, NOW - 400 * DAY, NOW)
    assert len(read_all(Plan.of(*window), 10, at_once=8)) <= 8 + 5
    assert len(read_all(Plan.of(*window), 0, at_once=8)) <= 8 + 2
    assert len(read_all(Plan.of(*window), 100_000, at_once=8)) == 401


def test_there_is_something_to_read_for_each_at_once():
    """Where a slice holds several pages, those that are left are spread over all that are read at once."""
    slices = read_all(Plan.of(ACCOUNT, NOW - 100 * DAY, NOW), 2_000, at_once=8)
    assert max(len(slice_.parts) for slice_ in slices) == 5
    assert [len(slice_.parts) for slice_ in slices[-8:]] == [2, 1, 1, 1, 1, 1, 1, 1]


def first_page(slice_: Slice, calls: int, *, of: int) -> Fetched:
    """The first page of a slice with `of` calls, evenly spread: the newest `calls` of them."""
    gap = (slice_.until - slice_.since) / of
    times = [slice_.until - gap * number for number in range(1, calls + 1)]
    calls_of = zip(page(calls).observations, times, strict=True)
    newest = [call._replace(date_created=time, start_time=time) for call, time in calls_of]
    return Fetched(slice_, page(0)._replace(observations=newest), None if calls == of else "next")


def test_the_first_page_of_a_day_tells_how_many_days_the_next_slices_have():
    """As soon as it arrives: the day may have more pages, and is taken to be as busy as this one."""
    plan = Plan.of(ACCOUNT, NOW - 40 * DAY, NOW)
    others = plan.others(16, PAGE_SIZE)
    days = [
        slice_ for slice_ in (next(others) for _ in range(4)) if len(slice_.parts) == 1 and not slice_.listing.status
    ]
    assert not plan.knows_days
    plan.expect(first_page(days[-1], 1_000, of=2_000))
    assert plan.knows_days
    later = [slice_ for slice_ in others if slice_.listing.status is None]
    assert {len(slice_.parts) for slice_ in later[:-1]} == {3}  # an equal share of the forty days
    assert plan.calls_expected(NOW - DAY, NOW) == 0  # nothing was read yet


def test_a_slice_takes_no_more_days_than_its_pages_allow():
    """Days of 6,000 calls are read one by one, those of ten all together."""
    for calls, most in ((6_000, 1), (10, 25)):
        plan = Plan.of(ACCOUNT, NOW - 400 * DAY, NOW)
        others = plan.others(16, PAGE_SIZE)
        day = [next(others) for _ in range(3)][-1]
        plan.expect(first_page(day, min(1_000, calls), of=calls))
        assert max(len(slice_.parts) for slice_ in others) == most


def test_a_plan_that_is_extended_again_and_again_stays_small():
    """A slice that was not begun is there once: the open calls, and the days up to now."""
    plan = Plan.of(ACCOUNT, NOW - 3 * DAY, NOW)
    for minute in range(60):
        plan.extend(NOW + timedelta(minutes=minute))
    assert (len(plan.state.begun), len(plan.state.pending_windows)) == (5, 1)
    assert tile(read_all(plan, 10, at_once=8)) == [(plan.state.since, plan.state.until)]


def test_days_that_could_not_be_read_together_are_tried_alone_and_last():
    """One of them may never be read, and keeps no other from it."""
    plan = Plan.of(ACCOUNT, NOW - 60 * DAY, NOW)
    for bad in chain(plan.open_calls(), plan.others(8, PAGE_SIZE)):
        if len(bad.parts) > 1:
            break
        move(plan, Fetched(bad, page(10 if bad.listing.status is None else 0), None))
    plan.split(bad)
    read = set(Plan.of(ACCOUNT, NOW - 60 * DAY, NOW).left) - set(plan.left)
    assert set(bad.parts) <= set(plan.left)
    days = read_all(Plan.resume(ACCOUNT, plan.state), 10, at_once=8)
    assert [slice_.name for slice_ in days[-len(bad.parts) :]] == list(bad.parts)
    assert {part for slice_ in days for part in slice_.parts} | {name for name in read if "@" not in name} == set(
        slice_of_days(ACCOUNT, plan.state.since, plan.state.until).parts
    )


def test_the_place_of_a_plan_stays_small():
    """It is written with every page: it names what is under way, and not all that was read."""
    plan = Plan.of(ACCOUNT, NOW - 400 * DAY, NOW)
    read_all(plan, 100_000, at_once=8)
    assert len(encode(plan.state)) < 200

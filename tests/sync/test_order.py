"""The order of the slices of a sweep: which is begun next, and whose pages are handled."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from reconciler.model import Status
from reconciler.sync.order import Order
from reconciler.sync.slices import Slice, slice_by_status, slice_of_days, slice_of_hours, slice_of_recordings
from reconciler.twilio.budget import START

ACCOUNT = "AC" + 32 * "1"
DAY = timedelta(days=1)
TODAY = datetime(2026, 6, 10, tzinfo=UTC)
RINGING, QUEUED = (
    slice_by_status(ACCOUNT, status, TODAY - 3 * DAY, TODAY) for status in (Status.RINGING, Status.QUEUED)
)
DAYS = [slice_of_days(ACCOUNT, TODAY - (number + 1) * DAY, TODAY - number * DAY) for number in range(3)]
RECORDINGS = slice_of_recordings(ACCOUNT, TODAY - 3 * DAY, TODAY)


def drawn(order: Order) -> list[Slice]:
    """Draw until the order has nothing that may begin."""
    slices = []
    while (slice_ := order.draw()) is not None:
        slices.append(slice_)
    return slices


def test_the_others_wait_for_the_first_unless_they_are_independent():
    """The days that wait come next when the first slices are read, before those that were not looked at."""
    order = Order(DAYS, first=[RINGING, QUEUED], is_independent=lambda slice_: slice_ is DAYS[1])
    assert drawn(order) == [RINGING, QUEUED, DAYS[1]]
    assert not order.end(RINGING)
    assert drawn(order) == []
    assert order.end(QUEUED)
    assert drawn(order) == [DAYS[0], DAYS[2]]


def test_parts_of_an_independent_slice_are_independent():
    """They begin while the first slices are read, and before any other slice."""
    order = Order(DAYS, first=[RINGING], is_independent=lambda slice_: slice_ is not DAYS[0])
    assert drawn(order) == [RINGING, DAYS[1], DAYS[2]]
    parts = [
        slice_of_hours(ACCOUNT, TODAY - 2 * DAY, TODAY - DAY * 3 / 2),
        slice_of_hours(ACCOUNT, TODAY - DAY * 3 / 2, TODAY - DAY),
    ]
    order.insert(parts, instead_of=DAYS[1])
    assert drawn(order) == parts
    order.end(RINGING)
    assert drawn(order) == [DAYS[0]]


def test_the_last_begin_when_no_other_is_left_to_begin():
    """Their pages are handled when all others are read."""
    order = Order(DAYS, first=[RINGING], last=[RECORDINGS])
    assert drawn(order) == [RINGING]
    order.end(RINGING)
    assert drawn(order) == [*DAYS, RECORDINGS]
    assert all(order.is_turn_of(day) for day in DAYS)
    for day in DAYS:
        assert not order.is_turn_of(RECORDINGS)
        order.end(day)
    assert order.is_turn_of(RECORDINGS)


def test_the_rest_of_the_last_begins_when_there_is_room():
    """The first of them begins before: its first page shows whether it must be cut."""
    others = [slice_of_recordings(ACCOUNT, TODAY - number * DAY, TODAY) for number in (1, 2)]
    order = Order(DAYS, last=[RECORDINGS, *others])
    assert order.draw_last() is None
    assert drawn(order) == [*DAYS, RECORDINGS]
    assert [order.draw_last() for _ in range(3)] == [*others, None]


def test_few_slices_begin_before_a_page_has_told_how_large_they_may_be():
    """When one of them has failed or was read to its end, another begins: some page will tell."""
    known = False
    days = [slice_of_days(ACCOUNT, TODAY - (number + 1) * DAY, TODAY - number * DAY) for number in range(START + 3)]
    order = Order(days, last=[RECORDINGS], knows_size=lambda: known)
    assert drawn(order) == days[:START]
    assert order.is_blind
    order.end(days[0])
    assert drawn(order) == days[START : START + 1]
    known = True
    assert not order.is_blind
    assert drawn(order) == [*days[START + 1 :], RECORDINGS]


def test_slices_that_replace_one_take_its_place():
    """Parts of a day come before the other days. Parts of recordings wait as the whole did."""
    order = Order(DAYS[:2], last=[RECORDINGS])
    assert order.draw() is DAYS[0]
    order.insert([DAYS[2]], instead_of=DAYS[0])
    order.end(DAYS[0])
    assert drawn(order) == [DAYS[2], DAYS[1], RECORDINGS]
    parts = [slice_of_recordings(ACCOUNT, TODAY - number * DAY, TODAY) for number in (1, 2)]
    order.insert(parts, instead_of=RECORDINGS)
    order.end(RECORDINGS)
    assert drawn(order) == []
    assert [order.draw_last() for _ in range(3)] == [*parts, None]
    order.end(DAYS[1])
    assert not order.is_turn_of(parts[0])
    order.end(DAYS[2])
    assert order.is_turn_of(parts[0])


def test_the_rest_is_all_that_was_not_begun():
    """Afterwards no slice is left to begin."""
    order = Order(DAYS, first=[RINGING, QUEUED], last=[RECORDINGS])
    assert order.draw() is RINGING
    assert list(order.rest()) == [QUEUED, *DAYS, RECORDINGS]
    assert drawn(order) == []

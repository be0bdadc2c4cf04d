"""How many requests to Twilio run at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.errors import (
    Refused,
)
from reconciler.twilio.concurrency import Gate, Ticket


def enter(gate: Gate) -> Ticket:
    """The ticket of a request that came and went."""
    with gate.slot() as ticket:
        return ticket


def test_a_burst_of_429_halves_once():
    """Eight requests under way together and refused together are one sign, not eight."""
    gate = Gate(8)
    tickets = [enter(gate) for _ in range(8)]
    for ticket in tickets:
        gate.throttled(ticket)
    assert 4 == gate.limit


def test_a_burst_tells_how_many_were_too_many():
    """Two of eight are refused: the gate grows to six, and stays there for sixteen rounds."""
    gate = Gate(8)
    for ticket in [enter(gate) for _ in range(8)][:2]:
        gate.throttled(ticket)
    for _ in range(4 + 5 + 6 * 16 - 1):
        gate.succeeded(enter(gate))
    assert 6 == gate.limit
    gate.succeeded(enter(gate))
    assert 7 == gate.limit


def test_each_later_429_halves_again_but_never_below_one():
    """At one request at a time the waits must do the rest."""
    gate = Gate(8)
    limits = []
    for _ in range(5):
        gate.throttled(enter(gate))
        limits.append(gate.limit)
    assert [4, 2, 1, 1, 1] == limits


def test_a_round_of_successes_raises_by_one_up_to_the_ceiling():
    """Four answers at a limit of four make five, and so on, never above what was configured."""
    gate = Gate(6)
    gate.throttled(enter(gate))
    limits = []
    for _ in range(120):
        gate.succeeded(enter(gate))
        limits.append(gate.limit)
    assert [3, 3, 4, 4, 4, 4, 5] == limits[:7]
    assert {5} == set(limits[7 : 7 + 16 * 5 - 1])  # six was refused: it is tried again after sixteen rounds
    assert {6} == set(limits[7 + 16 * 5 - 1 :])


def test_answers_to_what_was_sent_before_a_429_raise_nothing():
    """They tell of the concurrency that was too much."""
    gate = Gate(8)
    before = [enter(gate) for _ in range(8)]
    gate.throttled(before[0])
    for ticket in before[1:]:
        gate.succeeded(ticket)
    assert 4 == gate.limit


def test_our_own_requests_are_not_taken_for_those_of_others():
    """Threads send in any order: the request that got its place first may reach Twilio last of eight."""
    gate = Gate(8)
    with ExitStack() as requests:
        first, *_ = [requests.enter_context(gate.slot()) for _ in range(8)]
        gate.hear(first, 8)
        gate.succeeded(first)
        assert 8 == gate._share.most
        gate.hear(first, 11)
        gate.succeeded(first)
        assert 8 - 3 == gate._share.limit


@given(st.integers(1, 100), st.lists(st.booleans(), max_size=200))
def test_the_limit_stays_between_one_and_the_ceiling(ceiling, answers):
    """Twilio's answers come in any order."""
    gate = Gate(ceiling)
    for is_good in answers:
        (gate.succeeded if is_good else gate.throttled)(enter(gate))
        assert 1 <= gate.limit <= ceiling


def test_no_more_run_at_once_than_the_limit():
    """The rest waits for a place, and gets one when another leaves."""
    gate = Gate(2)
    inside, both_in, leave = [], threading.Semaphore(0), threading.Event()

    def work(number: int) -> int:
        with gate.slot():
            inside.append(number)
            both_in.release()
            assert leave.wait(10)
        return number

    with ThreadPoolExecutor(5) as pool:
        done = pool.map(work, range(5))
        assert both_in.acquire(timeout=10)
        assert both_in.acquire(timeout=10)
        assert not both_in.acquire(timeout=0.05)
        assert 2 == len(inside)
        leave.set()
        assert [0, 1, 2, 3, 4] == list(done)


@pytest.mark.parametrize(("limit", "share"), [(1, 1), (2, 1), (3, 2), (4, 3), (8, 6)])
def test_bulk_work_gets_three_quarters_where_other_work_asks(limit, share):
    """A place at least is left to the rest, unless there is but one."""
    gate = Gate(limit)
    enter(gate)
    with ExitStack() as running:
        for _ in range(share):
            running.enter_context(gate.slot(is_bulk=True))
        assert not gate._has_place(is_bulk=True)
        for _ in range(limit - share):
            running.enter_context(gate.slot())
        assert not gate._has_place(is_bulk=False)


def test_bulk_work_alone_gets_all():
    """No other work needs a share."""
    gate = Gate(8)
    with ExitStack() as running:
        for _ in range(8):
            running.enter_context(gate.slot(is_bulk=True))
        assert not gate._has_place(is_bulk=True)


def test_bulk_work_takes_up_no_more_than_a_429_left():
    """Its share is of the limit in force."""
    gate = Gate(8)
    gate.throttled(enter(gate))
    with ExitStack() as running:
        for _ in range(3):
            running.enter_context(gate.slot(is_bulk=True))
        assert not gate._has_place(is_bulk=True)


def test_bulk_work_that_waits_goes_on_when_bulk_work_leaves():
    """Its place is given back, also when the request failed."""
    gate = Gate(3)
    entered = threading.Event()

    def wait_for_a_place() -> None:
        with gate.slot(is_bulk=True):
            entered.set()

    with ThreadPoolExecutor(1) as pool, ExitStack() as others:
        for _ in range(2):
            others.enter_context(gate.slot(is_bulk=True))
        with pytest.raises(Refused), gate.slot(is_bulk=True):
            waiting = pool.submit(wait_for_a_place)
            assert not entered.wait(0.05)
            raise Refused("no")
        waiting.result(timeout=10)
    assert (0, 0) == (gate._running, gate._running_in_bulk)


def test_a_place_is_given_back_when_a_request_fails():
    """Otherwise the program would stop after as many failures as there are places."""
    gate = Gate(1)
    for _ in range(3):
        with pytest.raises(Refused), gate.slot():
            raise Refused("no")
    assert 0 == enter(gate).lowerings

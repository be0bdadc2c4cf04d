"""How many requests run at once, and when a failed one is repeated."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler import retry
from reconciler.errors import (
    ConnectionLost,
    CredentialsDoubted,
    FilterIgnored,
    RateLimited,
    Refused,
    Retriable,
    Unavailable,
)
from reconciler.retry import retrying
from reconciler.twilio.concurrency import Pacer


def enter(pacer: Pacer) -> int:
    """The ticket of a request that came and went."""
    with pacer.slot() as ticket:
        return ticket


def test_a_burst_of_429_halves_once():
    """Eight requests under way together and refused together are one sign, not eight."""
    pacer = Pacer(8)
    tickets = [enter(pacer) for _ in range(8)]
    for ticket in tickets:
        pacer.throttled(ticket)
    assert 4 == pacer.limit


def test_each_later_429_halves_again_but_never_below_one():
    """At one request at a time the waits must do the rest."""
    pacer = Pacer(8)
    limits = []
    for _ in range(5):
        pacer.throttled(enter(pacer))
        limits.append(pacer.limit)
    assert [4, 2, 1, 1, 1] == limits


def test_a_round_of_successes_raises_by_one_up_to_the_ceiling():
    """Four answers at a limit of four make five, and so on, never above what was configured."""
    pacer = Pacer(6)
    pacer.throttled(enter(pacer))
    limits = []
    for _ in range(40):
        pacer.succeeded(enter(pacer))
        limits.append(pacer.limit)
    assert [3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6] == limits[:12]
    assert {6} == set(limits[12:])


def test_answers_to_what_was_sent_before_a_429_raise_nothing():
    """They tell of the concurrency that was too much."""
    pacer = Pacer(8)
    before = [enter(pacer) for _ in range(8)]
    pacer.throttled(before[0])
    for ticket in before[1:]:
        pacer.succeeded(ticket)
    assert 4 == pacer.limit


@given(st.integers(1, 100), st.lists(st.booleans(), max_size=200))
def test_the_limit_stays_between_one_and_the_ceiling(ceiling, answers):
    """Whatever Twilio answers, in whatever order."""
    pacer = Pacer(ceiling)
    for is_good in answers:
        (pacer.succeeded if is_good else pacer.throttled)(enter(pacer))
        assert 1 <= pacer.limit <= ceiling


def test_no_more_run_at_once_than_the_limit():
    """The rest waits for a place, and gets one when another leaves."""
    pacer = Pacer(2)
    inside, both_in, leave = [], threading.Semaphore(0), threading.Event()

    def work(number: int) -> int:
        with pacer.slot():
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


@pytest.mark.parametrize(("limit", "share"), [(1, 1), (2, 1), (3, 2), (4, 3), (8, 6), (9, 7), (100, 75)])
def test_bulk_work_gets_three_quarters_at_most(limit, share):
    """A place at least is left to the rest, unless there is but one."""
    pacer = Pacer(limit)
    with ExitStack() as running:
        while pacer._has_place(is_bulk=True):
            running.enter_context(pacer.slot(is_bulk=True))
        assert share == pacer._running
        assert (share < limit) == pacer._has_place(is_bulk=False)
        while pacer._has_place(is_bulk=False):
            running.enter_context(pacer.slot())
        assert limit == pacer._running


def test_bulk_work_takes_up_no_more_than_a_429_left():
    """Its share is of the limit in force."""
    pacer = Pacer(8)
    pacer.throttled(enter(pacer))
    with ExitStack() as running:
        while pacer._has_place(is_bulk=True):
            running.enter_context(pacer.slot(is_bulk=True))
        assert 3 == pacer._running


def test_bulk_work_that_waits_goes_on_when_bulk_work_leaves():
    """Its place is given back, also when the request failed."""
    pacer = Pacer(4)
    entered = threading.Event()

    def wait_for_a_place() -> None:
        with pacer.slot(is_bulk=True):
            entered.set()

    with ThreadPoolExecutor(1) as pool, ExitStack() as others:
        for _ in range(2):
            others.enter_context(pacer.slot(is_bulk=True))
        with pytest.raises(Refused), pacer.slot(is_bulk=True):
            waiting = pool.submit(wait_for_a_place)
            assert not entered.wait(0.05)
            raise Refused("no")
        waiting.result(timeout=10)
    assert (0, 0) == (pacer._running, pacer._running_in_bulk)


def test_a_place_is_given_back_when_a_request_fails():
    """Else the program would stand still after as many failures as there are places."""
    pacer = Pacer(1)
    for _ in range(3):
        with pytest.raises(Refused), pacer.slot():
            raise Refused("no")
    assert 0 == enter(pacer)


class Waits:
    """Fails with `errors`, one after the other, then answers; notes the waits in between instead of waiting."""

    def __init__(self, *errors: Exception, stop: threading.Event | None = None) -> None:
        self.errors = list(errors)
        self.seconds: list[float] = []
        self.announced: list[tuple[str, int, float]] = []
        policy = retrying(stop or threading.Event(), before_sleep=self._announce)
        self.run = lambda: policy.copy(sleep=self.seconds.append)(self._fail_or_answer)

    def _announce(self, error: Retriable, attempt: int, wait: float) -> None:
        self.announced.append((str(error), attempt, wait))

    def _fail_or_answer(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def test_waits_double_with_jitter_up_to_half_a_minute():
    """Each wait lies between half its step and all of it."""
    waits = Waits(*(Unavailable("HTTP 503") for _ in range(9)))
    assert "answer" == waits.run()
    steps = [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert all(step / 2 <= wait <= step for wait, step in zip(waits.seconds, steps, strict=True))
    assert [("HTTP 503", n, wait) for n, wait in enumerate(waits.seconds, start=1)] == waits.announced


def test_waits_differ_from_run_to_run():
    """Else all requests that failed together come again together."""
    runs = [Waits(Unavailable("no")) for _ in range(8)]
    for waits in runs:
        waits.run()
    assert len({waits.seconds[0] for waits in runs}) > 1


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(Unavailable, 10), (RateLimited, 10), (ConnectionLost, 10), (FilterIgnored, 3), (CredentialsDoubted, 4)],
)
def test_each_kind_of_error_has_its_own_patience(error, attempts):
    """The last error comes out as it was."""
    waits = Waits(*(error(str(number)) for number in range(1, 20)))
    with pytest.raises(error, match=f"^{attempts}$"):
        waits.run()
    assert attempts - 1 == len(waits.seconds)


def test_one_kind_does_not_use_up_the_patience_for_another():
    """A 401 in the middle of an outage is the first 401, not the fifth failure of credentials."""
    outage = [Unavailable("HTTP 503") for _ in range(4)]
    assert "answer" == Waits(*outage, CredentialsDoubted("HTTP 401"), FilterIgnored("all")).run()


def test_all_kinds_together_are_bounded():
    """A request that fails in a new way each time is given up as well."""
    waits = Waits(*(kind(kind.__name__) for kind in (Unavailable, RateLimited, ConnectionLost, FilterIgnored) * 5))
    with pytest.raises(Retriable):
        waits.run()
    assert len(waits.seconds) <= 9


@pytest.mark.parametrize("error", [Refused("no"), ValueError("a bug")])
def test_what_cannot_heal_is_raised_at_once(error):
    """Without a second request."""
    waits = Waits(error)
    with pytest.raises(type(error)):
        waits.run()
    assert [] == waits.seconds


def test_the_first_repeat_after_a_lost_connection_is_at_once():
    """An idle connection that the peer closed says nothing of Twilio's health; losing the next one does."""
    waits = Waits(ConnectionLost("reset"), ConnectionLost("reset"))
    waits.run()
    assert 0 == waits.seconds[0]
    assert 0.5 <= waits.seconds[1] <= 1


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [(timedelta(seconds=7), 7, 7), (timedelta(hours=9), 300, 300), (timedelta(0), 0.25, 0.5), (None, 0.25, 0.5)],
)
def test_retry_after_is_obeyed_within_reason(said, least, most):
    """Never sooner than it says, never sooner than without it, and never later than five minutes."""
    waits = Waits(RateLimited("HTTP 429", retry_after=said))
    waits.run()
    assert least <= waits.seconds[0] <= most


def test_nothing_is_repeated_once_stopped():
    """Whoever wants to leave is not kept by an outage."""
    stop = threading.Event()
    stop.set()
    waits = Waits(Unavailable("HTTP 503"), stop=stop)
    with pytest.raises(Unavailable):
        waits.run()
    assert [] == waits.seconds


def test_four_minutes_are_the_end(monkeypatch):
    """However many attempts are left."""
    monkeypatch.setattr(retry, "GIVE_UP_AFTER", timedelta(0))
    waits = Waits(Unavailable("HTTP 503"))
    with pytest.raises(Unavailable):
        waits.run()

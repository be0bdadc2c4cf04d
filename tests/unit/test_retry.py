"""Which failed requests are repeated, after which waits, and when the repeats end."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

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
    """Otherwise all requests that failed together would come again together."""
    runs = [Waits(Unavailable("no")) for _ in range(8)]
    for waits in runs:
        waits.run()
    assert len({waits.seconds[0] for waits in runs}) > 1


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(Unavailable, 10), (RateLimited, 10), (ConnectionLost, 10), (FilterIgnored, 3), (CredentialsDoubted, 4)],
)
def test_each_kind_of_error_has_its_own_number_of_attempts(error, attempts):
    """The last error is raised unchanged."""
    waits = Waits(*(error(str(number)) for number in range(1, 20)))
    with pytest.raises(error, match=f"^{attempts}$"):
        waits.run()
    assert attempts - 1 == len(waits.seconds)


def test_one_kind_does_not_use_up_the_attempts_of_another():
    """A 401 in the middle of an outage is the first 401, not the fifth."""
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
    """There is no second request."""
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
    """A retry comes no sooner than it says or without it, and no later than after five minutes."""
    waits = Waits(RateLimited("HTTP 429", retry_after=said))
    waits.run()
    assert least <= waits.seconds[0] <= most


def test_nothing_is_repeated_once_stopped():
    """An outage does not delay a stop."""
    stop = threading.Event()
    stop.set()
    waits = Waits(Unavailable("HTTP 503"), stop=stop)
    with pytest.raises(Unavailable):
        waits.run()
    assert [] == waits.seconds


def test_four_minutes_are_the_end(monkeypatch):
    """Attempts may be left."""
    monkeypatch.setattr(retry, "GIVE_UP_AFTER", timedelta(0))
    waits = Waits(Unavailable("HTTP 503"))
    with pytest.raises(Unavailable):
        waits.run()

"""How often again: the retry policy."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Final

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_after_delay,
    stop_any,
    stop_when_event_set,
)
from tenacity.stop import stop_base

from reconciler.errors import RateLimited, Retriable

FIRST_WAIT: Final = 0.5  # seconds; doubled each time


LONGEST_WAIT: Final = 30.0  # seconds


LONGEST_RETRY_AFTER: Final = timedelta(minutes=5)


GIVE_UP_AFTER: Final = timedelta(minutes=4)


def retrying(
    stop: threading.Event,
    *,
    before_sleep: Callable[[Retriable, int, float], None],
    longest_wait: float | None = None,
    attempts: int | None = None,
) -> Retrying:
    """The policy for one request: repeat what is Retriable, with jitter, until it works, gives up or `stop` is set.

    Gives up when one kind of error came as many times as its `attempts` say, or after four minutes, and raises the
    last error. `before_sleep` is told the error, the number of the attempt and the wait in seconds. A wait ends early
    when `stop` is set; the attempt after it is the last. `longest_wait`, in seconds, and `attempts` replace what else
    bounds them, for what may be asked more often.
    """

    def announce(state: RetryCallState) -> None:
        wait = state.next_action.sleep if state.next_action else 0.0
        before_sleep(_error(state), state.attempt_number, wait)

    return Retrying(
        retry=retry_if_exception_type(Retriable),
        stop=stop_any(
            stop_after_attempt(attempts) if attempts else _StopAfterItsAttempts(),
            stop_after_delay(GIVE_UP_AFTER),
            stop_when_event_set(stop),
        ),
        wait=partial(_wait, longest=LONGEST_WAIT if longest_wait is None else min(longest_wait, LONGEST_WAIT)),
        sleep=sleep_using_event(stop),
        before_sleep=announce,
        reraise=True,
    )


class _StopAfterItsAttempts(stop_base):
    """Counts by kind: a 401 in the middle of an outage is still its first."""

    def __call__(self, state: RetryCallState) -> bool:
        error = _error(state)
        seen: Counter[type[Retriable]] = state.__dict__.setdefault("seen", Counter())
        seen[type(error)] += 1
        return seen[type(error)] >= error.attempts or state.attempt_number >= Retriable.attempts


def _wait(state: RetryCallState, *, longest: float) -> float:
    error = _error(state)
    # An idle connection that the peer had closed says nothing about Twilio's health: the first repeat is at once.
    if error.at_once and state.attempt_number == 1:
        return 0.0
    ceiling = min(longest, FIRST_WAIT * 2 ** (state.attempt_number - 1))
    wait = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - jitter, not cryptography
    if isinstance(error, RateLimited) and error.retry_after is not None:
        # Not before it says, but no sooner than without it: `Retry-After: 0` is no leave to hammer.
        return max(wait, min(error.retry_after, LONGEST_RETRY_AFTER).total_seconds())
    return wait


def _error(state: RetryCallState) -> Retriable:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, Retriable)
    return error

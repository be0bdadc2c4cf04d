"""The retry policy: how often, and after which waits, a request is repeated."""

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
    """Return the policy for one request: repeat it after a Retriable error, with jitter, until it succeeds.

    - It gives up, and raises the last error, after `attempts` errors of one kind (`Retriable.attempts`), or after
      four minutes.
    - `before_sleep` is called with the error, the number of the attempt and the wait in seconds.
    - When `stop` is set, a wait ends early, and the attempt after it is the last one.
    - `longest_wait` (seconds) and `attempts` override the defaults; the database is asked more often than Twilio.
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
    """Counts errors by kind: a 401 in the middle of an outage is the first 401."""

    def __call__(self, state: RetryCallState) -> bool:
        error = _error(state)
        seen: Counter[type[Retriable]] = state.__dict__.setdefault("seen", Counter())
        seen[type(error)] += 1
        return seen[type(error)] >= error.attempts or state.attempt_number >= Retriable.attempts


def _wait(state: RetryCallState, *, longest: float) -> float:
    error = _error(state)
    # A closed idle connection says nothing about Twilio's health, so the first repeat follows at once.
    if error.at_once and state.attempt_number == 1:
        return 0.0
    ceiling = min(longest, FIRST_WAIT * 2 ** (state.attempt_number - 1))
    wait = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - jitter, not cryptography
    if isinstance(error, RateLimited) and error.retry_after is not None:
        # Wait as long as Retry-After says, and never less than without it: `Retry-After: 0` must not mean no wait.
        return max(wait, min(error.retry_after, LONGEST_RETRY_AFTER).total_seconds())
    return wait


def _error(state: RetryCallState) -> Retriable:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, Retriable)
    return error

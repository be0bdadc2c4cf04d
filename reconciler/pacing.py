"""How fast we may ask, and how often again: the concurrency that a 429 lowers, and the retry policy.

Twilio's limit is on concurrent requests of the whole account, shared with everything else it runs, and its
size is not published (https://www.twilio.com/docs/api/errors/20429). So we look for it from below.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

from reconciler import metrics
from reconciler.errors import RateLimited, Retriable

FIRST_WAIT: Final = 0.5  # seconds; doubled each time
LONGEST_WAIT: Final = 30.0  # seconds
LONGEST_RETRY_AFTER: Final = timedelta(minutes=5)
GIVE_UP_AFTER: Final = timedelta(minutes=4)


class Pacer:
    """Lets at most `limit` requests run at once; a 429 halves the limit, a full round of successes raises it by one.

    Bulk work (backfill, cold) gets three quarters of the limit at most: what must keep its interval finds a place.
    """

    def __init__(self, limit: int) -> None:
        self.ceiling = limit
        self._limit = limit
        self._running = 0
        self._running_in_bulk = 0
        self._successes = 0
        self._lowerings = 0
        self._changed = threading.Condition()
        metrics.concurrency.set(limit)

    @property
    def limit(self) -> int:
        """The concurrency in force."""
        return self._limit

    @contextmanager
    def slot(self, *, is_bulk: bool = False) -> Iterator[int]:
        """Wait for a place; yields a ticket that `throttled` wants back."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_place(is_bulk=is_bulk))
            self._running += 1
            self._running_in_bulk += is_bulk
            ticket = self._lowerings
        try:
            yield ticket
        finally:
            with self._changed:
                self._running -= 1
                self._running_in_bulk -= is_bulk
                self._changed.notify_all()

    def _has_place(self, *, is_bulk: bool) -> bool:
        if self._running >= self._limit:
            return False
        return not is_bulk or self._running_in_bulk < max(1, self._limit - max(1, self._limit // 4))

    def throttled(self, ticket: int) -> None:
        """Halve the limit, once for all requests that were under way together: one burst is one sign."""
        with self._changed:
            if ticket == self._lowerings:
                self._lowerings += 1
                self._successes = 0
                self._limit = max(1, self._limit // 2)
                metrics.concurrency.set(self._limit)

    def succeeded(self, ticket: int) -> None:
        """Count an answer; as many as the limit since it was last changed raise it by one."""
        with self._changed:
            if ticket != self._lowerings:
                return  # what was sent before the limit was lowered says nothing about the lower one
            self._successes += 1
            if self._successes >= self._limit and self._limit < self.ceiling:
                self._successes = 0
                self._limit += 1
                metrics.concurrency.set(self._limit)
                self._changed.notify_all()


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

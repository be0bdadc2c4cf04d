"""How fast we may ask, and how often again: the concurrency that a 429 lowers, and the retry policy.

Twilio's limit is on concurrent requests of the whole account, shared with everything else it runs, and its
size is not published (https://www.twilio.com/docs/api/errors/20429). So we look for it from below.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from reconciler import metrics


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
        self._others = 0
        self._changed = threading.Condition()
        metrics.concurrency.set(limit)

    @property
    def limit(self) -> int:
        """The concurrency in force."""
        return self._limit

    @property
    def others(self) -> int:
        """Requests of the account that were not ours, by Twilio's last word on it."""
        return self._others

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

    def hear(self, load: int | None) -> None:
        """Note how many requests of the account were under way at Twilio, if an answer said so.

        Of these as many are ours as are under way here; the rest is others' (`Twilio-Concurrent-Requests`).
        """
        if load is not None:
            with self._changed:
                self._others = max(0, load - self._running)

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

"""The journal: a bounded log of the requests that the simulator received, for tests to count."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

from reconciler.simulator.messages import Request

MAX_ENTRIES = 200_000


@dataclass(slots=True)
class Entry:
    """One request and its outcome. `started` and `finished` are monotonic seconds."""

    method: str
    path: str
    params: list[tuple[str, str]]
    authorized: bool
    user_agent: str
    started: float
    finished: float | None = None
    status: int | None = None
    fault: str | None = None

    def param(self, name: str) -> str | None:
        """The value of a query parameter."""
        return dict(self.params).get(name)


class Journal:
    """The requests in order of arrival; thread-safe. It keeps the latest 200,000."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque(maxlen=MAX_ENTRIES)
        self._in_flight: Counter[str | None] = Counter()
        self._most: Counter[str | None] = Counter()
        self._by_outcome: Counter[str] = Counter()
        self.max_in_flight = 0

    def begin(self, request: Request, others: int = 0) -> tuple[Entry, int]:
        """Record an incoming request; return its entry and how many requests of its account are under way.

        The number includes the request itself and `others`, the requests of other programs.
        """
        headers = request.headers
        entry = Entry(
            request.method, request.path, list(request.params), "authorization" in headers,
            headers.get("user-agent", ""), time.monotonic(),
        )  # fmt: skip
        with self._lock:
            self._entries.append(entry)
            account = request.charged_to
            self._in_flight[account] += 1
            self._most[account] = max(self._most[account], self._in_flight[account])
            self.max_in_flight = max(self.max_in_flight, self._in_flight.total())
            return entry, self._in_flight[account] + others

    def max_in_flight_of(self, account_sid: str) -> int:
        """Return the largest number of requests of one account that were under way at once."""
        with self._lock:
            return self._most[account_sid]

    def end(self, request: Request, entry: Entry) -> None:
        """Record that a request has been answered."""
        with self._lock:
            entry.finished = time.monotonic()
            self._by_outcome[str(entry.fault or entry.status)] += 1
            self._in_flight[request.charged_to] -= 1

    def summary(self) -> dict[str, object]:
        """Return the number of requests by fault or status, and the largest number under way at once."""
        with self._lock:
            return {
                "requests": self._by_outcome.total(),
                "by_outcome": dict(self._by_outcome),
                "max_in_flight": self.max_in_flight,
                "max_in_flight_of": {str(account): most for account, most in self._most.items()},
            }

    def clear(self) -> None:
        """Forget the requests so far."""
        with self._lock:
            self._entries.clear()
            self._most.clear()
            self._by_outcome.clear()
            self.max_in_flight = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        with self._lock:
            return iter(list(self._entries))

    def __getitem__(self, index: int) -> Entry:
        with self._lock:
            return self._entries[index]

    def count(self, *, path_contains: str = "", status: int | None = None, **params: str) -> int:
        """Return how many requests had this text in their path, got this status and had these parameters.

        A parameter whose name is no Python name goes into a mapping: `count(**{"StartTime>": "2026-06-01"})`.
        """
        return sum(
            path_contains in entry.path
            and (status is None or entry.status == status)
            and params.items() <= dict(entry.params).items()
            for entry in self
        )

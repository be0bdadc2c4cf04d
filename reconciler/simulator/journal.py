"""What was asked of the simulator: a bounded log of requests, for tests to count."""

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
    """One request and how it was answered; `started` and `finished` are monotonic seconds."""

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
    """Every request in order of arrival; thread-safe. The oldest go when there are more than 200,000."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque(maxlen=MAX_ENTRIES)
        self._in_flight: Counter[str | None] = Counter()
        self.max_in_flight = 0

    def begin(self, request: Request) -> tuple[Entry, int]:
        """Note a request that came in; returns how many of its account are in flight now, itself included."""
        headers = request.headers
        entry = Entry(
            request.method, request.path, list(request.params), "authorization" in headers,
            headers.get("user-agent", ""), time.monotonic(),
        )  # fmt: skip
        with self._lock:
            self._entries.append(entry)
            self._in_flight[request.account_sid] += 1
            self.max_in_flight = max(self.max_in_flight, self._in_flight.total())
            return entry, self._in_flight[request.account_sid]

    def end(self, request: Request, entry: Entry) -> None:
        """Note that it has been answered."""
        with self._lock:
            entry.finished = time.monotonic()
            self._in_flight[request.account_sid] -= 1

    def clear(self) -> None:
        """Forget what was asked so far."""
        with self._lock:
            self._entries.clear()
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
        """How many requests had this in their path, got this status and carried these parameters.

        Parameters that are no Python names go in a mapping: `count(**{"StartTime>": "2026-06-01"})`.
        """
        return sum(
            path_contains in entry.path
            and (status is None or entry.status == status)
            and params.items() <= dict(entry.params).items()
            for entry in self
        )

"""The largest page that Twilio can answer, learned from failures, for each listing of an account.

A page of 1,000 calls is about 2 MB. Twilio, or a proxy before it, may always fail at such a page, with a 5xx or in
silence.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from reconciler.twilio.listing import PAGE_SIZE

SMALLEST: Final = 50  # Twilio's default page size
PATIENCE: Final = 4  # answers of one size before a size that failed is tried again; doubled each time it fails
MOST_PATIENCE: Final = 256


@dataclass(slots=True)
class _Learned:
    limit: int = PAGE_SIZE
    refused: int | None = None  # the size that failed last
    patience: int = PATIENCE
    answers_left: int = PATIENCE  # until `refused` is tried again

    def fail(self, size: int) -> None:
        if size <= SMALLEST:
            self.refused = None  # a failure at this size is not about the size: Twilio is away
        elif size <= self.limit:  # a larger one was under way when the limit was lowered
            if self.refused is not None and size >= self.refused:
                self.patience = min(2 * self.patience, MOST_PATIENCE)
            self.refused = size
            self.limit = max(SMALLEST, size // 2)
            self.answers_left = self.patience

    def answer(self, size: int) -> None:
        if size < self.limit or self.limit == PAGE_SIZE:
            return
        if self.refused is not None and size >= self.refused:
            self.refused, self.patience = None, PATIENCE
        if self.refused is not None and 2 * self.limit >= self.refused:
            self.answers_left -= 1
            if self.answers_left > 0:
                return
        self.limit = min(PAGE_SIZE, 2 * self.limit)
        self.answers_left = self.patience


class PageSizes:
    """The largest page to ask for, by the path of a listing; safe to use from several threads.

    A size that fails is halved, down to 50. It grows again at once if every size had failed, as in an outage. If one
    size had failed, it grows after some answers.
    """

    def __init__(self) -> None:
        self._learned: dict[str, _Learned] = {}
        self._lock = threading.Lock()

    def limit(self, resource: str) -> int | None:
        """Return the largest page to ask for; None if no page has failed, so that no path needs another size."""
        with self._lock:
            learned = self._learned.get(resource)
            return None if learned is None else learned.limit

    def failed(self, resource: str, size: int) -> None:
        """Record that a page of `size` ended in a 5xx, in no answer in time, or in an answer that was cut short."""
        with self._lock:
            self._learned.setdefault(resource, _Learned()).fail(size)

    def answered(self, resource: str, size: int) -> None:
        """Record that Twilio answered with a page of `size`."""
        with self._lock:
            if learned := self._learned.get(resource):
                learned.answer(size)

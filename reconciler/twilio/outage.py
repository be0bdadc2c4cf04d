"""The state of an outage of Twilio: sessions write it with each repeat, health and status read it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from reconciler.wording import waiting_for


class Wait(NamedTuple):
    """A failed request: the reason, its number of attempts, its next attempt, and the begin of the outage."""

    reason: str
    attempt: int
    next_at: datetime
    since: datetime

    def in_words(self, now: datetime) -> str:
        """Return the outage in words: `waiting for Twilio: HTTP 503, try 8, next in 18 s`."""
        left = (self.next_at - now).total_seconds()
        return waiting_for("Twilio", self.reason, attempt=self.attempt, seconds_left=left)


class Outage:
    """The latest failure since Twilio's last answer; safe to use from several threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._wait: Wait | None = None

    def failed(self, reason: str, *, attempt: int, wait: float) -> None:
        """Record that a request failed for the `attempt`th time and is repeated in `wait` seconds."""
        now = datetime.now(UTC)
        with self._guard:
            since = now if self._wait is None else self._wait.since
            self._wait = Wait(reason, attempt, now + timedelta(seconds=wait), since)

    def ended(self) -> None:
        """Record that Twilio answered."""
        self._wait = None

    def current(self) -> Wait | None:
        """Return the latest failure; None if Twilio has answered since."""
        return self._wait

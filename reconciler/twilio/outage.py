"""Whether Twilio answers: told by each request that is repeated, read by whoever shows how we are."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from reconciler.wording import waiting_for


class Wait(NamedTuple):
    """A request that failed: why, how often so far, when it is sent again, and since when none was answered."""

    reason: str
    attempt: int
    next_at: datetime
    since: datetime

    def said(self, now: datetime) -> str:
        """`waiting for Twilio: HTTP 503, try 8, next in 18 s`."""
        left = (self.next_at - now).total_seconds()
        return waiting_for("Twilio", self.reason, attempt=self.attempt, seconds_left=left)


class Outage:
    """The newest failure since Twilio last answered; used by many threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._wait: Wait | None = None

    def failed(self, reason: str, *, attempt: int, wait: float) -> None:
        """Note that a request failed for the `attempt`th time, and is sent again in `wait` seconds."""
        now = datetime.now(UTC)
        with self._guard:
            since = now if self._wait is None else self._wait.since
            self._wait = Wait(reason, attempt, now + timedelta(seconds=wait), since)

    def ended(self) -> None:
        """Note that Twilio answered."""
        self._wait = None

    def current(self) -> Wait | None:
        """The newest failure; None if Twilio answered since."""
        return self._wait

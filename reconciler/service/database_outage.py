"""The log of an outage of the database: neither silent nor a line for each try."""

from __future__ import annotations

import time
from typing import Final

from reconciler.logs import get_logger

_SAID_EVERY: Final = 60.0  # seconds

log = get_logger(__name__)


class DatabaseOutage:
    """Logs an outage when it begins, once a minute while it lasts, and its end."""

    def __init__(self) -> None:
        self._due: float | None = None  # monotonic; None: the database answers

    def lasts(self, error: Exception) -> None:
        """The database did not answer."""
        now = time.monotonic()
        if self._due is None or now >= self._due:
            self._due = now + _SAID_EVERY
            log.warning("database.awaited", error=str(error))

    def is_over(self) -> None:
        """The database answered."""
        if self._due is not None:
            self._due = None
            log.info("database.reconnected")

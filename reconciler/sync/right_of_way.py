"""Hot goes first: bulk work merges no page while hot of the same account is at work, in any process.

Bulk work and hot share the cores and the disk of the database. A run of hot merges a page or two. Behind the pages of a
backfill each of its commits would wait for a core and for the disk. While no page is merged, none is asked for either.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from reconciler.database.locks import is_locked
from reconciler.database.store import Store
from reconciler.model import JobName

LOOKS_EVERY: Final = 0.02  # seconds
# Seconds for one run of hot, which comes once a minute: bulk work loses less than 2 %. A run that takes longer works
# through an outage, or its process hangs.
WAITS_AT_MOST: Final = 1.0


class RightOfWay:
    """Lets the job `first` go first; for all threads of a run. `stop` ends the wait.

    The lock of the job shows whether it is at work. A killed process loses the lock with its connection.
    """

    def __init__(self, first: JobName, stop: threading.Event, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._first = first
        self._stop = stop
        self._clock = clock
        self._turn = threading.Lock()
        self._looked_at: float | None = None
        self._met_at: float | None = None  # the first look that found the run that is still at work

    def give(self, store: Store) -> None:
        """Wait while the job is at work, at most a second for each of its runs.

        Raises:
            Unavailable: the database is away.

        """
        with self._turn:
            if self._looked_at is not None and self._clock() - self._looked_at < LOOKS_EVERY:
                return
            while self._is_due(store) and not self._stop.wait(LOOKS_EVERY):
                pass

    def _is_due(self, store: Store) -> bool:
        with store.session() as conn:
            is_at_work = is_locked(conn, str(self._first))
        self._looked_at = self._clock()
        if not is_at_work:
            self._met_at = None
            return False
        if self._met_at is None:
            self._met_at = self._looked_at
        return self._looked_at - self._met_at < WAITS_AT_MOST

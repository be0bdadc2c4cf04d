"""One daemon runs the jobs, others stand by: an advisory lock on a connection that must keep talking.

A daemon that was stopped (SIGSTOP, a machine that sleeps) keeps its connection open and says nothing: the server ends
such a session after `SILENCE`, and the lock goes to one that lives. Its jobs hold locks of their own, on the
connections that merge (`Store.holding`), so that two leaders for a moment would do no harm.
(https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-IDLE-SESSION-TIMEOUT)
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from psycopg.types.json import Jsonb

from reconciler.database import connection as db
from reconciler.database import locks
from reconciler.database.locks import LOCK
from reconciler.errors import ReconcilerError

SILENCE: Final = timedelta(seconds=15)
_LEADER_ASKED_EVERY: Final = 5.0  # seconds
_LONGEST_HOST: Final = 30  # characters; PostgreSQL cuts an application_name off after 63 bytes

_queries = db.load_queries("sync_state")


def name() -> str:
    """`host/process` of this daemon, as `reconcile status` and pg_stat_activity show it."""
    host = "".join(char for char in socket.gethostname() if char.isascii() and char.isprintable())
    return f"{host[:_LONGEST_HOST]}/{os.getpid()}"


class Leadership:
    """Whether this process leads; ask by `check`, more often than every `SILENCE`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._conn: db.Connection | None = None
        self._told: dict[str, Any] | None = None
        self._leader_due = 0.0
        self.leads = False
        self.leader = "another daemon"  # who leads if we do not: `host/process`, once it is known

    def check(self) -> bool:
        """Take the lead if it is free, or make sure that it is still ours.

        Raises:
            Unavailable: the database is away or takes no writes, and the lead is gone with the connection.
            Refused: the database turned us away.

        """
        try:
            with db.translated():
                if self._conn is None:
                    settings = {"idle_session_timeout": f"{int(SILENCE.total_seconds())}s", "statement_timeout": "5s"}
                    self._conn = db.connect(self._url, purpose=f"{LOCK} {name()}", settings=settings)
                # Also while we lead: a failover leaves the lock, and every session, on a server that nobody writes to.
                # A lock on a standby keeps nobody from leading on the primary.
                db.require_writable(self._conn)
                if not self.leads:
                    self.leads = locks.try_advisory_lock(self._conn, LOCK) is not None
                if not self.leads and time.monotonic() >= self._leader_due:
                    self._leader_due = time.monotonic() + _LEADER_ASKED_EVERY
                    self.leader = locks.holder_of(self._conn, LOCK) or self.leader
        except ReconcilerError:
            self.resign()
            raise
        return self.leads

    def tell(self, word: dict[str, Any]) -> None:
        """Keep what only the leader knows where `reconcile status` finds it; written when it changed.

        A write that fails is no matter: `check` notices a lost connection, and the next change is written again.
        """
        if self._conn is None or word == self._told:
            return
        params = {
            "job": LOCK,
            "word": Jsonb({**word, "backend": self._conn.info.backend_pid}),
            "now": datetime.now(UTC),
        }
        with suppress(ReconcilerError), db.translated():
            self._conn.execute(_queries["keep_leaders_word"], params)
            self._told = word

    def resign(self) -> None:
        """Give the lead to another."""
        self.leads, self._told = False, None
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

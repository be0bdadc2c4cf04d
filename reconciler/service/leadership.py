"""One daemon runs the jobs, others stand by: an advisory lock on a connection that must keep talking.

A daemon that was stopped (SIGSTOP, a machine that sleeps) keeps its connection open and says nothing: the server ends
such a session after `SILENCE`, and the lock goes to one that lives. Its jobs hold locks of their own, on the
connections that merge (`Store.holding`), so that two leaders for a moment would do no harm.
(https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-IDLE-SESSION-TIMEOUT)
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from reconciler.database import connection as db
from reconciler.database import locks
from reconciler.database.locks import LOCK
from reconciler.errors import ReconcilerError

SILENCE: Final = timedelta(seconds=15)


class Leadership:
    """Whether this process leads; ask by `check`, more often than every `SILENCE`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._conn: db.Connection | None = None
        self.leads = False

    def check(self) -> bool:
        """Take the lead if it is free, or make sure that it is still ours.

        Raises:
            Unavailable: the database is away or takes no writes, and the lead is gone with the connection.
            Refused: the database turned us away.

        """
        try:
            with db.translated():
                if self._conn is None:
                    timeout = f"{int(SILENCE.total_seconds())}s"
                    self._conn = db.connect(
                        self._url, purpose=LOCK, settings={"idle_session_timeout": timeout, "statement_timeout": "5s"}
                    )
                # Also while we lead: a failover leaves the lock, and every session, on a server that nobody writes to.
                # A lock on a standby keeps nobody from leading on the primary.
                db.require_writable(self._conn)
                if not self.leads:
                    self.leads = locks.try_advisory_lock(self._conn, LOCK) is not None
        except ReconcilerError:
            self.resign()
            raise
        return self.leads

    def resign(self) -> None:
        """Give the lead to another."""
        self.leads = False
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

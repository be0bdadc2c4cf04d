"""Leadership: one daemon runs the jobs, the others stand by. The lead is an advisory lock.

The lock's connection must keep talking. A stopped daemon (SIGSTOP, a machine that sleeps) keeps its connection open and
says nothing. The server ends such a session after `SILENCE`, and another daemon gets the lock. For a moment two daemons
may lead. That does no harm: each job holds a lock of its own on the connection that merges (`Store.holding`).
(https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-IDLE-SESSION-TIMEOUT)
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from reconciler.database import connection as db
from reconciler.database import locks
from reconciler.database.locks import LOCK
from reconciler.errors import ReconcilerError

SILENCE: Final = timedelta(seconds=15)
_LEADER_ASKED_EVERY: Final = 5.0  # seconds
_LONGEST_HOST: Final = 30  # characters; PostgreSQL cuts an application_name off after 63 bytes


def host_name() -> str:
    """Return this machine's name, as far as an application_name can hold it."""
    return "".join(char for char in socket.gethostname() if char.isascii() and char.isprintable())[:_LONGEST_HOST]


def name() -> str:
    """Return this daemon's name, `host/process`, as `reconcile status` and pg_stat_activity show it."""
    return f"{host_name()}/{os.getpid()}"


class Leadership:
    """This process's hold on the lead. `check` must be called more often than every `SILENCE`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._conn: db.Connection | None = None
        self._saved_note: dict[str, Any] | None = None
        self._leader_due = 0.0
        self.leads = False
        self.leader = "another daemon"  # the other leader's `host/process`, once it is known

    def check(self) -> bool:
        """Take the lead if it is free, or check that this process still has it; return whether it leads.

        Raises:
            Unavailable: the database is away or takes no writes. The lead is lost with the connection.
            Refused: the database refused the login or a privilege.

        """
        try:
            with db.translated():
                if self._conn is None:
                    settings = {"idle_session_timeout": f"{int(SILENCE.total_seconds())}s", "statement_timeout": "5s"}
                    self._conn = db.connect(self._url, purpose=f"{LOCK} {name()}", settings=settings)
                # A leader checks this too. A failover leaves its session and lock on a server that takes no writes. A
                # lock on a standby does not keep another daemon from leading on the primary.
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

    def save_note(self, note: dict[str, Any]) -> None:
        """Save the leader's note, if it changed, where `reconcile status` reads it.

        An error is ignored: `check` notices a lost connection, and the next call writes the note again.
        """
        if self._conn is None or note == self._saved_note:
            return
        with suppress(ReconcilerError), db.translated():
            locks.save_leaders_note(self._conn, note, now=datetime.now(UTC))
            self._saved_note = note

    def resign(self) -> None:
        """Give up the lead, and close its connection."""
        self.leads, self._saved_note = False, None
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

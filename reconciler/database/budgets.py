"""The budgets of requests to Twilio: one value for each account, which processes share and revise one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from reconciler.database import connection as db
from reconciler.errors import ReconcilerError

_SESSION: Final = {
    # A process that is stopped while it holds a budget must not block the others.
    "idle_in_transaction_session_timeout": "2s",
    "lock_timeout": "3s",
    "synchronous_commit": "off",  # a budget that is lost with the server is made again
}

_queries = db.load_queries("budgets")


class Kept(NamedTuple):
    """The value of an account, as it was kept; our session, and all sessions of the database."""

    value: object
    now: datetime
    session: int
    sessions: Sequence[int]


class Budgets:
    """The budgets of a database. They have a connection of their own, opened when needed; for one thread."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._conn: db.Connection | None = None

    def revise(self, account_sid: str, change: Callable[[Kept], Mapping[str, object]]) -> None:
        """Replace the value of an account by the result of `change`, called with the kept value.

        Raises:
            ReconcilerError: the database is away, or the role may not do this; nothing was changed.

        """
        try:
            with db.translated():
                self._revise(account_sid, change)
        except ReconcilerError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection. The next use opens another."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def _revise(self, account_sid: str, change: Callable[[Kept], Mapping[str, object]]) -> None:
        if self._conn is None or not db.is_alive(self._conn):
            self.close()
            self._conn = db.connect(self._url, purpose="budget", settings=_SESSION)
        conn, params = self._conn, {"account_sid": account_sid}
        with conn.transaction():
            row = conn.execute(_queries["lock"], params).fetchone()
            if row is None:
                conn.execute(_queries["create"], params)
                row = conn.execute(_queries["lock"], params).fetchone()
            assert row is not None
            budget = json.dumps(change(Kept(*row)))
            conn.execute(_queries["keep"], {**params, "budget": budget})

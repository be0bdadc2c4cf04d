"""An inbox on a fresh database, and one run over it at a fixed time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.jobs.inbox import InboxCounts
from tests.harness.contexts import run_inbox
from tests.harness.names import NOW, sid
from tests.harness.rows import T0, insert_row

from .payloads import GRACE

Put = Callable[..., int]
Work = Callable[..., InboxCounts]


def insert(conn: db.Connection, payload: Any, *, minute: float | None = 0, **columns: Any) -> int:
    """Put one row into the inbox, received `minute` minutes after T0; returns its id."""
    values = {
        "source": "twilio_voice",
        "event_type": "call-status",
        "dedupe_key": f"test:{next(_numbers)}",
        "payload": Jsonb(payload),
        "received_at": None if minute is None else T0 + timedelta(minutes=minute),
        **columns,
    }
    return int(insert_row(conn, "twilio_webhook_inbox", **values)["id"])


_numbers = count()


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    with Store(database_url) as store:
        yield store


@pytest.fixture
def put(conn: db.Connection) -> Put:
    return lambda payload, **more: insert(conn, payload, **more)


@pytest.fixture
def work(store: Store) -> Work:
    """One run of the inbox, an hour after T0."""

    def run(now: datetime = NOW, *, grace: timedelta = GRACE, **more: Any) -> InboxCounts:
        return run_inbox(store, **{"clock": lambda: now, "grace": grace, **more})

    return run


@pytest.fixture
def state(conn: db.Connection) -> Callable[[int], str]:
    """The processing_status of a row."""

    def read(id_: int) -> str:
        row = conn.execute("SELECT processing_status FROM twilio_webhook_inbox WHERE id = %s", (id_,)).fetchone()
        assert row
        return row[0]

    return read


@pytest.fixture
def reason(conn: db.Connection) -> Callable[[int], str | None]:
    """Why a row is a dead letter; None if it is none."""

    def read(id_: int) -> str | None:
        row = conn.execute(
            "SELECT error FROM twilio_webhook_inbox WHERE id = %s AND processing_status = 'dead_letter'"
            " AND processed_at IS NOT NULL",
            (id_,),
        ).fetchone()
        return row[0] if row else None

    return read


@pytest.fixture
def calls(conn: db.Connection) -> Callable[[], dict[str, str]]:
    """Every call's status."""
    return lambda: dict(conn.execute("SELECT twilio_sid, status FROM messages").fetchall())


@pytest.fixture
def events(conn: db.Connection) -> Callable[..., list[tuple[str, str | None]]]:
    """(event_type, event_status) of a call's events, in the order they were recorded."""

    def read(call: int = 1) -> list[tuple[str, str | None]]:
        return conn.execute(
            "SELECT event_type, event_status FROM call_events WHERE call_sid = %s ORDER BY id", (sid(call),)
        ).fetchall()

    return read

"""A simulated account, a database, and `reconcile` between them, in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from rich.console import Console

from reconciler.database import connection as db
from reconciler.simulator import Clock, SimulatedTwilio
from reconciler.terminal import console
from tests.harness.commands import RunHere
from tests.harness.done import Done
from tests.harness.equality import differences, records_of
from tests.harness.names import ACCOUNT, NOW, TOKEN, sid
from tests.harness.rows import insert_call, insert_row

Run = Callable[..., Done]


@pytest.fixture
def clock() -> Clock:
    """The machine's clock, as commands use it."""
    return Clock.running()


@pytest.fixture
def run(monkeypatch, run_here: RunHere, database_url: str) -> Run:
    """`reconcile ARGS` on this test's database, without credentials."""
    for name in [name for name in os.environ if name.startswith(("TWILIO_", "RECONCILER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_URL", database_url)
    return lambda *words, **env: run_here({**os.environ, **env}, *words)


@pytest.fixture
def signed_in(monkeypatch, run: Run, twilio: SimulatedTwilio) -> Run:
    """`reconcile ARGS` with the credentials of the simulated account."""
    monkeypatch.setenv("TWILIO_ACCOUNT_SID", ACCOUNT)
    monkeypatch.setenv("TWILIO_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("TWILIO_BASE_URL", twilio.base_url)
    return run


@pytest.fixture
def add_call(conn: db.Connection) -> Callable[..., str]:
    """Inserts a call with only the columns that matter; returns its SID."""

    def insert(call: int = 1, **columns: Any) -> str:
        insert_call(conn, call, **columns)
        return sid(call)

    return insert


@pytest.fixture
def add_event(conn: db.Connection) -> Callable[..., None]:
    """Records an event an hour after it happened, unless told otherwise."""

    def insert(event_type: str, *, call: int = 1, created_at: datetime = NOW, **columns: Any) -> None:
        values = {
            "call_sid": sid(call), "event_type": event_type, "event_status": "completed", "source": "reconcile_hot",
            "event_time": created_at - timedelta(hours=1), "created_at": created_at, "payload": Jsonb({}),
            "dedupe_key": f"{call}:{event_type}:{created_at}:{columns.get('source')}", **columns,
        }  # fmt: skip
        insert_row(conn, "call_events", **values)

    return insert


@pytest.fixture
def add_day(conn: db.Connection) -> Callable[..., None]:
    """Writes what the cold job found of a day, `ago` days before NOW."""

    def insert(ago: int, *, account: str = ACCOUNT, is_complete: bool = True, **columns: Any) -> None:
        values = {
            "account_sid": account, "day": (NOW - timedelta(days=ago)).date(), "listed": 100, "held": 100, "digest": "",
            "is_complete": is_complete, "verified_at": NOW, **columns,
        }  # fmt: skip
        insert_row(conn, "account_days", **values)

    return insert


@pytest.fixture
def paper(monkeypatch) -> Callable[..., StringIO]:
    """Print for a person at a given width from now on, and return the output."""

    def take(width: int, encoding: str = "utf-8") -> StringIO:
        written = _Paper()
        written.encoding = encoding
        monkeypatch.setattr(console, "out", Console(file=written, width=width, highlight=False))
        return written

    return take


class _Paper(StringIO):
    encoding: Any = "utf-8"


@pytest.fixture
def held(account, signed_in) -> str:
    """A call that was read when complete, and froze; returns its SID."""
    call = account.call(datetime.now(UTC) - timedelta(hours=2), from_="+12025550100")
    assert signed_in("--since", "1d").code == 0
    return call.sid


@pytest.fixture
def events(conn):
    """(event_type, event_status, source) of a call's events, in the order they were recorded."""
    return lambda call: conn.execute(
        "SELECT event_type, event_status, source FROM call_events WHERE call_sid = %s ORDER BY id", (call,)
    ).fetchall()


@pytest.fixture
def not_equal(account, twilio, conn):
    """Return the differences between the database and Twilio's present records."""
    return lambda: differences(conn, records_of(account, twilio.clock.now()))

"""Stores on a fresh database, and observations with only the fields that matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.database.transaction import Merged, Origin
from reconciler.model import Observation, Status, Via

T0 = datetime(2026, 6, 10, 20, 0, 0, tzinfo=UTC)
ORIGIN = Origin("reconcile_backfill", "run-1")

Merge = Callable[..., Merged]


def make_observation(
    status: Status = Status.COMPLETED, *, call: int = 1, minute: float = 10, **fields: Any
) -> Observation:
    """A REST record of a call that began at T0, said `minute` minutes later."""
    final = status in {"completed", "busy", "no-answer", "canceled", "failed"}
    values: dict[str, Any] = {
        "call_sid": f"CA{call:032x}",
        "account_sid": "AC" + 32 * "0",
        "parent_call_sid": None,
        "direction": "inbound",
        "from_number": "+15005550100",
        "to_number": "+15005550101",
        "duration": 60 if final else None,
        "price": None,
        "price_unit": "USD",
        "start_time": T0,
        "end_time": T0 + timedelta(minutes=1) if final else None,
        "answered_by": None,
        "date_created": T0,
        "status_at": T0 + timedelta(minutes=1) if final else T0,
        "observed_at": T0 + timedelta(minutes=minute),
        "via": Via.REST,
    }
    return Observation(status=status, **{**values, **fields})


def make_webhook(status: Status = Status.COMPLETED, *, call: int = 1, minute: float = 1, **fields: Any) -> Observation:
    """A status callback: no times, no price, said when it happened."""
    said_at = T0 + timedelta(minutes=minute)
    nothing = dict.fromkeys(("start_time", "end_time", "price_unit", "date_created", "duration"))
    return make_observation(
        status, call=call, **{**nothing, "status_at": said_at, "observed_at": said_at, "via": Via.WEBHOOK, **fields}
    )


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    with Store(database_url) as store:
        yield store


@pytest.fixture
def merge(store: Store) -> Merge:
    """Merge observations as one page, an hour after the call."""

    def merge_page(*observations: Observation, now: datetime = T0 + timedelta(hours=1), **more: Any) -> Merged:
        return store.merge(observations, origin=ORIGIN, now=now, **more)

    return merge_page


@pytest.fixture
def row(conn: db.Connection) -> Callable[..., dict[str, Any]]:
    """A call's row as a dictionary, with its row version."""

    def read(call: int = 1) -> dict[str, Any]:
        found = conn.execute(
            "SELECT to_jsonb(m) || jsonb_build_object('version', m.xmin::text || m.ctid::text) FROM messages AS m"
            " WHERE twilio_sid = %s",
            (f"CA{call:032x}",),
        ).fetchone()
        assert found is not None
        return dict(found[0])

    return read


@pytest.fixture
def events(conn: db.Connection) -> Callable[..., list[tuple[str, str | None]]]:
    """(event_type, event_status) of a call's events, in the order they were recorded."""

    def read(call: int = 1) -> list[tuple[str, str | None]]:
        return conn.execute(
            "SELECT event_type, event_status FROM call_events WHERE call_sid = %s ORDER BY id", (f"CA{call:032x}",)
        ).fetchall()

    return read

"""Calls as Twilio, the program and the database write them, made with only the fields that a test is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import sql

from reconciler.database import connection as db
from reconciler.database.transaction import Origin
from reconciler.model import Observation, Status, Via

from .names import ACCOUNT, NOW, sid

T0 = NOW - timedelta(hours=1)  # when the calls of `make_observation` began
ORIGIN = Origin("reconcile_backfill", "run-1")

# When the record of `make_record` was read, and what it says of itself.
SAID = datetime(2026, 6, 10, 20, 11, 28, tzinfo=UTC)
START, END = "Tue, 10 Jun 2026 20:11:00 +0000", "Tue, 10 Jun 2026 20:11:27 +0000"


def make_record(number: int = 0, **fields: Any) -> dict[str, Any]:
    """A completed call as Twilio's API writes it; `from_` stands for `from`."""
    record = {
        "sid": sid(number), "account_sid": ACCOUNT, "parent_call_sid": None, "status": "completed",
        "direction": "inbound", "from": "+12025550100", "to": "+13125550123", "duration": "27", "price": "-0.00850",
        "price_unit": "USD", "start_time": START, "end_time": END, "answered_by": None, "date_created": START,
        "date_updated": END,
    }  # fmt: skip
    return record | {name.rstrip("_"): value for name, value in fields.items()}


def make_observation(
    status: Status = Status.COMPLETED, *, call: int = 1, minute: float = 10, **fields: Any
) -> Observation:
    """The API's record of a call that began at T0, read `minute` minutes later."""
    final = status in {"completed", "busy", "no-answer", "canceled", "failed"}
    values: dict[str, Any] = {
        "call_sid": sid(call),
        "account_sid": ACCOUNT,
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
    """A status callback that Twilio sent `minute` minutes after T0: it has no times and no price."""
    said_at = T0 + timedelta(minutes=minute)
    nothing = dict.fromkeys(("start_time", "end_time", "price_unit", "date_created", "duration"))
    return make_observation(
        status, call=call, **{**nothing, "status_at": said_at, "observed_at": said_at, "via": Via.WEBHOOK, **fields}
    )


def insert_row(conn: db.Connection, table: str, **values: Any) -> dict[str, Any]:
    """Insert a row by a plain statement, as any writer would, and return it as JSON."""
    statement = sql.SQL("INSERT INTO {} AS t ({}) VALUES ({}) RETURNING to_jsonb(t)").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(sql.Placeholder() * len(values)),
    )
    row = conn.execute(statement, list(values.values())).fetchone()
    assert row is not None
    return dict(row[0])


def insert_call(conn: db.Connection, call: int = 1, **columns: Any) -> dict[str, Any]:
    """Insert a ringing call as the Viewer would, and return its row as JSON."""
    values = {
        "twilio_sid": sid(call), "direction": "inbound", "status": "ringing", "from_number": "+15005550100",
        "to_number": "+15005550101",
    }  # fmt: skip
    return insert_row(conn, "messages", **values | columns)

"""Is the database equal to Twilio? Asked without any code of ours that the answer could depend on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any

from reconciler.database import connection as db
from reconciler.simulator import SimulatedAccount

# These follow from the rest of a record: how Twilio displays the numbers, and where its API has the call. date_updated
# is the end of a final call, and the row's last_event_time.
DERIVED = {"from_formatted", "to_formatted", "uri", "subresource_uris", "date_updated"}
COLUMNS = {
    "sid", "account_sid", "parent_call_sid", "direction", "status", "from", "to", "duration", "price", "price_unit",
    "start_time", "end_time", "answered_by", "date_created",
}  # fmt: skip

FINAL = {"completed", "busy", "no-answer", "canceled", "failed"}


def records_of(account: SimulatedAccount, now: datetime) -> list[Mapping[str, Any]]:
    """Every record of the account as Twilio would show it at `now`."""
    from reconciler.simulator.filters import Filters

    at = int(now.timestamp())
    return [call.render(at) for call in account.calls_at(now, Filters())]


def expected_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """The values that `messages` must hold for a record."""

    def time(value: str | None) -> datetime | None:
        return parsedate_to_datetime(value).astimezone(UTC) if value else None

    return {
        "account_sid": record["account_sid"],
        "parent_call_sid": record["parent_call_sid"] or None,
        "direction": record["direction"] or "",
        "status": record["status"],
        "from_number": record["from"] or "",
        "to_number": record["to"] or "",
        "duration": int(record["duration"]) if record["duration"] else None,
        "price": Decimal(record["price"]) if record["price"] else None,
        "price_unit": record.get("price_unit") or None,
        "start_time": time(record["start_time"]),
        "end_time": time(record["end_time"]),
        "answered_by": record["answered_by"] or None,
        "date_created": time(record["date_created"]),
        "is_final": record["status"] in FINAL,
        "other_fields": _others(record),
    }


def _others(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What a record holds beyond the columns, sorted by name; without an api_version it is that of 2010."""
    columns = COLUMNS | DERIVED
    kept = {name: value for name, value in record.items() if name not in columns and value not in (None, "")}
    return sorted(item for item in kept.items() if item != ("api_version", "2010-04-01"))


def differences(conn: db.Connection, records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Each call that the database lacks or holds otherwise than Twilio, and each row Twilio knows nothing of."""
    held: dict[str, dict[str, Any]] = {}
    with conn.cursor() as cur:
        cur.execute("SELECT * FROM messages")
        names = [column.name for column in cur.description or ()]
        for values in cur:
            row = dict(zip(names, values, strict=True))
            for name in ("start_time", "end_time"):
                row[name] = row[name] and row[name].replace(tzinfo=UTC)
            row["other_fields"] = sorted((row["other_fields"] or {}).items())
            held[row["twilio_sid"]] = row
    found = []
    for record in records:
        row = held.pop(record["sid"], {})
        expected = expected_row(record)
        found += [
            f"{record['sid']} {name}: {row.get(name, 'no row')!r}, not {value!r}"
            for name, value in expected.items()
            if name not in row or row[name] != value or str(row[name]) != str(value)
        ]
    return found + [f"{sid}: Twilio has no such call" for sid in held]


def versions(conn: db.Connection) -> list[tuple[Any, ...]]:
    """Every row's version: equal before and after, nothing was written."""
    return conn.execute("SELECT twilio_sid, xmin::text, ctid::text FROM messages ORDER BY twilio_sid").fetchall()


def doubled_events(conn: db.Connection) -> list[tuple[Any, ...]]:
    """Facts that stand in call_events more than once."""
    return conn.execute(
        "SELECT call_sid, event_type, event_status, payload, count(*) FROM call_events"
        " GROUP BY 1, 2, 3, 4 HAVING count(*) > 1"
    ).fetchall()

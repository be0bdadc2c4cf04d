"""A simple program for comparison: the official SDK's stream, and an upsert of every call it yields.

    DATABASE_URL=… TWILIO_BASE_URL=… TWILIO_ACCOUNT_SID=… TWILIO_AUTH_TOKEN=… python -m tests.bench.plain DAYS

The measure that the others are compared with. It writes no events and keeps no rule and no cursor.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from twilio.rest import Client

BATCH = 1_000

UPSERT = """
INSERT INTO plain_messages (
    twilio_sid, account_sid, parent_call_sid, direction, status, from_number, to_number, duration, price, price_unit,
    start_time, end_time, answered_by, date_created, updated_at
)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (twilio_sid) DO UPDATE SET
    account_sid = EXCLUDED.account_sid, parent_call_sid = EXCLUDED.parent_call_sid, direction = EXCLUDED.direction,
    status = EXCLUDED.status, from_number = EXCLUDED.from_number, to_number = EXCLUDED.to_number,
    duration = EXCLUDED.duration, price = EXCLUDED.price, price_unit = EXCLUDED.price_unit,
    start_time = EXCLUDED.start_time, end_time = EXCLUDED.end_time, answered_by = EXCLUDED.answered_by,
    date_created = EXCLUDED.date_created, updated_at = EXCLUDED.updated_at
"""


def main(days: int) -> None:
    client = Client(os.environ["TWILIO_ACCOUNT_SID"], os.environ["TWILIO_AUTH_TOKEN"])
    client.api.base_url = os.environ["TWILIO_BASE_URL"]
    now = datetime.now(UTC)
    with psycopg.connect(os.environ["DATABASE_URL"], options="-c timezone=UTC") as conn, conn.cursor() as cur:
        for rows in _batches(client, now - timedelta(days=days), now):
            cur.executemany(UPSERT, rows)
            conn.commit()


def _batches(client: Client, since: datetime, now: datetime) -> Iterator[list[tuple[Any, ...]]]:
    rows: list[tuple[Any, ...]] = []
    for call in client.calls.stream(start_time_after=since, page_size=1000):
        rows.append(
            (
                call.sid, call.account_sid, call.parent_call_sid, call.direction, call.status, call._from, call.to,
                call.duration, call.price, call.price_unit, call.start_time, call.end_time, call.answered_by,
                call.date_created, now,
            )
        )  # fmt: skip
        if len(rows) == BATCH:
            yield rows
            rows = []
    yield rows


if __name__ == "__main__":
    main(int(sys.argv[1]))

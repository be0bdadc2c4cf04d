"""The lower bounds of any solution: all pages over eight connections, and a COPY of each, without any rule.

    DATABASE_URL=… TWILIO_BASE_URL=… TWILIO_ACCOUNT_SID=… TWILIO_AUTH_TOKEN=… python -m tests.bench.floors WHICH DAYS

`raw` copies the calls into a table without any index. `rows` copies the rows and events that reconciler would write
into tables with the indexes of `messages` and `call_events`. Neither looks anything up, checks a value, or keeps a
place to go on at; both must not be used for anything else.
"""

from __future__ import annotations

import os
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from urllib.parse import quote

import msgspec
import psycopg
import urllib3

CONNECTIONS = 8

RAW = """
COPY raw_calls (sid, account_sid, parent_call_sid, direction, status, from_, to_, duration, price, price_unit,
    start_time, end_time, answered_by, date_created, date_updated) FROM STDIN
"""
ROWS = """
COPY floor_messages (twilio_sid, account_sid, parent_call_sid, direction, status, from_number, to_number, duration,
    price, price_unit, start_time, end_time, answered_by, date_created, created_at, updated_at, last_event_time,
    is_final, finalized_at, sync_state, observed_at, observed_via, other_fields) FROM STDIN
"""
EVENTS = """
COPY floor_events (call_sid, event_type, event_status, event_time, created_at, source, run_id, payload, dedupe_key)
FROM STDIN
"""

FINAL = {"completed", "busy", "no-answer", "canceled", "failed"}


class Call(msgspec.Struct, gc=False):
    sid: str
    account_sid: str
    parent_call_sid: str | None
    direction: str
    status: str
    from_: str = msgspec.field(name="from")
    to: str
    duration: str | None
    price: str | None
    price_unit: str | None
    start_time: str | None
    end_time: str | None
    answered_by: str | None
    date_created: str
    date_updated: str
    phone_number_sid: str | None
    trunk_sid: str | None
    forwarded_from: str | None
    caller_name: str | None
    queue_time: str | None


COLUMNS = 14  # the fields of `Call` that have columns of their own in `messages`


class Listing(msgspec.Struct, gc=False):
    calls: list[Call]
    next_page_uri: str | None


Write = Callable[[psycopg.Connection, list[Call]], None]


def main(which: str, days: int) -> None:
    write: Write = {"raw": _write_raw, "rows": _write_rows}[which]
    with psycopg.connect(os.environ["DATABASE_URL"], options="-c timezone=UTC") as conn:
        for page in _pages(days):
            write(conn, page)
            conn.commit()


def _pages(days: int) -> Iterator[list[Call]]:
    """Every page of the last days; each connection reads a day after another."""
    base, account = os.environ["TWILIO_BASE_URL"], os.environ["TWILIO_ACCOUNT_SID"]
    login = b64encode(f"{account}:{os.environ['TWILIO_AUTH_TOKEN']}".encode()).decode()
    pool = urllib3.PoolManager(
        maxsize=CONNECTIONS, headers={"Authorization": f"Basic {login}"}, ca_certs=os.environ.get("REQUESTS_CA_BUNDLE")
    )
    decode = msgspec.json.Decoder(Listing).decode
    arrived: SimpleQueue[list[Call] | None] = SimpleQueue()
    today = datetime.now(UTC).date()

    def read(ago: int) -> None:
        try:
            since, until = (today - timedelta(days=n) for n in (ago, ago - 1))
            window = f"{quote('StartTime>')}={since}T00:00:00Z&{quote('StartTime<')}={until}T00:00:00Z"
            path: str | None = f"/2010-04-01/Accounts/{account}/Calls.json?{window}&PageSize=1000"
            while path is not None:
                listing = decode(pool.request("GET", base + path).data)
                arrived.put(listing.calls)
                path = listing.next_page_uri
        finally:
            arrived.put(None)

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        tasks = [threads.submit(read, ago) for ago in range(days + 1)]
        left = len(tasks)
        while left:
            page = arrived.get()
            if page is None:
                left -= 1
            else:
                yield page
        for task in tasks:
            task.result()


def _write_raw(conn: psycopg.Connection, page: list[Call]) -> None:
    _copy(conn, RAW, [msgspec.structs.astuple(call)[: COLUMNS + 1] for call in page])


def _write_rows(conn: psycopg.Connection, page: list[Call]) -> None:
    now = datetime.now(UTC).isoformat()
    rows: list[tuple[str | None, ...]] = []
    events: list[tuple[str | None, ...]] = []
    for call in page:
        is_final = call.status in FINAL
        ended = (call.end_time or call.date_updated) if is_final else None
        is_frozen = is_final and (call.status != "completed" or call.price is not None)
        at = ended or call.date_updated
        rows.append(
            (
                *msgspec.structs.astuple(call)[:COLUMNS], now, now, at, "t" if is_final else "f", ended,
                "frozen" if is_frozen else "active", now, "rest", _others(call),
            )
        )  # fmt: skip
        rest = (now, "floor", "run")
        payload = '{"frozen": "complete"}' if is_frozen else msgspec.json.encode(call).decode()
        events.append((call.sid, "call.created", call.status, at, *rest, payload, call.sid + ":created"))
    _copy(conn, ROWS, rows)
    _copy(conn, EVENTS, events)


def _others(call: Call) -> str:
    names = ("phone_number_sid", "trunk_sid", "forwarded_from", "caller_name", "queue_time")
    return msgspec.json.encode({name: value for name in names if (value := getattr(call, name))}).decode()


def _copy(conn: psycopg.Connection, statement: str, rows: list[tuple[str | None, ...]]) -> None:
    with conn.cursor().copy(statement) as copy:
        # The simulated account's values have no tab, no newline and no backslash.
        copy.write("".join("\t".join([r"\N" if v is None else v for v in row]) + "\n" for row in rows))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

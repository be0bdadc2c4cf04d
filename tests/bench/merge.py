"""What merging a page of 1,000 calls costs, into tables of different sizes and with different statistics.

    python -m tests.bench.merge [--rows 10000 5000000] [--pages 20]

Prints the median of the pages in milliseconds, and each as a ratio to the first table's. Uses the server named by
RECONCILER_TEST_DATABASE_URL, or an embedded one (with fsync on, as in real life).
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo
from rich.console import Console
from rich.table import Table

from reconciler import db, embedded
from reconciler.migrate import migrate
from reconciler.model import Observation, Status, Via
from reconciler.store import Origin, Store

T0 = datetime(2026, 6, 1, tzinfo=UTC)
NOW = T0 + timedelta(days=30)
ORIGIN = Origin("reconcile_backfill", "bench")
PAGE = 1_000

# Rows as a backfill would have left them, but for the scattered order of the SIDs: Twilio's are not in order either.
FILL = """
INSERT INTO messages (
    twilio_sid, account_sid, direction, status, from_number, to_number, duration, price, price_unit, start_time,
    end_time, date_created, last_event_time, is_final, finalized_at, sync_state, observed_at, observed_via
)
SELECT
    'CA' || md5(n::text), 'AC' || repeat('0', 32), 'inbound', 'completed', '+15005550100', '+15005550101', 60,
    -0.0085, 'USD', t, t + interval '1 min', t AT TIME ZONE 'UTC', (t + interval '1 min') AT TIME ZONE 'UTC', true,
    (t + interval '1 min') AT TIME ZONE 'UTC', 'frozen', (t + interval '2 min') AT TIME ZONE 'UTC', 'rest'
FROM (
    SELECT n, timestamp '2026-06-01' + n %% 2000000 * interval '1 second' AS t
    FROM generate_series(%s::int, %s::int) AS n
) AS numbers
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 5_000_000])
    parser.add_argument("--pages", type=int, default=20)
    args = parser.parse_args()
    table = Table("table", "statistics", "1,000 new", "1,000 updated", "1,000 unchanged")
    base: list[float] = []
    with _server() as server:
        for rows in args.rows:
            url = _filled(server, rows)
            for statistics_ in ("missing", "stale", "fresh"):
                with db.connect(url, purpose="bench") as conn:
                    if statistics_ == "fresh":
                        conn.execute("VACUUM ANALYZE messages")
                medians = _measure(url, rows, args.pages)
                base = base or medians
                cells = [f"{m * 1000:.1f} ms  × {m / b:.2f}" for m, b in zip(medians, base, strict=True)]
                table.add_row(f"{rows:,} rows", statistics_, *cells)
                if statistics_ == "missing":
                    with db.connect(url, purpose="bench") as conn:
                        # As if it had been analysed when it was a thousandth of its size.
                        conn.execute("ANALYZE messages")
                        conn.execute(
                            "UPDATE pg_class SET reltuples = reltuples / 1000, relpages = relpages / 1000"
                            " WHERE relname = 'messages'"
                        )
        with psycopg.connect(server) as conn:
            version = conn.info.parameter_status("server_version")
    Console(width=110).print(table)
    print(f"PostgreSQL {version}; {os.cpu_count()} cores; medians of {args.pages} pages, each one commit")


def _measure(url: str, rows: int, pages: int) -> list[float]:
    """Seconds for a page of new calls, of calls that end, and of calls that are as they were."""
    numbers = random.Random()  # other calls in each measurement
    new, updated, unchanged = [], [], []
    with Store(url) as store:
        for _ in range(pages):
            ringing = [_observation(numbers.randbytes(16).hex(), Status.RINGING) for _ in range(PAGE)]
            ended = [o._replace(status=Status.COMPLETED, duration=60, observed_at=NOW) for o in ringing]
            held = [_held(numbers.randint(1, rows)) for _ in range(PAGE)]
            for page, times in ((ringing, new), (ended, updated), (held, unchanged)):
                started = time.perf_counter()
                store.merge(page, origin=ORIGIN, now=NOW)
                times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in (new, updated, unchanged)]


def _observation(name: str, status: Status) -> Observation:
    return Observation(
        "CA" + name, "AC" + 32 * "0", None, "inbound", status, "+15005550100", "+15005550101", None, None, "USD",
        T0, None, None, T0, T0, T0 + timedelta(minutes=1), Via.REST,
    )  # fmt: skip


def _held(number: int) -> Observation:
    import hashlib

    start = T0 + timedelta(seconds=number % 2_000_000)
    end = start + timedelta(minutes=1)
    return _observation(hashlib.md5(str(number).encode()).hexdigest(), Status.COMPLETED)._replace(
        duration=60, price=Decimal("-0.0085"), start_time=start, end_time=end, date_created=start, status_at=end,
        observed_at=NOW,
    )  # fmt: skip


def _filled(server: str, rows: int) -> str:
    name = f"bench_{rows}"
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        conn.execute(f"CREATE DATABASE {name}")
    url = make_conninfo(server, dbname=name)
    with db.connect(url, purpose="bench") as conn:
        conn.execute("SET statement_timeout = 0")
        migrate(conn)
        conn.execute("ALTER TABLE messages SET (autovacuum_enabled = off)")
        for start in range(1, rows + 1, 500_000):
            conn.execute(FILL, (start, min(rows, start + 499_999)))
        # Hint bits set, so that the first reader does not pay for the load; and no statistics, as after the load.
        conn.execute("VACUUM messages")
        conn.execute("UPDATE pg_class SET reltuples = -1, relpages = 0 WHERE relname = 'messages'")
        conn.execute("CHECKPOINT")
    return url


@contextmanager
def _server() -> Iterator[str]:
    if url := os.environ.get("RECONCILER_TEST_DATABASE_URL"):
        yield url
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield embedded.start(Path(folder) / "data", keep=False)


if __name__ == "__main__":
    main()

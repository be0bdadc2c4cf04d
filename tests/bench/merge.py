"""The cost of merging a page of 1,000 calls into a table of some size, with missing, stale and fresh statistics.

    python -m tests.bench.merge URL ROWS PAGES

URL is an empty, migrated database. Prints seconds as JSON, by statistics: the medians of pages of new calls, of calls
that ended, and of unchanged calls. Each page is one commit.
"""

from __future__ import annotations

import hashlib
import json
import random
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.database.transaction import Origin
from reconciler.model import Observation, Status, Via

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

# The statements that bring each state about, in this order.
STATISTICS = {
    "missing": ("UPDATE pg_class SET reltuples = -1, relpages = 0 WHERE relname = 'messages'",),
    "stale": (  # as if it had been analysed when it was a thousandth of its size
        "ANALYZE messages",
        "UPDATE pg_class SET reltuples = reltuples / 1000, relpages = relpages / 1000 WHERE relname = 'messages'",
    ),
    "fresh": ("SET statement_timeout = 0", "VACUUM ANALYZE messages"),
}


def main(url: str, rows: int, pages: int) -> None:
    _fill(url, rows)
    figures = {}
    for known, statements in STATISTICS.items():
        with db.connect(url, purpose="bench") as conn:
            for statement in statements:
                conn.execute(statement)
        figures[known] = _measure(url, rows, pages)
    print(json.dumps(figures))


def _measure(url: str, rows: int, pages: int) -> list[float]:
    """Seconds for a page of new calls, of calls that end, and of calls that are as they were."""
    numbers = random.Random()  # other calls in each measurement
    new: list[float] = []
    updated: list[float] = []
    unchanged: list[float] = []
    with Store(url) as store:
        for _ in range(pages):
            ringing = [_observation(numbers.randbytes(16).hex(), Status.RINGING) for _ in range(PAGE)]
            ended = [o._replace(status=Status.COMPLETED, duration=60, observed_at=NOW) for o in ringing]
            held = [_held(numbers.randint(1, rows)) for _ in range(PAGE)]
            for page, times in ((ringing, new), (ended, updated), (held, unchanged)):
                started = time.perf_counter()
                store.commit_page(page, origin=ORIGIN, now=NOW)
                times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in (new, updated, unchanged)]


def _observation(name: str, status: Status) -> Observation:
    return Observation(
        "CA" + name, "AC" + 32 * "0", None, "inbound", status, "+15005550100", "+15005550101", None, None, "USD",
        T0, None, None, T0, T0, T0 + timedelta(minutes=1), Via.REST,
    )  # fmt: skip


def _held(number: int) -> Observation:
    start = T0 + timedelta(seconds=number % 2_000_000)
    end = start + timedelta(minutes=1)
    return _observation(hashlib.md5(str(number).encode()).hexdigest(), Status.COMPLETED)._replace(
        duration=60, price=Decimal("-0.0085"), start_time=start, end_time=end, date_created=start, status_at=end,
        observed_at=NOW,
    )  # fmt: skip


def _fill(url: str, rows: int) -> None:
    with db.connect(url, purpose="bench", settings={"statement_timeout": "0"}) as conn:
        conn.execute("ALTER TABLE messages SET (autovacuum_enabled = off)")
        for start in range(1, rows + 1, 500_000):
            conn.execute(FILL, (start, min(rows, start + 499_999)))
        # Hint bits set, so that the first reader does not pay for the load.
        conn.execute("VACUUM messages")
        conn.execute("CHECKPOINT")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

"""The cost of merging a page of 1,000 calls into a table of some size, with missing, stale and fresh statistics.

    python -m tests.bench.merge URL ROWS PAGES

URL is an empty, migrated database. Prints seconds as JSON, by statistics: the medians of pages of each kind in `KINDS`.
Each page is one commit. A page holds what a page of Twilio's listing holds: calls that follow one another in time,
newest first, with SIDs in no order. Only the calls of a scattered page are any calls of the table, as in a listing by
status.
"""

from __future__ import annotations

import hashlib
import json
import random
import statistics
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.database.transaction import Origin
from reconciler.model import Observation, Status, Via

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NOW = T0 + timedelta(days=300)  # later than all calls
ORIGIN = Origin("reconcile_backfill", "bench")
PAGE = 1_000
SCATTERED = "unchanged, scattered"
KINDS = ("new", "updated", "unchanged", SCATTERED)

# Call number n began n seconds after T0. The rows are as a backfill would have left them.
FILL = """
INSERT INTO messages (
    twilio_sid, account_sid, direction, status, from_number, to_number, duration, price, price_unit, start_time,
    end_time, date_created, last_event_time, is_final, finalized_at, sync_state, observed_at, observed_via, other_fields
)
SELECT
    'CA' || md5(n::text), 'AC' || repeat('0', 32), 'inbound', 'completed', '+15005550100', '+15005550101', 60,
    -0.0085, 'USD', t, t + interval '1 min', t AT TIME ZONE 'UTC', (t + interval '1 min') AT TIME ZONE 'UTC', true,
    (t + interval '1 min') AT TIME ZONE 'UTC', 'frozen', (t + interval '2 min') AT TIME ZONE 'UTC', 'rest', %s
FROM (
    SELECT n, timestamp '2026-01-01' + n * interval '1 second' AS t
    FROM generate_series(%s::int, %s::int) AS n
) AS numbers
"""

# In this order: what brings each about.
STATISTICS = {
    "missing": ("UPDATE pg_class SET reltuples = -1, relpages = 0 WHERE relname = 'messages'",),
    "stale": (  # as if it had been analysed when it was a thousandth of its size
        "ANALYZE messages",
        "UPDATE pg_class SET reltuples = reltuples / 1000, relpages = relpages / 1000 WHERE relname = 'messages'",
    ),
    "fresh": ("SET statement_timeout = 0", "VACUUM ANALYZE messages"),
}


# In the order and form in which PostgreSQL writes a jsonb, as decoded records have them.
OTHER_FIELDS = f'{{"queue_time": "0", "forwarded_from": "+15005550101", "phone_number_sid": "PN{32 * "0"}"}}'


def main(url: str, rows: int, pages: int) -> None:
    _fill(url, rows)
    figures = {}
    first = rows + 1
    for known, statements in STATISTICS.items():
        with db.connect(url, purpose="bench") as conn:
            for statement in statements:
                conn.execute(statement)
        figures[known] = _measure(url, rows, range(first, first + pages * PAGE, PAGE))
        first += pages * PAGE
    print(json.dumps(figures))


def _measure(url: str, rows: int, firsts: Iterable[int]) -> list[float]:
    """Seconds for a page of each kind. The numbers of the new calls begin at each of `firsts`."""
    random_numbers = random.Random()  # other calls in each measurement
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with Store(url) as store:
        for first in firsts:
            ringing = [_ringing(number) for number in _listed(first)]
            pages = (
                ringing,
                [_ended(o) for o in ringing],
                [_ended(_ringing(number)) for number in _listed(random_numbers.randint(1, rows - PAGE + 1))],
                [_ended(_ringing(random_numbers.randint(1, rows))) for _ in range(PAGE)],
            )
            for kind, page in zip(KINDS, pages, strict=True):
                started = time.perf_counter()
                store.commit_page(page, origin=ORIGIN, now=NOW)
                seconds[kind].append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds.values()]


def _listed(first: int) -> Iterable[int]:
    return range(first + PAGE - 1, first - 1, -1)


def _ringing(number: int) -> Observation:
    start = T0 + timedelta(seconds=number)
    return Observation(
        "CA" + hashlib.md5(str(number).encode()).hexdigest(), "AC" + 32 * "0", None, "inbound", Status.RINGING,
        "+15005550100", "+15005550101", None, None, "USD", start, None, None, start, start, start, Via.REST,
        OTHER_FIELDS,
    )  # fmt: skip


def _ended(call: Observation) -> Observation:
    assert call.start_time is not None
    end = call.start_time + timedelta(minutes=1)
    return call._replace(
        status=Status.COMPLETED, duration=60, price=Decimal("-0.0085"), end_time=end, status_at=end, observed_at=NOW
    )


def _fill(url: str, rows: int) -> None:
    with db.connect(url, purpose="bench", settings={"statement_timeout": "0"}) as conn:
        conn.execute("ALTER TABLE messages SET (autovacuum_enabled = off)")
        for start in range(1, rows + 1, 500_000):
            conn.execute(FILL, (OTHER_FIELDS, start, min(rows, start + 499_999)))
        # Hint bits set, so that the first reader does not pay for the load.
        conn.execute("VACUUM messages")
        conn.execute("CHECKPOINT")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

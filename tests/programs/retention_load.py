"""How long a writer waits while housekeeping deletes old rows: `python -m tests.programs.retention_load [ROWS]`.

Fills the inbox and the events with ROWS rows each (300,000), nearly all of them older than the retention. A writer
does what the Viewer's backend does for a webhook, fifty times a second: alone, and beside `reconcile once
housekeeping`. Prints the median, the 99th percentile and the longest of its statements, and how fast the rows went.
TEST_DATABASE_URL names the server; without it an embedded one runs, with fsync as in production.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import psycopg

from reconciler.database import connection as db
from reconciler.database.migration_files import split
from tests.bench.servers import database
from tests.harness.volume import fill

ROWS = 300_000
EVERY = 0.02  # seconds from one webhook to the next
ALONE = 20.0  # seconds


OF_A_WEBHOOK = split("""
INSERT INTO twilio_webhook_inbox (source, event_type, call_sid, dedupe_key, payload)
VALUES ('twilio_voice', 'call-status', %(call)s, %(call)s, '{}');
UPDATE twilio_webhook_inbox SET processing_status = 'processing' WHERE dedupe_key = %(call)s;
INSERT INTO messages (twilio_sid, direction, status, from_number, to_number)
VALUES (%(call)s, 'inbound', 'ringing', '', '');
INSERT INTO call_events (call_sid, event_type, event_time, source, payload)
VALUES (%(call)s, 'call.created', now(), 'webhook', '{}');
UPDATE twilio_webhook_inbox SET processing_status = 'completed' WHERE dedupe_key = %(call)s;
""")


class Viewer(threading.Thread):
    """The Viewer's backend: a webhook comes, is taken up, becomes a row and an event, and is done."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.stop = threading.Event()
        self.waits: list[float] = []

    def run(self) -> None:
        """Handle webhooks until told to stop."""
        with psycopg.connect(self.url, autocommit=True, application_name="viewer") as conn:
            while not self.stop.wait(EVERY):
                call = f"CA{secrets.token_hex(16)}"
                for statement in OF_A_WEBHOOK:
                    started = time.perf_counter()
                    conn.execute(statement.encode(), {"call": call})
                    self.waits.append(time.perf_counter() - started)


def main(rows: int) -> None:
    """Fill, write alone, write beside the retention, and print."""
    with database() as url:
        with db.connect(url, purpose="fill", settings={"statement_timeout": "0"}) as conn:
            fill(conn, rows, now=datetime.now(UTC))
            conn.execute("CHECKPOINT")
        _tell("alone", _waits(url, lambda: time.sleep(ALONE)))
        done: dict[str, float] = {}
        _tell("beside the retention", _waits(url, lambda: done.update(_keep_house(url))))
    deleted = int(done["webhooks_deleted"] + done["events_deleted"])
    print(f"{deleted:,} rows deleted in {done['seconds']:.1f} s, {deleted / done['seconds']:,.0f} a second")


def _waits(url: str, work: Callable[[], None]) -> list[float]:
    """The waits of a writer while `work` is done."""
    viewer = Viewer(url)
    viewer.start()
    try:
        work()
    finally:
        viewer.stop.set()
        viewer.join()
    return viewer.waits


def _keep_house(url: str) -> dict[str, float]:
    """What one run of housekeeping deleted, and the seconds that it took."""
    retentions = {"RECONCILER_INBOX_RETENTION": "35d", "RECONCILER_EVENTS_RETENTION": "35d"}
    environ = {"PATH": os.environ["PATH"], "DATABASE_URL": url, "RECONCILER_LOG_LEVEL": "warning", **retentions}
    command = [sys.executable, "-m", "reconciler", "once", "housekeeping", "--json"]
    started = time.perf_counter()
    said = subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE).stdout
    counts = json.loads(said)
    return {"seconds": time.perf_counter() - started, **{k: counts[k] for k in ("webhooks_deleted", "events_deleted")}}


def _tell(name: str, waits: list[float]) -> None:
    ms = sorted(1000 * wait for wait in waits)
    p99 = statistics.quantiles(ms, n=100)[98]
    p50 = statistics.median(ms)
    print(f"{name}: {len(ms):,} statements, p50 {p50:.2f} ms, p99 {p99:.2f} ms, longest {ms[-1]:.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", type=int, default=ROWS, metavar="ROWS")
    main(parser.parse_args().rows)

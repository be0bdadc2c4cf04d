"""Whole sweeps as a person runs them, beside the plain script and the floors, each in a process of its own."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg

from tests.bench.processes import RECONCILE, Environment, Ran, run, simulated_twilio
from tests.bench.servers import database_on
from tests.harness.present import present

OURS, PLAIN, RAW, ROWS = "reconciler", "plain script", "floor: raw", "floor: rows"
PYTHON = (sys.executable, "-m")

# The tables of the others: like ours, with the same indexes, in the same database.
TABLES = """
CREATE TABLE plain_messages (LIKE messages INCLUDING DEFAULTS INCLUDING INDEXES);
CREATE TABLE floor_messages (LIKE messages INCLUDING DEFAULTS INCLUDING INDEXES);
CREATE TABLE floor_events (LIKE call_events INCLUDING DEFAULTS INCLUDING INDEXES);
CREATE TABLE raw_calls (
    sid text, account_sid text, parent_call_sid text, direction text, status text, from_ text, to_ text,
    duration integer, price numeric, price_unit text, start_time timestamptz, end_time timestamptz, answered_by text,
    date_created timestamptz, date_updated timestamptz
)
"""

# As if one call in a hundred had been known from webhooks alone: settled by nobody, and without its price.
CHANGE_ONE_PERCENT = """
WITH thawed AS (SELECT set_config('reconciler.thaw', 'on', true))
UPDATE messages SET price = NULL, sync_state = 'active' FROM thawed
WHERE id % 100 = 0 AND status = 'completed' AND set_config IS NOT NULL
"""


@dataclass
class Sweep:
    """One kind of sweep; seconds and MiB by contender, medians."""

    name: str
    calls: int
    delay: str
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    peaks: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    requests: int = 0
    wal_bytes: int | None = None  # of ours
    written: int = 0

    @property
    def seconds(self) -> dict[str, float]:
        return {who: statistics.median(times) for who, times in self.times.items()}

    @property
    def peak_mib(self) -> dict[str, float]:
        return {who: max(peaks) for who, peaks in self.peaks.items()}

    def add(self, who: str, ran: Ran) -> None:
        self.times[who].append(ran.seconds)
        self.peaks[who].append(ran.peak_mib)
        if who == OURS:
            self.requests = ran.result["requests"]
            self.written = ran.result["inserted"] + ran.result["updated"]


def measure(server: str, *, calls: int, days: int, delay: str, runs: int, tls: bool, more: bool) -> Iterator[Sweep]:
    """A backfill of `calls` calls; with `more` also the same again, and the nightly sweep of one that found changes."""
    first = Sweep("backfill", calls, delay)
    again = Sweep("the same again", calls, delay)
    night = Sweep("nightly sweep, 1 % changed", calls, delay)
    backfill = (*RECONCILE, "--since", f"{days + 1}d", "--json")
    plain = (*PYTHON, "tests.bench.plain", str(days + 1))
    with simulated_twilio(calls, days, delay, tls=tls) as twilio:
        for _ in range(runs):
            with database_on(server) as url:
                environment = {**twilio, "DATABASE_URL": url}
                _execute(url, TABLES)
                first.add(OURS, _run(backfill, environment))
                first.add(PLAIN, _run(plain, environment))
                first.add(RAW, _run((*PYTHON, "tests.bench.floors", "raw", str(days)), environment))
                first.add(ROWS, _run((*PYTHON, "tests.bench.floors", "rows", str(days)), environment))
                _compare(url)
                if not more:
                    continue
                # Vacuum now, so that autovacuum does not do it during the measurement.
                _execute(url, "VACUUM ANALYZE messages, call_events, plain_messages")
                before = _ask(url, "SELECT pg_current_wal_lsn()")
                again.add(OURS, _run(backfill, environment))
                again.wal_bytes = int(_ask(url, "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s)", before))
                again.add(PLAIN, _run(plain, environment))
                _execute(url, CHANGE_ONE_PERCENT, "VACUUM messages, plain_messages")
                night.add(OURS, _run((*RECONCILE, "once", "cold", "--json"), environment))
                night.add(PLAIN, _run(plain, environment))
    yield first
    if more:
        yield again
        yield night


def _run(command: tuple[str, ...], environment: Environment) -> Ran:
    # Pages that the previous measurement left to write are not part of this one's cost.
    _execute(environment["DATABASE_URL"], "CHECKPOINT")
    return run(command, environment)


def _compare(url: str) -> None:
    """Refuse to compare programs that did not do the same work."""
    ours, plain, raw, rows = (
        _ask(url, f"SELECT count(*) FROM {name}")
        for name in ("messages", "plain_messages", "raw_calls", "floor_messages")
    )
    # The others list by StartTime alone and so miss the few calls that were never dialled.
    if not ours >= plain >= raw == rows >= 0.97 * ours:
        raise SystemExit(f"they did not read the same calls: {ours}, {plain}, {raw}, {rows}")


def _execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement)


def _ask(url: str, query: str, *params: Any) -> Any:
    with psycopg.connect(url) as conn:
        row = conn.execute(query, params).fetchone()
        return present(row)[0]

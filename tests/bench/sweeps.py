"""Whole sweeps as a person runs them, beside the plain script and the floors, each in a process of its own."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psycopg

from tests.bench.processes import RECONCILE, Environment, run, server_cpu, simulated_twilio
from tests.bench.servers import database_on
from tests.harness.present import present

OURS, PLAIN, RAW, ROWS = "reconciler", "plain script", "floor: raw", "floor: rows"
PYTHON = (sys.executable, "-m")
BACKFILL, AGAIN, NIGHT = "backfill", "the same again", "nightly sweep, 1 % changed"

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
SIZES = {OURS: ("messages", "call_events"), PLAIN: ("plain_messages",)}


class Case(NamedTuple):
    """An account: `calls` spread over `days`, whose pages take `delay`."""

    calls: int
    days: int
    delay: str


@dataclass
class Sweep:
    """One kind of sweep; by contender the seconds, MiB, CPU seconds and bytes of each run."""

    name: str
    case: Case
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    peaks: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    server_cpu: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wal: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    disk: dict[str, float] = field(default_factory=dict)
    requests: int = 0
    written: int = 0

    @property
    def calls(self) -> int:
        return self.case.calls

    @property
    def delay(self) -> str:
        return self.case.delay

    @property
    def seconds(self) -> dict[str, float]:
        return {who: statistics.median(times) for who, times in self.times.items()}

    @property
    def peak_mib(self) -> dict[str, float]:
        return {who: max(peaks) for who, peaks in self.peaks.items()}

    def a_call(self, of: dict[str, list[float]], who: str) -> float:
        """The median of `wal`, `cpu` or `server_cpu` for one call."""
        return statistics.median(of[who]) / self.calls

    def measure(self, who: str, command: tuple[str, ...], environment: Environment) -> None:
        """Run a contender once."""
        url = environment["DATABASE_URL"]
        # Pages that the previous measurement left to write are not part of this one's cost; its own are.
        _execute(url, "CHECKPOINT")
        wal, cpu = _ask(url, "SELECT pg_current_wal_lsn()"), server_cpu(url)
        ran = run(command, environment)
        self.times[who].append(ran.seconds)
        _execute(url, "CHECKPOINT")
        self.peaks[who].append(ran.peak_mib)
        self.cpu[who].append(ran.cpu_seconds)
        self.server_cpu[who].append(server_cpu(url) - cpu)
        self.wal[who].append(float(_ask(url, "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s)", wal)))
        if who in SIZES:
            self.disk[who] = sum(_ask(url, "SELECT pg_total_relation_size(%s)", table) for table in SIZES[who])
        if who == OURS:
            self.requests = ran.result["requests"]
            self.written = ran.result["inserted"] + ran.result["updated"]


def measure(server: str, case: Case, *, runs: int, tls: bool, more: bool) -> Iterator[Sweep]:
    """A backfill, and the same again; with `more` also the floors, and the nightly sweep of one that found changes."""
    first, again, night = (Sweep(name, case) for name in (BACKFILL, AGAIN, NIGHT))
    backfill = (*RECONCILE, "--since", f"{case.days + 1}d", "--json")
    plain = (*PYTHON, "tests.bench.plain", str(case.days + 1))
    with simulated_twilio(case.calls, case.days, case.delay, tls=tls) as twilio:
        for _ in range(runs):
            with database_on(server) as url:
                environment = {**twilio, "DATABASE_URL": url}
                _execute(url, TABLES)
                first.measure(OURS, backfill, environment)
                first.measure(PLAIN, plain, environment)
                if more:
                    first.measure(RAW, (*PYTHON, "tests.bench.floors", "raw", str(case.days)), environment)
                    first.measure(ROWS, (*PYTHON, "tests.bench.floors", "rows", str(case.days)), environment)
                _compare(url, with_floors=more)
                # Vacuum now, so that autovacuum does not do it during the measurement; also what ANALYZE wrote.
                _execute(url, "VACUUM ANALYZE messages, call_events, plain_messages", "VACUUM")
                again.measure(OURS, backfill, environment)
                again.measure(PLAIN, plain, environment)
                if more:
                    _execute(url, CHANGE_ONE_PERCENT, "VACUUM messages, plain_messages")
                    night.measure(OURS, (*RECONCILE, "once", "cold", "--json"), environment)
                    night.measure(PLAIN, plain, environment)
    yield first
    yield again
    if more:
        yield night


def peak_of_ours(server: str, calls: int, days: int) -> float:
    """The peak MiB of a backfill alone."""
    with simulated_twilio(calls, days, "0ms") as twilio, database_on(server) as url:
        return run((*RECONCILE, "--since", f"{days + 1}d", "--json"), {**twilio, "DATABASE_URL": url}).peak_mib


def _compare(url: str, *, with_floors: bool) -> None:
    """Refuse to compare programs that did not do the same work."""
    names = ("messages", "plain_messages", *(("raw_calls", "floor_messages") if with_floors else ()))
    ours, plain, *floors = (_ask(url, f"SELECT count(*) FROM {name}") for name in names)
    # The others list by StartTime alone and so miss the few calls that were never dialled.
    if not ours >= plain >= 0.97 * ours or any(not plain >= floor >= 0.97 * ours for floor in floors):
        raise SystemExit(f"they did not read the same calls: {ours}, {plain}, {floors}")


def _execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement)


def _ask(url: str, query: str, *params: Any) -> Any:
    with psycopg.connect(url) as conn:
        return present(conn.execute(query, params).fetchone())[0]

"""A whole backfill as a person runs it: `reconcile --since`, a simulated Twilio in another process, a real PostgreSQL.

    python -m tests.bench.backfill [--calls 100000] [--page-delay 0ms] [--kills 3]

Three runs into an empty database: undisturbed; the same again, which has nothing to write; and into another empty
database, killed with -9 at `--kills` moments and started again. Uses the server named by
RECONCILER_TEST_DATABASE_URL, or an embedded one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from rich.console import Console
from rich.table import Table

from tests.bench.merge import _server

VERSIONS = (
    "SELECT md5(string_agg(twilio_sid || xmin::text || ctid::text, ',' ORDER BY twilio_sid)), count(*) FROM messages"
)
CONTENT = (
    "SELECT md5(string_agg(concat_ws('|', twilio_sid, status, duration, price, start_time, end_time, from_number,"
    " to_number, sync_state), ',' ORDER BY twilio_sid)) FROM messages"
)
EVENTS = "SELECT count(*), count(DISTINCT dedupe_key) FROM call_events"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--page-delay", default="0ms")
    parser.add_argument("--kills", type=int, default=3)
    args = parser.parse_args()
    table = Table("run", "calls", "seconds", "calls/s", "requests", "retries", "peak MiB", "written")
    with _server() as server, _twilio(args.calls, args.page_delay) as environment:
        one, two = _database(server, "bench_once"), _database(server, "bench_killed")
        _run(one, environment, "migrate")
        first, peak = _run(one, environment, "--since", "31d", "--json")
        _add(table, "undisturbed", first, peak)
        before = _ask(one, VERSIONS), _ask(one, EVENTS)
        again, peak = _run(one, environment, "--since", "31d", "--json")
        _add(table, "the same again", again, peak)
        print(
            f"row versions and events unchanged by the second run: {(_ask(one, VERSIONS), _ask(one, EVENTS)) == before}"
        )

        _run(two, environment, "migrate")
        shares = [(kill + 1) / (args.kills + 1) for kill in range(args.kills)]
        for share in shares:
            _kill_when(two, environment, rows=int(first["calls_seen"] * share))
        last, peak = _run(two, environment, "--since", "31d", "--json")
        _add(table, f"after {args.kills} × kill -9", last, peak)
        print(f"equal to the undisturbed run: {_ask(one, CONTENT) == _ask(two, CONTENT)}")
        print(f"events, and distinct facts among them: {_ask(one, EVENTS)} and killed: {_ask(two, EVENTS)}")
        with psycopg.connect(server) as conn:
            version = conn.info.parameter_status("server_version")
    Console(width=110).print(table)
    print(
        f"PostgreSQL {version}, Python {sys.version.split()[0]}, {os.cpu_count()} cores, page delay {args.page_delay}"
    )


def _run(url: str, environment: dict[str, str], *arguments: str) -> tuple[dict[str, Any], float]:
    """Run one command to its end; returns its JSON and its peak memory in MiB."""
    process = subprocess.Popen(
        [sys.executable, "-m", "reconciler", *arguments],
        env={**environment, "DATABASE_URL": url}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments} ended with {process.returncode}")
    return (json.loads(output) if "--json" in arguments else {}), usage.ru_maxrss / 1024


def _kill_when(url: str, environment: dict[str, str], *, rows: int) -> None:
    """Start the backfill and kill it with -9 as soon as `rows` rows are there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "reconciler", "--since", "31d"],
        env={**environment, "DATABASE_URL": url}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and _ask(url, "SELECT count(*) FROM messages")[0] < rows:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _add(table: Table, name: str, result: dict[str, Any], peak: float) -> None:
    seconds = result["duration_seconds"]
    table.add_row(
        name, f"{result['calls_seen']:,}", f"{seconds:.1f}", f"{result['calls_seen'] / seconds:,.0f}",
        str(result["requests"]), str(result["retries"]), f"{peak:.0f}", f"{result['inserted'] + result['updated']:,}",
    )  # fmt: skip


def _ask(url: str, query: str) -> tuple[Any, ...]:
    with psycopg.connect(url) as conn:
        return conn.execute(query).fetchone() or ()  # type: ignore[arg-type]


def _database(server: str, name: str) -> str:
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        conn.execute(f"CREATE DATABASE {name}")
    return make_conninfo(server, dbname=name)


@contextmanager
def _twilio(calls: int, delay: str) -> Iterator[dict[str, str]]:
    """A simulated account in a process of its own; yields the environment that points at it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "reconciler.simulator", "--calls", str(calls), "--days", "30", "--port", "0",
         "--page-delay", delay],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    found: dict[str, str] = {}
    try:
        while len(found) < 3:
            if match := re.search(r"(\w+)=(\S+)", process.stdout.readline()):
                found[match[1]] = match[2].strip("'\"")
        yield {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **found}
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()

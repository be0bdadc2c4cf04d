"""The gains of a fleet: `python -m tests.bench.fleet cycle|backfill|idle`, with 1, 2 and 4 workers of equal size.

The simulated Twilio takes 250 ms for an answer, so that waiting is shared out and not CPU. Prints a line of JSON for
each number of workers. Ratios say more than seconds: everything runs on one machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from reconciler.database import connection as db
from reconciler.database import engine_schema
from tests.bench.processes import (
    RECONCILE,
    Environment,
    ask_simulator,
    cpu_of,
    run,
    server_cpu,
    serving,
    simulated_twilio,
)
from tests.bench.servers import database

_HOT_TASKS = "SELECT count(*) FROM reconciler_engine.procrastinate_jobs WHERE queue_name = 'hot'"
_FINAL = "SELECT count(*) FROM messages WHERE is_final"
_WAL = "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"
_CONNECTIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'reconciler: %'"
    " AND application_name <> 'reconciler: bench'"
)
# Those that merge are named after their job.
_BESIDE = f"{_CONNECTIONS} AND application_name ~ '^reconciler: (daemon|engine|budget)'"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fleet", description=__doc__)
    add = parser.add_argument
    add("what", choices=("cycle", "backfill", "idle"))
    add("--workers", type=int, nargs="+", default=[1, 2, 4])
    add("--slots", type=int, default=16, help="RECONCILER_WORKERS of each")
    add("--accounts", type=int, default=2000, help="of a cycle")
    add("--open", type=int, default=20, help="open calls of each account in a cycle")
    add("--calls", type=int, default=60_000, help="of a backfill")
    add("--days", type=int, default=60, help="of a backfill")
    add("--delay", type=int, default=250, help="milliseconds that Twilio takes for an answer")
    add("--seconds", type=int, default=60, help="of idleness")
    args = parser.parse_args()
    measure = {"cycle": cycle, "backfill": backfill, "idle": idle}[args.what]
    for workers in args.workers:
        print(
            json.dumps({"what": args.what, "workers": workers, "slots": args.slots, **measure(args, workers)}),
            flush=True,
        )


def cycle(args: argparse.Namespace, workers: int) -> dict[str, Any]:
    """Seconds from the end of a call in each account until all are final in the database, and who used the cores."""
    command = [sys.executable, "-m", "tests.bench.accounts", "--serve", "--accounts", str(args.accounts)]
    command += ["--open", str(args.open), "--delay", str(args.delay)]
    with database() as url, serving(command) as (twilio, simulator), psycopg.connect(url, autocommit=True) as conn:
        assert simulator.stdin is not None
        assert simulator.stdout is not None
        env = {**twilio, "RECONCILER_HOT_INTERVAL": "1h", "RECONCILER_ACCOUNTS": "all"}
        with fleet(url, env, workers, args.slots) as daemons:
            jobs = "SELECT count(*) FROM sync_state WHERE job_name LIKE 'hot%' AND last_success_at IS NOT NULL"
            _until(lambda: _one(conn, jobs) > 0, 300)
            _defer_hot(conn, args.accounts)
            _until(lambda: _one(conn, jobs) >= args.accounts and _one(conn, _HOT_TASKS) == 0, 3600)
            before = _one(conn, _FINAL)
            simulator.stdin.write("end\n")
            simulator.stdin.flush()
            simulator.stdout.readline()

            def used() -> dict[str, float]:
                return {
                    "simulator": cpu_of([simulator.pid]), "postgresql": server_cpu(url),
                    "workers": cpu_of(daemon.pid for daemon in daemons),
                }  # fmt: skip

            began, cpu = time.monotonic(), used()
            _defer_hot(conn, args.accounts)
            # To count the final calls reads them all, so that comes last.
            _until(lambda: _one(conn, _HOT_TASKS) == 0 and _one(conn, _FINAL) >= before + args.accounts, 3600)
            seconds, after = time.monotonic() - began, used()
            shares = {f"cores_{name}": round((after[name] - cpu[name]) / seconds, 2) for name in cpu}
            return {"seconds": round(seconds, 1), "accounts": args.accounts, "open": args.open, **shares}


def backfill(args: argparse.Namespace, workers: int) -> dict[str, Any]:
    """Seconds and requests of a backfill of one account."""
    with database() as url, simulated_twilio(args.calls, args.days, f"{args.delay}ms") as twilio:
        env = {**twilio, "RECONCILER_HOT_INTERVAL": "4w", "RECONCILER_MAX_CONCURRENCY": "16"}
        with fleet(url, env, workers, args.slots), psycopg.connect(url, autocommit=True) as conn:
            done = "SELECT count(*) FROM sync_state WHERE job_name IN ('hot', 'cold') AND last_success_at IS NOT NULL"
            _until(lambda: _one(conn, done) == 2 and _waiting(conn) == 0, 900)
            conn.execute("SET session_replication_role = replica")
            conn.execute("TRUNCATE messages, call_events")
            ask_simulator(twilio)
            since = f"{args.days + 2}d"
            own = {**env, "DATABASE_URL": url, "RECONCILER_ENGINE": "procrastinate"}
            ran = run((*RECONCILE, "--since", since, "--fleet", "--json"), own)
            asked = ask_simulator(twilio)
            return {
                "seconds": round(ran.seconds, 1), "calls": ran.result["calls_seen"], "held": _one(conn, _FINAL),
                "requests": ran.result["requests"], "simulator": {k: v for k, v in asked.items() if isinstance(v, int)},
            }  # fmt: skip


def idle(args: argparse.Namespace, workers: int) -> dict[str, Any]:
    """What a fleet with nothing to do costs PostgreSQL: CPU, WAL and connections."""
    with (
        database() as url,
        simulated_twilio(10, 1, "0ms") as twilio,
        fleet(url, twilio, workers, args.slots),
        psycopg.connect(url, autocommit=True) as conn,
    ):
        done = "SELECT count(*) FROM sync_state WHERE last_success_at IS NOT NULL AND job_name <> 'daemon'"
        _until(lambda: _one(conn, done) >= 7 and _waiting(conn) == 0, 300)
        cpu, wal, most, beside = server_cpu(url), float(_one(conn, _WAL)), 0, 0
        began = time.monotonic()
        while time.monotonic() - began < args.seconds:
            most, beside = max(most, _one(conn, _CONNECTIONS)), max(beside, _one(conn, _BESIDE))
            time.sleep(1)
        lasted = time.monotonic() - began
        return {
            "percent_of_a_core": round(100 * (server_cpu(url) - cpu) / lasted, 2),
            "wal_mb_a_day": round((float(_one(conn, _WAL)) - wal) / lasted * 86_400 / 1e6, 1),
            "connections": most,
            "connections_beside_those_that_merge": beside,
        }


@contextmanager
def fleet(url: str, env: Environment, workers: int, slots: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many daemons, ready to work."""
    quiet = {}  # every job as usual
    if "RECONCILER_HOT_INTERVAL" in env:
        quiet = {f"RECONCILER_{job}_INTERVAL": "4w" for job in ("WARM", "COLD", "FREEZE", "INBOX")}
    made = {
        **env, **quiet, "DATABASE_URL": url, "RECONCILER_ENGINE": "procrastinate", "RECONCILER_WORKERS": str(slots),
        "RECONCILER_LOG_LEVEL": "error", "RECONCILER_WEBHOOK_GRACE": "0s",
    }  # fmt: skip
    daemons = [subprocess.Popen((*RECONCILE, "run"), env=made) for _ in range(workers)]
    try:
        with db.connect(url, purpose="bench") as conn:
            _until(lambda: engine_schema.is_there(conn) and len(engine_schema.read_workers(conn)) == workers, 120)
        yield daemons
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(30)


def _defer_hot(conn: psycopg.Connection[Any], accounts: int) -> None:
    """Make hot due in every account at once."""
    from procrastinate import SyncPsycopgConnector
    from procrastinate.manager import JobManager

    from reconciler.model import JobName
    from reconciler.service.engine_tables import make_task

    names = [JobName("hot"), *(JobName("hot", f"AC{number:032x}") for number in range(1, accounts))]
    with conn.transaction():
        conn.execute("SET LOCAL search_path = reconciler_engine")
        waiting = {name for (name,) in conn.execute("SELECT queueing_lock FROM procrastinate_jobs")}
        tasks = [make_task(name) for name in names if str(name) not in waiting]
        if tasks:
            JobManager(SyncPsycopgConnector()).batch_defer_jobs(tasks, connection=conn)


def _waiting(conn: psycopg.Connection[Any]) -> int:
    return int(_one(conn, "SELECT count(*) FROM reconciler_engine.procrastinate_jobs"))


def _one(conn: psycopg.Connection[Any], query: str) -> Any:
    row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def _until(look: Any, at_most: float) -> None:
    began = time.monotonic()
    while not look():
        if time.monotonic() - began > at_most:
            raise SystemExit(f"not done after {at_most} s")
        time.sleep(0.1)


if __name__ == "__main__":
    main()

"""How long procrastinate takes for many short tasks: `python -m tests.programs.queue_speed [TASKS]`.

One worker of concurrency 16 works off 2,000 tasks of 50 ms in several ways. Prints the seconds that it took, and those
of CPU that the server's processes for it took; 6.25 s is what the tasks themselves take.
`docs/decisions/0006-a-fleet-on-procrastinate.md` cites them. TEST_DATABASE_URL names the server, which must be on
this machine; without it an embedded one runs.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import procrastinate
from procrastinate.schema import SchemaManager
from psycopg.conninfo import make_conninfo

from reconciler.database import connection as db
from tests.bench.servers import database_on, server

TASKS = 2_000
SECONDS = 0.05
CONCURRENCY = 16
SCHEMA = "queue_speed"

_BACKENDS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"


class Way(NamedTuple):
    """One way to work the tasks off."""

    name: str
    with_lock: bool = False
    as_coroutine: bool = True
    connections: int = 16


async def work_off(url: str, tasks: int, way: Way) -> tuple[float, float, float]:
    """The seconds of deferring, of working off, and of the CPU in the server for both."""
    pool = ThreadPoolExecutor(CONCURRENCY)
    conninfo = make_conninfo(url, options=f"-c search_path={SCHEMA}")
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(conninfo=conninfo, min_size=1, max_size=way.connections)
    )

    @app.task(name="function")
    def function() -> None:
        time.sleep(SECONDS)

    @app.task(name="coroutine")
    async def coroutine() -> None:
        await asyncio.get_running_loop().run_in_executor(pool, time.sleep, SECONDS)

    task = coroutine if way.as_coroutine else function
    async with app.open_async():
        started = time.perf_counter()
        await asyncio.gather(
            *(task.configure(lock=f"lock {n}" if way.with_lock else None).defer_async() for n in range(tasks))
        )
        deferred = time.perf_counter()
        await app.run_worker_async(concurrency=CONCURRENCY, wait=False, install_signal_handlers=False)
        done = time.perf_counter()
        pids = [row["pid"] for row in await app.connector.execute_query_all_async(_BACKENDS)]
        return deferred - started, done - deferred, sum(map(_cpu_seconds, pids))


def _cpu_seconds(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def main(tasks: int) -> None:
    """Measure and print."""
    ways = (
        Way("a lock for each task, 16 connections", with_lock=True),
        Way("a lock for each task, 4 connections", with_lock=True, connections=4),
        Way("no lock, 16 connections"),
        Way("no lock, plain functions", as_coroutine=False),
    )
    with server() as server_url:
        for way in ways:
            with database_on(server_url) as url:
                with db.connect(url, purpose="queue speed") as conn:
                    conn.execute(f"CREATE SCHEMA {SCHEMA}".encode())
                    conn.execute(f"SET search_path = {SCHEMA}".encode())
                    conn.execute(SchemaManager.get_schema())
                    conn.execute("ANALYZE")  # autovacuum finds the queue empty at times
                deferring, working, cpu = asyncio.run(work_off(url, tasks, way))
            print(
                f"{way.name}: deferred in {deferring:.1f} s, worked off in {working:.1f} s, {cpu:.1f} s of CPU",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="?", type=int, default=TASKS, metavar="TASKS")
    main(parser.parse_args().tasks)

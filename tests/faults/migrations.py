"""Migrations killed at every statement: `python -m tests.faults.migrations [--every 1]` tries all of them (minutes).

Between a real process and the server stands a proxy that counts statements. It kills the process (SIGKILL) before the
n-th statement reaches the server, or right behind it, while the server is at work on it. The program itself has no code
for this. Afterwards another process migrates to the end. Catalog, ledger and rows must then be those of an undisturbed
run.
Uses the server named by TEST_DATABASE_URL, or an embedded one.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from psycopg.conninfo import conninfo_to_dict

from reconciler.database import connection as db
from reconciler.database.migrate import migrate, rollback
from reconciler.database.migration_files import load_migrations
from reconciler.database.verify import verify
from reconciler.errors import ReconcilerError
from tests.bench.servers import server
from tests.faults.proxy import FORKS, PATIENCE, Moment, Proxy
from tests.harness.catalog import DUMP
from tests.harness.databases import FIELD, new_database

Road = Literal["empty", "field"]
Work = Callable[[str], object]

LAST_OF_THE_VIEWER = 4
LOCK = "pg_try_advisory_lock"  # how many attempts there are is a matter of time


def is_no_lock(text: str) -> bool:
    """Whether a statement is none of those that are repeated while another process has the lock."""
    return LOCK not in text


def to_the_top(url: str) -> None:
    """Migrate to the newest version; each process does this."""
    with db.connect(url, purpose="migrate") as conn:
        migrate(conn, patience=timedelta(seconds=PATIENCE))


def to_the_bottom(url: str, to: int) -> None:
    """Or undo everything after version `to`."""
    with db.connect(url, purpose="migrate") as conn:
        rollback(conn, to=to, drop_data=True, patience=timedelta(seconds=PATIENCE))


def _body(work: Work, url: str) -> None:
    try:
        work(url)
    except ReconcilerError as exc:
        print(f"{type(exc).__name__}: {exc}", flush=True)
        os._exit(int(exc.exit_code))


def start(work: Work, url: str) -> BaseProcess:
    """`work` in a process of its own."""
    process = FORKS.Process(target=_body, args=(work, url), daemon=True)
    process.start()
    return process


def finish(process: BaseProcess) -> int:
    """Wait for its end; returns its exit code, negative if a signal ended it."""
    process.join(PATIENCE)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


@contextmanager
def through(proxy: Proxy, work: Work) -> Iterator[BaseProcess]:
    """`work` in a process that talks to the server through `proxy`."""
    process = start(work, proxy.url)
    proxy.victim = process
    proxy.victim_known.set()
    try:
        yield process
    finally:
        process.kill()
        process.join()
        proxy.close()


@dataclass
class Roads:
    """Databases to begin with, and how they end when nothing disturbs."""

    server_url: str
    templates: dict[Road, str]
    ends: dict[tuple[Road, str], State] = field(default_factory=dict)
    statements: dict[tuple[Road, str], list[str]] = field(default_factory=dict)

    def database(self, road: Road) -> Any:
        """A database as `road` begins."""
        return new_database(self.server_url, self.templates[road])

    def learn(self) -> None:
        """Run each road up and down once, undisturbed, and remember."""
        for road in self.templates:
            for way in ("up", "down"):
                with self.database(road) as url:
                    if way == "down":
                        to_the_top(url)
                    proxy = Proxy(url, counts=is_no_lock)
                    with through(proxy, work_of(road, way)) as process:
                        assert finish(process) == 0
                    self.statements[road, way] = proxy.statements
                    if way == "down":
                        to_the_top(url)
                    self.ends[road, way] = state(url)
        assert self.ends["empty", "up"].catalog == self.ends["empty", "down"].catalog


@dataclass(frozen=True)
class State:
    """The state of a database: the catalog, the ledger, and the rows that were there before."""

    catalog: dict[str, str]
    ledger: list[tuple[Any, ...]]
    rows: list[tuple[Any, ...]]


def state(url: str) -> State:
    """Look at it."""
    with db.connect(url, purpose="test") as conn:
        assert verify(conn) == []
        return State(
            dict(conn.execute(DUMP).fetchall()),
            conn.execute("SELECT version, name, checksum FROM reconciler_migrations ORDER BY version").fetchall(),
            conn.execute(
                "SELECT md5(string_agg((to_jsonb(m) - 'updated_at')::text, ' ' ORDER BY id)) FROM messages AS m"
                " UNION ALL SELECT md5(string_agg(to_jsonb(e)::text, ' ' ORDER BY id)) FROM call_events AS e"
                " UNION ALL SELECT md5(string_agg(to_jsonb(i)::text, ' ' ORDER BY id)) FROM twilio_webhook_inbox AS i"
                " UNION ALL SELECT md5(string_agg(to_jsonb(s)::text, ' ' ORDER BY job_name)) FROM sync_state AS s"
            ).fetchall(),
        )


def work_of(road: Road, way: str) -> Work:
    """Up: migrate. Down: undo everything, in the field all that is not the Viewer's."""
    if way == "up":
        return to_the_top
    return partial(to_the_bottom, to=-1 if road == "empty" else LAST_OF_THE_VIEWER)


def killed_at(roads: Roads, road: Road, way: str, at: int, moment: Moment) -> list[str]:
    """Kill a process at its `at`-th statement, let another one finish, and say what is not as it should be."""
    with roads.database(road) as url:
        if way == "down":
            to_the_top(url)
        proxy = Proxy(url, at=at, moment=moment, counts=is_no_lock)
        with through(proxy, work_of(road, way)) as process:
            code = finish(process)
        where = f"{road} {way}, {moment} statement {at}"
        if code != -signal.SIGKILL:
            return [f"{where}: it ended with {code} and was not killed"]
        where += f": {proxy.statements[-1][:60]}"
        ways = ["up"] if way == "up" else ["down", "up"]
        for again in ways:
            if (code := finish(start(work_of(road, again), url))) != 0:
                return [f"{where}: the next run {again} ended with {code}"]
        end = roads.ends[road, way]
        found = state(url)
        return [
            f"{where}: {part} differ"
            for part in ("catalog", "ledger", "rows")
            if getattr(found, part) != getattr(end, part)
        ]


def eight_at_once(roads: Roads, road: Road, kills: list[int]) -> tuple[Counter[int], list[str]]:
    """Start eight processes together and kill as many as there are `kills`, each at its so many-th statement.

    Return how they ended, and the faults that are left after one more process.
    """
    with roads.database(road) as url, ExitStack() as stack:
        at: list[int | None] = [*kills, *[None] * (8 - len(kills))]
        moments: list[Moment] = ["before", "behind"]
        proxies = [Proxy(url, at=n, moment=moments[i % 2], counts=is_no_lock) for i, n in enumerate(at)]
        processes = [stack.enter_context(through(proxy, to_the_top)) for proxy in proxies]
        codes = Counter(map(finish, processes))
        codes[finish(start(to_the_top, url))] += 1
        found, end = state(url), roads.ends[road, "up"]
        return codes, [
            f"{road}, eight at once, killed at {kills}: {part} differ"
            for part in ("catalog", "ledger", "rows")
            if getattr(found, part) != getattr(end, part)
        ]


@contextmanager
def field_template(server_url: str) -> Iterator[str]:
    """A database as the Viewer's own scripts and its backend left it."""
    with new_database(server_url) as url:
        with db.connect(url, purpose="field") as conn:
            for file in sorted(FIELD.glob("*.sql")):
                conn.execute(file.read_bytes())
        yield str(conninfo_to_dict(url)["dbname"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every n-th statement")
    args = parser.parse_args()
    problems: list[str] = []
    kills = Counter[str]()
    with server() as server_url, field_template(server_url) as name:
        roads = Roads(server_url, {"empty": "template0", "field": name})
        roads.learn()
        for (road, way), statements in roads.statements.items():
            moments: tuple[Moment, ...] = ("before", "behind")
            for at in range(1, len(statements) + 1, args.every):
                for moment in moments:
                    kills[f"{road} {way}"] += 1
                    for problem in killed_at(roads, road, way, at, moment):
                        problems.append(problem)
                        print(problem, flush=True)
            print(f"{road} {way}: {kills[f'{road} {way}']} killed, {len(problems)} problems", flush=True)
        longest = {road: len(roads.statements[road, "up"]) for road in roads.templates}
        for road, length in longest.items():
            for first in range(1, length + 1, 8 * args.every):
                ended, found = eight_at_once(roads, road, [first + n for n in range(8)])
                kills[f"{road}, of eight"] += ended[-signal.SIGKILL]
                if set(ended) - {0, -signal.SIGKILL}:
                    found.append(f"{road}, eight at once: ended with {ended}")
                problems += found
                print(*found, sep="\n", end="\n" if found else "", flush=True)
    print(f"{len(load_migrations())} migrations; killed:", ", ".join(f"{what} {n}" for what, n in kills.items()))
    print(f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())

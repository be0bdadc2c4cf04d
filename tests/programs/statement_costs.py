"""What each statement of `reconciler/database/queries/` costs in a large database.

    python -m tests.programs.statement_costs [ROWS[:ACCOUNTS] ...] [--keep]

The default is 10000 1000000. Fills a database for each size (`tests/harness/volume.py`), and runs each statement in a
transaction that is rolled back. Prints a table in Markdown: the plan's nodes on our tables and the rows. For each size
it adds the blocks touched, and the median of five runs in milliseconds. Then the tables' and indexes' bytes for a call.
10000000 rows take 10 GB and ten minutes. TEST_DATABASE_URL names the server; without it an embedded one runs.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from hashlib import md5
from importlib.resources import files
from typing import Any, NamedTuple

from psycopg import sql

from reconciler.database import connection as db
from reconciler.database import engine_schema, plans, staging
from reconciler.database.migration_files import TABLES
from reconciler.database.store import _MERGE_SESSION
from reconciler.database.transaction import Rules
from reconciler.model import Observation, Status, Via
from tests.bench.servers import database_on, server
from tests.harness.volume import RECENT, fill

NOW = datetime(2026, 6, 10, 12, tzinfo=UTC)
RUNS = 5
PAGE = 1_000

# Asked over a connection without the merge's settings.
BY_STATUS = ("demo", "report", "webhook_evidence")
# These read the catalog and the ledger of migrations, and no table that grows.
LEFT_OUT = ("migrations", "obstacles", "catalog", "check")
# No statement that EXPLAIN takes, or none that a daemon runs while it works.
NO_PLAN = {
    "staging.create_staging", "staging.copy_into_staging", "thaw.open_door", "thaw.close_door",
    "housekeeping.open_retention", "housekeeping.close_retention",
    "engine.create_schema", "engine.create_ledger", "engine.create_daemons", "engine.create_expected",
    "engine.create_reference", "engine.drop_schema", "engine.enter_schema", "engine.enter_reference", "engine.exists",
    "engine.applied", "engine.note_applied", "engine.has_expected", "engine.expected", "engine.forget_expected",
    "engine.note_expected", "engine.tables", "engine.types_and_keys", "engine.lacking_privileges", "engine.listen",
}  # fmt: skip
FETCH = "SELECT * FROM reconciler_engine.procrastinate_fetch_job_v2('{hot,usual}', 1)"
# A full queue: a fleet of four, and of each account three tasks, a tenth of them at work.
QUEUE = """
    SET search_path = reconciler_engine, public, pg_temp;
    INSERT INTO procrastinate_workers (id) OVERRIDING SYSTEM VALUE SELECT n FROM generate_series(1, 4) AS n;
    INSERT INTO daemons SELECT id, 'db1', id, now(), 16 FROM procrastinate_workers;
    INSERT INTO procrastinate_jobs (queue_name, task_name, priority, queueing_lock, status, worker_id)
    SELECT queue, 'run', 50, queue || ':AC' || lpad(to_hex(a), 32, '0'),
        (CASE WHEN a % 10 = 0 THEN 'doing' ELSE 'todo' END)::procrastinate_job_status,
        CASE WHEN a % 10 = 0 THEN 1 + a % 4 END
    FROM generate_series(1, {accounts}) AS a, unnest('{{hot,usual,bulk}}'::text[]) AS queue;
    ANALYZE procrastinate_jobs;
    RESET search_path
"""


class Cost(NamedTuple):
    """What a statement cost at one size."""

    nodes: tuple[str, ...]
    rows: int
    blocks: int
    milliseconds: float


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", metavar="ROWS[:ACCOUNTS]", nargs="*", default=["10000", "1000000"])
    parser.add_argument("--url", help="a database that is filled already, of the last of the sizes")
    args = parser.parse_args()
    found: dict[str, dict[str, Cost]] = {}
    with server() as server_url:
        for size in args.sizes:
            calls, _, accounts = size.partition(":")
            with _filled(args, size, server_url, int(calls), int(accounts or 3)) as url:
                found[size] = measure(url, int(calls))
                _print_sizes(url, int(calls))
    _print_costs(found)


@contextmanager
def _filled(args: argparse.Namespace, size: str, server_url: str, calls: int, accounts: int) -> Iterator[str]:
    if args.url and size == args.sizes[-1]:
        yield args.url
        return
    with database_on(server_url) as url:
        with db.connect(url, purpose="fill", settings={"statement_timeout": "0"}) as conn:
            fill(conn, calls, now=NOW, accounts=accounts, is_fast=True)
            engine_schema.migrate(conn)
            for statement in QUEUE.format(accounts=accounts).split(";"):
                conn.execute(statement.encode())
            conn.execute("CHECKPOINT")
        yield url


def measure(url: str, calls: int) -> dict[str, Cost]:
    """The cost of each statement in the database of `url`, which holds `calls` calls."""
    costs: dict[str, Cost] = {}
    values = _values(calls)
    with (
        db.connect(url, purpose="jobs", settings=_MERGE_SESSION) as jobs,
        db.connect(url, purpose="status") as status,
        db.connect(url, purpose="engine") as engine,
    ):
        engine.execute("SET search_path = reconciler_engine, public, pg_temp")
        staging.create(jobs)
        jobs.execute("SET reconciler.retention = 'on'")
        for file in sorted(files("reconciler.database").joinpath("queries").iterdir(), key=lambda file: file.name):
            table = file.name.removesuffix(".sql")
            conn = engine if table == "engine" else status if table in BY_STATUS else jobs
            queries = {} if table in LEFT_OUT else {**db.load_queries(table)}
            if table == "engine":
                queries["procrastinate_fetch_job_v2"] = FETCH
            for name, query in queries.items():
                if f"{table}.{name}" == "merge.merge_staged":
                    for kind, page in PAGES.items():
                        costs[f"{table}.{name}, {kind}"] = _cost(conn, query, values, partial(page, calls))
                elif f"{table}.{name}" not in NO_PLAN:
                    special = plans._SPECIAL_VALUES.get(f"{table}.{name}", {})
                    mine = {**values, **{here: values[there] for here, there in special.items()}}
                    costs[f"{table}.{name}"] = _cost(conn, query, {**mine, **OWN.get(f"{table}.{name}", {})})
    return costs


def _cost(
    conn: db.Connection, query: str, values: Mapping[str, Any], page: Callable[[], list[Observation]] | None = None
) -> Cost:
    took: list[float] = []
    for _ in range(RUNS):
        with conn.transaction(force_rollback=True):
            if page:
                staged = page()
                staging.stage(conn, staged)
                values = {**values, **staging.neighbourhood(staged)}
            explain = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ") + sql.SQL(query)
            row = conn.execute(explain, values).fetchone()
            assert row
        (answer,) = row[0]
        took.append(float(answer["Planning Time"] + answer["Execution Time"]))
    root = answer["Plan"]
    nodes = tuple(dict.fromkeys(_named(node) for node in plans._nodes(root) if _is_ours(node)))
    blocks = sum(root[f"Shared {kind} Blocks"] for kind in ("Hit", "Read"))
    return Cost(nodes, int(root["Actual Rows"]), blocks, statistics.median(took))


def _is_ours(node: Mapping[str, Any]) -> bool:
    if not node["Actual Loops"]:
        return False
    table = node.get("Relation Name", "")
    is_ours = table in TABLES or table == "daemons" or table.startswith("procrastinate_")
    return "Index Name" in node or (is_ours and "Scan" in node["Node Type"])


def _named(node: Mapping[str, Any]) -> str:
    if "Index Name" in node:
        return f"{node['Node Type']} {node['Index Name']}"
    return f"{node['Node Type']} {node['Relation Name']}"


def _new(calls: int) -> list[Observation]:
    return [_held(calls + n)._replace(call_sid=f"CA{random.randbytes(16).hex()}") for n in range(PAGE)]


def _of_a_day(calls: int) -> list[Observation]:
    first = random.randint(1, calls - RECENT - PAGE)
    return [_held(first + n) for n in range(PAGE)]


def _of_any_day(calls: int) -> list[Observation]:
    return [_held(random.randint(1, calls - RECENT)) for _ in range(PAGE)]


# Pages of calls: the order in the table is that of their times, the order in the index is none.
PAGES: dict[str, Callable[[int], list[Observation]]] = {
    "new": _new,
    "unchanged, of a day": _of_a_day,
    "unchanged, of any day": _of_any_day,
    "disagree with frozen rows": lambda calls: [held._replace(price=Decimal(-1)) for held in _of_a_day(calls)],
}


def _held(number: int) -> Observation:
    """The record of a call as `fill` wrote it, without its times."""
    return Observation(
        "CA" + md5(str(number).encode()).hexdigest(), "AC" + 32 * "0", None, "inbound", Status.COMPLETED,
        "+15005550100", "+15005550101", 60, Decimal("-0.0085"), "USD", None, None, None, None, NOW, NOW, Via.REST,
    )  # fmt: skip


def _values(calls: int) -> dict[str, Any]:
    account = f"AC{1:032x}"
    newest = [f"CA{md5(str(calls - n).encode()).hexdigest()}" for n in range(100)]
    return {
        **plans._values(NOW, account), **Rules()._asdict(), "apply": True, "explain": False, "imported_before": None,
        "call_sid": newest[7], "call_sids": newest, "tables": list(TABLES), "names": ["daemon", "hot"],
        "prefix": "reconciler:", "ids": list(range(calls - 99, calls + 1)), "reasons": ["why"] * 100,
        "record": "{}",
        "dedupe_key": "one", "reason": "why", "answers": ["human"] * 100, "said_ats": [NOW] * 100,
        "id": calls, "kind": "hot", "cursor": "{}", "expected": None, "error": "why", "note": "{}",
        "lock": "daemon", "budget": "{}",
        "listed": 1, "held": 1, "digest": "", "billed": None, "differences": "{}", "is_complete": True,
        "billed_price": None, "held_price": None, "unsettled": 0,
        "verified_at": NOW, "address": "+1", "endpoint_sid": "PN1", "fault": "no_callback", "url": "", "hour": NOW,
        "sids": newest, "worker_id": 1, "host": "db1", "process": 1, "slots": 16, "hot_at": None,
        "error_code": "11200", "alerts": 1, "term": 0, "brief": True, "first_looks": "{}", "limit": 201, "batch": 1000,
    }  # fmt: skip


# Parameters with a meaning of their own in one statement, beside those of `reconcile verify --explain`.
OWN: dict[str, dict[str, Any]] = {
    "account_days.held_of_day": {"since": NOW - timedelta(days=2), "until": NOW - timedelta(days=1)},
    "report.gaps_found": {"since": NOW - timedelta(days=30)},
    "report.count_calls": {"since": NOW - timedelta(days=30)},
    "account_days.price_of_day": {"since": NOW - timedelta(days=2), "until": NOW - timedelta(days=1)},
    "engine.pending": {"names": [f"hot:AC{n:032x}" for n in range(100)]},
    "engine.sign_of_life": {"since": NOW},
    "engine.withdraw": {"prefix": f"backfill:AC{1:032x}:"},
}


def _print_costs(found: Mapping[str, Mapping[str, Cost]]) -> None:
    sizes = list(found)
    print("| statement | reads | rows |" + "".join(f" blocks, {size} | ms |" for size in sizes))
    print("| --- | --- | --- |" + " --- | --- |" * len(sizes))
    for name, last in found[sizes[-1]].items():
        each = "".join(f" {found[s][name].blocks:,} | {found[s][name].milliseconds:.2f} |" for s in sizes)
        print(f"| `{name}` | {', '.join(last.nodes)} | {last.rows:,} |{each}")


def _print_sizes(url: str, calls: int) -> None:
    query = """
        SELECT c.relname, pg_table_size(c.oid), NULL FROM pg_class AS c WHERE c.relname = ANY(%(tables)s)
        UNION ALL
        SELECT i.relname, pg_relation_size(i.oid), c.relname FROM pg_index AS x
        JOIN pg_class AS c ON c.oid = x.indrelid JOIN pg_class AS i ON i.oid = x.indexrelid
        WHERE c.relname = ANY(%(tables)s) ORDER BY 2 DESC"""
    print(f"\n| {calls:,} calls | MB | bytes a row |\n| --- | --- | --- |")
    with db.connect(url, purpose="sizes") as conn:
        for name, size, _ in conn.execute(query, {"tables": ["messages", "call_events", "twilio_webhook_inbox"]}):
            print(f"| `{name}` | {size / 1e6:,.1f} | {size / calls:.1f} |")
    print()


if __name__ == "__main__":
    main()

"""`reconcile verify --explain`: whether the statements that poll use the indexes that were made for them.

A statement polls if the comment above it names one of our indexes; there is no other list. Each statement is given to
EXPLAIN with values like those of a run. A statement that only reads is run, with ANALYZE. A statement that locks or
writes is only planned. Everything happens in transactions that PostgreSQL keeps read-only.

A plan is bad in two cases:

- It reads a whole table of ours, even if reading whole tables is forbidden: no index can serve it.
- It reads a whole table and discards most of at least 10,000 rows. The planner should have used an index; its
  statistics are probably old.

To read all of a small table is right, and so it is if most rows are wanted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any, Final, LiteralString, NamedTuple

from psycopg import errors as pg
from psycopg import sql

from reconciler.database.catalog import OLDER_INDEXES, expected_objects
from reconciler.database.connection import Connection, load_queries, translated
from reconciler.database.migration_files import TABLES
from reconciler.database.verify import Finding

MANY_ROWS: Final = 10_000
MOST: Final = 0.9  # share of the rows that were read

# The names of unique keys that our files made; in the field a unique key may have any name.
_KEYS: Final = {
    "messages_twilio_sid_key": "messages", "call_events_pkey": "call_events", "account_days_pkey": "account_days",
    "twilio_webhook_inbox_pkey": "twilio_webhook_inbox", "sync_state_pkey": "sync_state",
    "twilio_budgets_pkey": "twilio_budgets",
    "webhook_alerts_pkey": "webhook_alerts", "endpoint_faults_pkey": "endpoint_faults",
}  # fmt: skip
_CHANGES: Final = re.compile(r"\b(?:INSERT INTO|UPDATE|DELETE FROM)\b")  # also FOR UPDATE
_COMMENT: Final = re.compile(r"--.*")

_SIZES: Final = (
    "SELECT t.name, c.reltuples FROM pg_catalog.unnest(%s::text[]) AS t (name)"
    " JOIN pg_catalog.pg_class AS c ON c.oid = pg_catalog.to_regclass(t.name)::oid"
)
_A_RECORDING: Final = (
    f'[{{"recording_sid": "RE{32 * "0"}", "state": "ready", "call_sid": "CA{32 * "0"}",'
    ' "happened_at": "2026-06-10T11:00:00Z", "payload": {}, "media_url": "https://api.twilio.com"}]'
)
_AN_ACCOUNT: Final = "SELECT account_sid FROM messages WHERE account_sid IS NOT NULL LIMIT 1"


@dataclass(frozen=True)
class Statement:
    """A statement that polls, and the indexes made for it."""

    name: str
    query: LiteralString
    indexes: frozenset[str]

    @property
    def only_reads(self) -> bool:
        """Whether the statement may be run: it neither writes nor locks."""
        return _CHANGES.search(_COMMENT.sub("", self.query)) is None


@dataclass(frozen=True)
class Plan:
    """PostgreSQL's plan of a statement."""

    statement: str
    uses: list[str]  # indexes
    unused: list[str]  # indexes made for the statement
    reads_whole: list[str]  # our tables
    rows: int  # an estimate if the statement was not run
    milliseconds: float | None  # None if the statement was not run
    note: str = ""


class _Scan(NamedTuple):
    """One table that is read whole: the rows that the statement wanted, and those it discarded."""

    table: str
    wanted: float
    discarded: float

    @property
    def is_wasteful(self) -> bool:
        return self.discarded >= MANY_ROWS and self.discarded >= MOST * (self.wanted + self.discarded)


def polling_statements() -> list[Statement]:
    """Return the statements whose comments name one of our indexes."""
    ours = {e.object.name for e in expected_objects() if e.object.kind == "index"} | _KEYS.keys()
    found = []
    for file in sorted(files("reconciler.database").joinpath("queries").iterdir(), key=lambda file: file.name):
        table = file.name.removesuffix(".sql")
        for name, query in load_queries(table).items():
            comments = " ".join(_COMMENT.findall(query))
            indexes = frozenset(index for index in ours if re.search(rf"\b{index}\b", comments))
            if indexes:
                found.append(Statement(f"{table}.{name}", query, indexes))
    return found


def explain(conn: Connection) -> tuple[list[Plan], list[Finding]]:
    """Return the plan of each statement that polls, and the findings; both are empty if a table is missing.

    Raises:
        Refused, Unavailable: the database does not answer.

    """
    plans: list[Plan] = []
    findings: list[Finding] = []
    with translated():
        sizes: dict[str, float] = dict(conn.execute(_SIZES, (list(TABLES),)).fetchall())
        if len(sizes) < len(TABLES):  # `verify` reports the missing table
            return [], []
        row = conn.execute(_AN_ACCOUNT).fetchone()
        usual = _values(datetime.now(UTC), row[0] if row else "AC" + 32 * "0")
        for statement in polling_statements():
            special = {name: usual[other] for name, other in _SPECIAL_VALUES.get(statement.name, {}).items()}
            values = {**usual, **special}
            plan, scans = _plan(conn, statement, values, sizes)
            plans.append(plan)
            findings += _judge(conn, statement, values, scans) if scans else ()
    return plans, findings


def _plan(
    conn: Connection, statement: Statement, values: Mapping[str, Any], sizes: Mapping[str, float]
) -> tuple[Plan, list[_Scan]]:
    try:
        answer = _ask(conn, statement, values, runs=statement.only_reads)
    except (pg.InsufficientPrivilege, pg.UndefinedColumn, pg.UndefinedFunction) as exc:
        return Plan(statement.name, [], [], [], 0, None, f"not asked: {exc.diag.message_primary}"), []
    root = answer["Plan"]
    scans = list(_scans(root, sizes))
    whole = {scan.table for scan in scans}
    uses = {node["Index Name"] for node in _nodes(root) if "Index Name" in node}
    # A unique key may have another name in the field. It counts as used unless its table is read whole.
    unused = {index for index in statement.indexes - uses if index not in _KEYS or _KEYS[index] in whole}
    for newer, sets in OLDER_INDEXES.items():
        if not uses.isdisjoint(older.object.name for indexes in sets for older in indexes):
            unused.discard(newer)
    rows = root.get("Actual Rows", root["Plan Rows"])
    spent = round(float(answer["Planning Time"] + answer["Execution Time"]), 3) if statement.only_reads else None
    return Plan(statement.name, sorted(uses), sorted(unused), sorted(whole), int(rows), spent), scans


def _judge(conn: Connection, statement: Statement, values: Mapping[str, Any], scans: list[_Scan]) -> Iterator[Finding]:
    """Yield the findings about a plan that reads whole tables."""
    forced = _ask(conn, statement, values, runs=False, whole_tables=False)["Plan"]
    helpless = {scan.table for scan in _scans(forced, {})}
    for table in sorted({scan.table for scan in scans}):
        made = ", ".join(sorted(statement.indexes))
        if table in helpless:
            problem = f"reads all of {table}: no index serves it, not even {made}"
            yield Finding(f"statement {statement.name}", problem, "run `reconcile verify` to see which index is wrong")
        elif any(scan.is_wasteful for scan in scans if scan.table == table):
            problem = f"reads all of {table} instead of index {made}"
            yield Finding(f"statement {statement.name}", problem, f'psql "$DATABASE_URL" -c "ANALYZE {table}"')


def _ask(
    conn: Connection, statement: Statement, values: Mapping[str, Any], *, runs: bool, whole_tables: bool = True
) -> dict[str, Any]:
    how = sql.SQL("EXPLAIN (FORMAT JSON) ")
    if runs:
        how = sql.SQL("EXPLAIN (ANALYZE, SUMMARY, FORMAT JSON) ")
    with conn.transaction(force_rollback=True):
        conn.execute("SET TRANSACTION READ ONLY")
        if not whole_tables:
            conn.execute("SET LOCAL enable_seqscan = off")
        row = conn.execute(how + sql.SQL(statement.query), values).fetchone()
    assert row
    answer: dict[str, Any] = row[0][0]
    return answer


def _nodes(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a plan's node and all nodes below it."""
    yield node
    for below in node.get("Plans", ()):
        yield from _nodes(below)


def _scans(root: Mapping[str, Any], sizes: Mapping[str, float]) -> Iterator[_Scan]:
    for node in _nodes(root):
        table = node.get("Relation Name")
        if node["Node Type"] == "Seq Scan" and table in TABLES:
            if "Actual Rows" in node:
                times = float(node["Actual Loops"])  # a JSON number with a point is a Decimal
                discarded = float(node.get("Rows Removed by Filter", 0))
                yield _Scan(table, float(node["Actual Rows"]) * times, discarded * times)
            else:
                yield _Scan(table, node["Plan Rows"], sizes.get(table, 0) - node["Plan Rows"])


def _values(now: datetime, account_sid: str) -> dict[str, Any]:
    """Return a value like that of a run for each parameter of the statements that poll."""
    day = timedelta(days=1)
    sids = ["CA" + 32 * "0"]
    return {
        "account_sid": account_sid, "accounts": [account_sid], "all_looked_at": [now], "batch": 100,
        "call_sid": sids[0], "call_sids": sids, "confirmed_since": now - 400 * day, "day": now.date() - day,
        "dedupe_keys": ["explain"], "examples": 3,
        "fault_lasts": day / 24, "first": 0, "first_looks": "{}", "job": "account:" + account_sid,
        "first_day": now.date() - 35 * day,
        "freeze_after": day, "ended_before": now - day,
        "began_since": now - day, "began_until": now, "staged": 1000, "ids": [1], "interval": timedelta(minutes=5),
        "is_only_account": True, "is_anywhere": True, "owns_unassigned": True, "price_unit": "USD",
        "kept_since": now - 400 * day,
        "limit": 20, "looked_at": now - day / 24,
        "apply": False, "imported_before": None, "recordings": _A_RECORDING,
        "days": [now.date()], "counts_listed": [1], "counts_held": [1], "counts_shrunk": [0],
        "max_tries": 10, "named_since": None, "now": now, "one_id": 1, "pending_before": now - day / 24,
        "before": now - 30 * day, "run_id": "explain", "since": now - day, "since_day": now.date() - 35 * day,
        "source": "reconcile_explain", "sources": ["reconcile_hot"], "stuck_before": now - day / 24,
        "stuck_since": now - day, "unit": "day", "until": now, "webhook_grace": timedelta(minutes=1),
    }  # fmt: skip


# Parameters with a meaning of their own in one statement.
_SPECIAL_VALUES: Final = {
    "messages.freeze_due": {"looked_at": "all_looked_at"},
    "account_days.sum_up": {"first": "first_day"},
    "report.account_days": {"since": "since_day"},
    "housekeeping.prune_inbox": {"place": "kept_since"},
    "housekeeping.prune_events": {"place": "first"},
}

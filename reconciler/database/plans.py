"""Whether the statements that poll use the indexes made for them: `reconcile verify --explain`.

A statement polls if the comment above it names an index of ours; nothing else lists these statements. Each is given to
EXPLAIN with values like those of a run. A statement that only reads is run, with ANALYZE; one that locks or writes is
planned and no more. All of it happens in transactions that PostgreSQL keeps read-only.

When a plan is bad:

- It reads a whole table of ours, and would do so if reading whole tables were forbidden: no index can serve it.
- It reads a whole table and throws away most of at least 10,000 rows: the planner should have taken an index, and its
  statistics are probably old.

On a small table, or where most rows are wanted, reading all of it is right and no fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any, Final, LiteralString

from psycopg import errors as pg
from psycopg import sql

from reconciler.database.catalog import expected_objects
from reconciler.database.connection import Connection, load_queries, translated
from reconciler.database.migration_files import TABLES
from reconciler.database.verify import Finding

MANY_ROWS: Final = 10_000
MOST: Final = 0.9  # of the rows that were read

# Unique keys have these names where our files made them, and any name in the field.
_KEYS: Final = {
    "messages_twilio_sid_key": "messages", "account_days_pkey": "account_days",
    "twilio_webhook_inbox_pkey": "twilio_webhook_inbox", "sync_state_pkey": "sync_state",
}  # fmt: skip
_CHANGES: Final = re.compile(r"\b(?:INSERT INTO|UPDATE|DELETE FROM)\b")
_COMMENT: Final = re.compile(r"--.*")

_TABLE_ROWS: Final = "SELECT relname::text, reltuples FROM pg_catalog.pg_class WHERE oid = ANY (%s::regclass[]::oid[])"
_AN_ACCOUNT: Final = "SELECT account_sid FROM messages WHERE account_sid IS NOT NULL LIMIT 1"


@dataclass(frozen=True)
class Statement:
    """A statement that polls, and the indexes that were made for it."""

    name: str
    query: LiteralString
    indexes: frozenset[str]

    @property
    def only_reads(self) -> bool:
        """Whether it may be run: it neither writes nor locks."""
        return _CHANGES.search(_COMMENT.sub("", self.query)) is None


@dataclass(frozen=True)
class Plan:
    """How PostgreSQL runs a statement."""

    statement: str
    uses: list[str]  # indexes
    unused: list[str]  # indexes made for it
    reads_whole: list[str]  # tables of ours
    rows: int  # an estimate where the statement was not run
    milliseconds: float | None  # None where the statement was not run
    note: str = ""


@dataclass(frozen=True)
class _Scan:
    """A table that is read whole: rows that were wanted and rows that were thrown away."""

    table: str
    wanted: float
    discarded: float

    @property
    def is_wasteful(self) -> bool:
        return self.discarded >= MANY_ROWS and self.discarded >= MOST * (self.wanted + self.discarded)


def polling_statements() -> list[Statement]:
    """The statements whose comments name an index of ours."""
    ours = {e.object.name for e in expected_objects() if e.object.kind == "index"} | _KEYS.keys()
    found = []
    for file in sorted(files("reconciler.database").joinpath("queries").iterdir(), key=lambda file: file.name):
        table = file.name.removesuffix(".sql")
        for name, query in load_queries(table).items():
            said = " ".join(_COMMENT.findall(query))
            indexes = frozenset(index for index in ours if re.search(rf"\b{index}\b", said))
            if indexes:
                found.append(Statement(f"{table}.{name}", query, indexes))
    return found


def explain(conn: Connection) -> tuple[list[Plan], list[Finding]]:
    """The plan of each statement that polls, and what is wrong with it."""
    plans, findings = [], []
    with translated():
        row = conn.execute(_AN_ACCOUNT).fetchone()
        values = _values(row[0] if row else "AC" + 32 * "0")
        table_rows = dict(conn.execute(_TABLE_ROWS, (list(TABLES),)).fetchall())
        for statement in polling_statements():
            plan, finding = _judge(conn, statement, {**values, **_OTHERWISE.get(statement.name, dict)(values)}, table_rows)
            plans.append(plan)
            findings += [finding] if finding else []
    return plans, findings


def _judge(
    conn: Connection, statement: Statement, values: Mapping[str, Any], table_rows: Mapping[str, float]
) -> tuple[Plan, Finding | None]:
    try:
        answer = _ask(conn, statement, values, run=statement.only_reads)
    except pg.InsufficientPrivilege as exc:
        return Plan(statement.name, [], [], [], 0, None, f"not asked: {exc.diag.message_primary}"), None
    root = answer["Plan"]
    uses = sorted(set(_indexes(root)))
    scans = [scan for scan in _scans(root, table_rows) if scan.table in TABLES]
    read = {table for table in (node.get("Relation Name") for node in _nodes(root)) if table}
    unused = [i for i in sorted(statement.indexes - set(uses)) if _KEYS.get(i) is None or _KEYS[i] in {s.table for s in scans}]
    plan = Plan(
        statement.name,
        uses,
        unused,
        sorted({scan.table for scan in scans}),
        int(root["Actual Rows" if statement.only_reads else "Plan Rows"]),
        round(answer["Planning Time"] + answer["Execution Time"], 3) if statement.only_reads else None,
    )
    del read
    return plan, _finding(conn, statement, values, scans)

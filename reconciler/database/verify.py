"""Whether the schema is what this version needs: the catalog is believed, not the ledger. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

from psycopg import sql

from reconciler.database.connection import Connection, translated
from reconciler.database.migrate import rows
from reconciler.database.migration_files import load_migrations
from reconciler.database.transaction import _merge


@dataclass(frozen=True)
class PlanCheck:
    """A query that must be able to use the index made for it."""

    name: str
    query: LiteralString
    params: Mapping[str, Any]
    index: str


@dataclass(frozen=True)
class Finding:
    """Something about the schema that is not as this version needs it, and what mends it."""

    subject: str
    problem: str
    hint: str = field(default="", compare=False)


def verify(conn: Connection, checks: Sequence[PlanCheck] = ()) -> list[Finding]:
    """What in the catalog is not as this version needs it, and which of `checks` cannot use their index."""
    with translated():
        actual = {(kind, table, name): rest for kind, table, name, *rest in rows(conn, "actual_objects")}
        expected = rows(conn, "expected_objects")
        findings = []
        files = [f"sql/{migration.up.filename}" for migration in load_migrations()]
        for version, kind, table, name, wanted in expected:
            subject = f"{kind} {table}.{name}" if table else f"{kind} {name}"
            again = f'apply the file that makes it again, which is harmless: psql "$DATABASE_URL" < {files[version]}'
            match actual.get((kind, table, name)):
                case None:
                    findings.append(Finding(subject, f"is missing; migration {version:03} makes it", again))
                case [definition, _] if definition != wanted:
                    problem = f"is {definition or 'plain'}, not {wanted or 'plain'}"
                    findings.append(
                        Finding(subject, problem, f"somebody changed it: make it what {files[version]} does")
                    )
                case [_, problem] if problem:
                    findings.append(Finding(subject, problem, again))
        known = {tuple(row[1:4]) for row in expected}
        for kind, table, name in actual.keys() - known:
            mandatory = kind == "column" and actual[kind, table, name][0].endswith(" NOT NULL")
            if mandatory and ("default", table, name) not in actual:
                problem = "is NOT NULL without default: our rows lack it"
                findings.append(Finding(f"column {table}.{name}", problem, "give it a default, or let it be NULL"))
        return findings + [finding for check in checks for finding in _explain(conn, check)]


def _explain(conn: Connection, check: PlanCheck) -> Iterator[Finding]:
    with conn.transaction(force_rollback=True):
        # On a small table reading all of it is cheapest; the question is whether the index could serve.
        conn.execute("SET LOCAL enable_seqscan = off")
        query = sql.SQL("EXPLAIN (FORMAT JSON) ") + sql.SQL(check.query)
        row = conn.execute(query, check.params).fetchone()
    if row is None or check.index not in set(_indexes(row[0])):
        hint = "the statistics may be old: run ANALYZE, then look again"
        yield Finding(f"query {check.name}", f"does not use index {check.index}", hint)


def _indexes(plan: Any) -> Iterator[str]:
    """The names of all indexes in a plan as EXPLAIN (FORMAT JSON) gives it."""
    match plan:
        case dict():
            if "Index Name" in plan:
                yield plan["Index Name"]
            for part in plan.values():
                yield from _indexes(part)
        case list():
            for part in plan:
                yield from _indexes(part)


# What `reconcile verify --explain` asks the planner about.
PLAN_CHECKS: Final = (
    PlanCheck("merge_staged", _merge["look_up"], {"call_sid": "CA" + 32 * "0"}, "messages_twilio_sid_key"),
)

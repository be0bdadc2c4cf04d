"""`reconcile migrate`, `rollback` and `verify`: the database's schema."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any, Final

from reconciler.cli.wiring import (
    BEFORE_MIGRATING,
    connect,
    log_applied,
    log_engine_applied,
    log_planned,
    not_applied,
    read_settings,
)
from reconciler.database import engine_schema
from reconciler.database import migrate as runner
from reconciler.database.migration_files import load_migrations
from reconciler.database.plans import Plan, explain
from reconciler.database.verify import verify as verify_schema
from reconciler.errors import ExitCode
from reconciler.terminal.printing import complain, print_json, print_rows
from reconciler.wording import counted

_ENGINE: Final = "engine"  # in place of a version: a file of procrastinate
_PLANNED: Final = {"applied": "apply", "adopted": "adopt"}


def migrate(args: argparse.Namespace) -> int:
    """Bring the schema up to this version, or with --dry-run show what that would do."""
    settings = read_settings()
    shares = engine_schema.shares_work(settings)
    with connect(settings, purpose="migrate") as conn:
        if args.dry_run:
            steps = runner.plan(conn)
            if steps:
                print(BEFORE_MIGRATING, file=sys.stderr)
            rows: list[dict[str, Any]] = [
                {"version": m.version, "name": m.name, "plan": _PLANNED[outcome], "lock": m.up.lock}
                for m, outcome in ((step.migration, step.outcome) for step in steps)
            ]
            missing = engine_schema.behind(conn) if shares else []
            rows += [{"version": _ENGINE, "name": name, "plan": "apply", "lock": ""} for name in missing]
        else:
            applied = runner.migrate(conn, on_planned=log_planned, on_applied=log_applied)
            rows = [
                {"version": a.version, "name": a.name, "outcome": a.outcome, "seconds": round(seconds, 3)}
                for a, seconds in ((a, a.duration.total_seconds()) for a in applied)
            ]
            made = engine_schema.migrate(conn, on_applied=log_engine_applied) if shares else {}
            rows += [
                {"version": _ENGINE, "name": name, "outcome": "applied", "seconds": round(seconds, 3)}
                for name, seconds in made.items()
            ]
    if args.json:
        print_json(rows)
    elif not rows:
        print("The schema is up to date.")
    elif not args.dry_run and sys.stderr.isatty():  # each was printed when it was applied
        print(f"{counted(len(rows), 'migration')} in {sum(row['seconds'] for row in rows):.1f} s.")
    else:
        print_rows([_numbered(row) for row in rows])
    return int(ExitCode.DONE)


def rollback(args: argparse.Namespace) -> int:
    """Undo migrations, newest first, or with --engine drop the engine's schema."""
    with connect(read_settings(), purpose="rollback") as conn:
        if args.engine or args.to == -1:
            is_dropped = engine_schema.drop(conn)
            if is_dropped:
                print(f"The engine's schema {engine_schema.SCHEMA} is dropped.")
        if args.engine:
            if not is_dropped:
                print("There is nothing to undo.")
            return int(ExitCode.DONE)
        newest = len(load_migrations()) - 1 - len(runner.behind(conn))
        to = max(newest - 1, -1) if args.to is None else args.to
        undone = runner.rollback(conn, to=to, drop_data=args.drop_data)
    if undone:
        print_rows([_numbered({"version": u.version, "name": u.name, "outcome": u.outcome}) for u in undone])
    else:
        print("There is nothing to undo.")
    return int(ExitCode.DONE)


def verify(args: argparse.Namespace) -> int:
    """Compare the schema itself with the schema of this version."""
    settings = read_settings()
    with connect(settings, purpose="verify") as conn:
        behind = [str(migration.version) for migration in runner.behind(conn)]
        findings = verify_schema(conn)
        if engine_schema.shares_work(settings):
            behind += engine_schema.behind(conn)
            findings += engine_schema.verify(conn)
        plans: list[Plan] = []
        if args.explain and not behind:
            plans, bad_plans = explain(conn)
            findings += bad_plans
    if args.json:
        listed = [{"subject": f.subject, "problem": f.problem, "hint": f.hint} for f in findings]
        print_json({"findings": listed, "plans": [asdict(plan) for plan in plans]} if args.explain else listed)
    else:
        if plans:
            print_rows([_planned(plan) for plan in plans])
        for finding in findings:
            print(f"{finding.subject} {finding.problem}")
            if finding.hint and not behind:
                print(f"  → {finding.hint}")
        if not findings:
            print("The schema is as this version needs it.")
    if behind:
        complain(not_applied(len(behind)), "run `reconcile migrate`")
    return int(ExitCode.CONFIG if findings else ExitCode.DONE)


def _planned(plan: Plan) -> dict[str, Any]:
    """Return a plan as a row of a table."""
    reads = [*plan.uses, *(f"all of {table}" for table in plan.reads_whole)]
    unused = f"not used: {', '.join(plan.unused)}" if plan.unused else ""
    time = "not run" if plan.milliseconds is None else f"{plan.milliseconds:.1f}"
    note = plan.note or unused
    return {"statement": plan.statement, "reads": ", ".join(reads), "rows": plan.rows, "ms": time, "note": note}


def _numbered(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with its version in the form of the files' numbers."""
    version = row["version"]
    return {**row, "version": version if version == _ENGINE else f"{version:03}"}

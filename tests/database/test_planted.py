"""A stranger who may create objects in our schema runs no code as us: statements use PostgreSQL's own objects."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

import reconciler
from reconciler.database import connection as db
from reconciler.database import engine_schema
from reconciler.database.connection import load_queries
from reconciler.database.migrate import behind
from reconciler.database.plans import _SPECIAL_VALUES, _values
from reconciler.database.store import Store
from reconciler.database.verify import verify
from tests.harness.rows import ORIGIN, T0, make_observation
from tests.harness.strangers import OUR_FUNCTIONS

if TYPE_CHECKING:
    from tests.harness.databases import Connect

PACKAGE = Path(reconciler.__file__).parent
QUERIES = sorted(file.name.removesuffix(".sql") for file in files("reconciler.database").joinpath("queries").iterdir())
# Statements that cannot be the body of a function: they say something about a transaction, or define a table.
NO_BODY = {
    "create_staging", "copy_into_staging", "create_ledger", "drop_ledger", "create_schema", "drop_schema",
    "create_daemons", "create_expected", "create_reference", "listen",
}  # fmt: skip
# Words that PostgreSQL's grammar takes for syntax before a parenthesis.
SYNTAX = {
    "array", "coalesce", "greatest", "least", "nullif", "extract", "any", "in", "exists", "values", "filter", "as",
    "row", "operator",
}  # fmt: skip
# Objects in the body of a function that are not the migrator's: their owners could have planted them.
FOREIGN = """
SELECT pg_describe_object(d.refclassid, d.refobjid, 0) FROM pg_depend AS d
LEFT JOIN pg_proc AS p ON d.refclassid = 'pg_proc'::regclass::oid AND p.oid = d.refobjid
LEFT JOIN pg_operator AS o ON d.refclassid = 'pg_operator'::regclass::oid AND o.oid = d.refobjid
LEFT JOIN pg_class AS c ON d.refclassid = 'pg_class'::regclass::oid AND c.oid = d.refobjid
LEFT JOIN pg_type AS t ON d.refclassid = 'pg_type'::regclass::oid AND t.oid = d.refobjid
WHERE d.objid = 'public.asked'::regproc::oid
    AND coalesce(p.proowner, o.oprowner, c.relowner, t.typowner)
        <> (SELECT oid FROM pg_roles WHERE rolname = current_user)
"""

EXTRA = {
    "answers": ["human"], "apply": True, "brief": True, "billed": 1, "column": "status", "cursor": "{}",
    "day": "2026-01-01", "term": 1, "billed_price": 1, "held_price": 1, "unsettled": 0,
    "dedupe_key": "x", "differences": "{}", "digest": "x", "error": "x",
    "expected": "{}", "explain": False, "functions": ["x"], "held": 1,
    "imported_before": "2026-01-01", "indexes": ["x"], "of_tables": ["messages"], "is_complete": True,
    "definitions": ["x"], "kinds": ["x"], "relations": ["x"],
    "job": "hot", "kind": "hot", "listed": 1,
    "name": "reconciler.thaw", "names": ["x"], "prefix": "x", "pruned": ["messages"], "reason": "x",
    "reasons": ["x"], "record": "{}", "said_ats": [datetime.now(UTC)], "table": "messages",
    "tables": ["messages"], "value": "on", "verified_at": datetime.now(UTC), "word": "{}", "version": 1,
    "checksum": "x", "applied_at": datetime.now(UTC), "duration": "1s", "id": 1,
    "hour": datetime.now(UTC), "error_code": "x", "url": "x", "alerts": 1, "address": "x", "endpoint_sid": "x",
    "fault": "x", "budget": "{}", "lock": 1, "note": "{}", "filenames": ["x"],
    "worker_id": 1, "host": "x", "process": 1, "since": datetime.now(UTC), "slots": 1, "hot_at": None,
}  # fmt: skip


def inline_statements() -> Iterator[tuple[str, str]]:
    """The statements in the modules, each with its place; not those of the demonstration and the simulator."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if {"demo", "simulator"} & set(file.parts):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value.strip()
                if re.match(r"SELECT (?!.*\{\})", text) and "to_regclass" not in text.split("FROM")[0]:
                    yield f"{file.relative_to(PACKAGE)}:{node.lineno}", text


def test_every_statement_means_postgresqls_own_objects(planted_database_url: str) -> None:
    """A stranger's operators fit our columns exactly, varchar and all; no statement depends on one, or on a table."""
    usual = {**EXTRA, **_values(datetime.now(UTC), "AC1")}
    caught = {}
    asked = 0
    with psycopg.connect(planted_database_url, autocommit=True, cursor_factory=psycopg.ClientCursor) as conn:
        conn.execute("SET search_path = public, pg_temp")
        conn.execute(load_queries("staging")["create_staging"])
        with db.connect(planted_database_url, purpose="migrate") as owner:
            engine_schema.migrate(owner)

        def uses(name: str, text: str) -> None:
            nonlocal asked
            asked += 1
            text = re.sub(r"--.*", "", text).strip().rstrip(";")
            body = f"CREATE FUNCTION public.asked() RETURNS void BEGIN ATOMIC {text}; END"
            with conn.transaction(force_rollback=True):
                conn.execute(body.replace("%", "%%").encode())
                conn.execute("SET LOCAL search_path = pg_catalog")
                if found := conn.execute(FOREIGN).fetchall():
                    caught[name] = sorted({what for (what,) in found})

        for table in QUERIES:
            for name, query in load_queries(table).items():
                if name in NO_BODY or table == "demo":
                    continue
                special = {key: usual[value] for key, value in _SPECIAL_VALUES.get(f"{table}.{name}", {}).items()}
                values = {**usual, **special} if "%(" in query else None
                uses(f"{table}.{name}", psycopg.ClientCursor(conn).mogrify(query, values))
        for place, text in inline_statements():
            uses(place, text.replace("%s", "NULL"))
    assert asked > 100
    assert caught == {}


def calls_of(text: str) -> set[str]:
    """The functions that a statement calls without their schema."""
    text = re.sub(r"'[^']*'|--.*|%\(\w+\)s", "", text)
    text = re.sub(
        r"\b(AS|INTO|CONFLICT|TABLE( IF NOT EXISTS)?) (\w+ )?\(|\bINTO \w+ \(|\bAS \w+ \(|\bVARCHAR\(|numeric\("
        r"|\bFROM \(",
        "",
        text,
    )
    calls = {call.lower() for call in re.findall(r"(?<![\w.])([a-zA-Z_]\w*)\(", text)}
    for one in re.findall(r"(?<!\.)\bunnest\(([^()]*)\)", text):
        assert "," in one  # with several arguments it is syntax too
    return calls - SYNTAX - OUR_FUNCTIONS.keys() - {"unnest"}


def test_every_function_is_called_by_its_full_name() -> None:
    """A function of PostgreSQL's is named with its schema: no types have to be thought of then."""
    statements = {
        f"{table}.{name}": query for table in QUERIES if table != "demo" for name, query in load_queries(table).items()
    }
    statements |= dict(inline_statements())
    assert len(statements) > 100
    assert {place: calls for place, text in statements.items() if (calls := calls_of(text))} == {}


PATHS = ["public", "public, pg_catalog", "public, pg_catalog, pg_temp", '"$user", public']


@pytest.mark.parametrize("path", PATHS)
def test_no_session_of_ours_runs_what_is_planted(path: str, planted_database_url: str, connect: Connect) -> None:
    """A login, a merge and its staging table run none of it, whichever search_path the role has."""
    admin = connect(planted_database_url)
    admin.execute(sql.SQL("ALTER DATABASE {} SET search_path = " + path).format(sql.Identifier(admin.info.dbname)))
    with Store(planted_database_url) as store:
        merged = store.commit_page([make_observation()], origin=ORIGIN, now=T0)
    assert merged.inserted == 1
    with db.connect(planted_database_url, purpose="verify") as conn:
        assert behind(conn) == []
        in_the_way = {finding.subject for finding in verify(conn)}
    assert in_the_way == {f"function {name}" for name in ("call_status_rank(evil)", *VARCHAR_TWINS)}
    assert admin.execute("SELECT count(*) FROM public.staged_observations").fetchone() == (1,)


VARCHAR_TWINS = tuple(f"{name}(character varying)" for name in OUR_FUNCTIONS)

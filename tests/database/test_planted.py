"""A stranger who may create objects in our schema runs no code as us: statements use PostgreSQL's own objects."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from reconciler.database.connection import load_queries
from reconciler.database.plans import _SPECIAL_VALUES, _values
from tests.harness.present import present

if TYPE_CHECKING:
    from reconciler.database.connection import Connection
    from tests.harness.databases import Connect

QUERIES = sorted(file.name.removesuffix(".sql") for file in files("reconciler.database").joinpath("queries").iterdir())
# Statements that cannot be the body of a function: they say something about a transaction, or define a table.
NO_BODY = {"create_staging", "copy_into_staging", "create_ledger", "drop_ledger"}

# Each operator that PostgreSQL has for some types, for every pair of types that it lacks: these fit exactly, where
# PostgreSQL would convert. The same for the functions that statements of ours call, with one and with two arguments.
TYPES = [
    "text", "varchar", "name", "smallint", "integer", "bigint", "numeric", "real", "float8", "boolean", "timestamptz",
    "timestamp", "date", "interval", "jsonb", "json", "oid", "regclass", "text[]", "varchar[]", "bigint[]",
]  # fmt: skip
OPERATORS = [
    "=",
    "<>",
    "<",
    "<=",
    ">",
    ">=",
    "||",
    "+",
    "-",
    "*",
    "/",
    "^",
    "~",
    "~~",
    "->>",
    "#>>",
    "?",
    "?|",
    "<<",
    "|",
]
BOOLEAN = {"=", "<>", "<", "<=", ">", ">=", "~", "~~", "?", "?|"}

EXTRA = {
    "answers": ["human"], "apply": True, "billed": 1, "column": "status", "cursor": "{}", "day": "2026-01-01",
    "dedupe_key": "x", "differences": "{}", "digest": "x", "error": "x", "event_times": [datetime.now(UTC)],
    "expected": "{}", "explain": False, "functions": ["x"], "held": 1,
    "imported_before": "2026-01-01", "is_complete": True, "job": "hot", "kind": "hot",
    "listed": 1,
    "name": "reconciler.thaw", "names": ["x"], "payloads": ["{}"], "prefix": "x", "prunes_inbox": True, "reason": "x",
    "reasons": ["x"], "record": "{}", "recording_sids": ["RE"], "said_ats": [datetime.now(UTC)], "table": "messages",
    "tables": ["messages"], "value": "on", "verified_at": datetime.now(UTC), "word": "{}", "version": 1,
    "checksum": "x", "applied_at": datetime.now(UTC), "duration": "1s", "id": 1,
    "hour": datetime.now(UTC), "error_code": "x", "url": "x", "alerts": 1, "address": "x", "endpoint_sid": "x",
    "fault": "x", "budget": "{}",
}  # fmt: skip


def plant(conn: Connection) -> None:
    """Give the schema of `conn` an operator for each pair of types that has none, as whoever `conn` logged in as."""
    for left in TYPES:
        for right in TYPES:
            for result in ("boolean", "text"):
                name = f"planted_{result}"
                conn.execute(
                    f"CREATE FUNCTION {name}({left}, {right}) RETURNS {result} LANGUAGE plpgsql"
                    " AS $$ BEGIN RAISE 'planted'; END $$".encode()
                )
    made = {
        tuple(row)
        for row in conn.execute(
            "SELECT oprname::text, oprleft, oprright FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace"
        )
    }
    oids = {type_: present(conn.execute("SELECT %s::regtype::oid", (type_,)).fetchone())[0] for type_ in TYPES}
    statements = [
        f"CREATE OPERATOR {operator} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION ="
        f" planted_{'boolean' if operator in BOOLEAN else 'text'})"
        for operator in OPERATORS
        for left in TYPES
        for right in TYPES
        if (operator, oids[left], oids[right]) not in made
    ]
    for name in ("call_status_rank", "call_status_is_final"):
        result = "smallint" if name == "call_status_rank" else "boolean"
        statements.append(
            f"CREATE FUNCTION {name}(varchar) RETURNS {result} LANGUAGE plpgsql AS 'BEGIN RAISE ''planted''; END'"
        )
    conn.execute(";".join(statements).encode())


def test_every_statement_means_postgresqls_own_operators(database_url: str, connect: Connect, stranger: str) -> None:
    """A stranger's operators fit our columns exactly, varchar and all; no statement depends on one."""
    owner = connect(database_url)
    owner.execute(f"GRANT CREATE ON SCHEMA public TO {stranger}".encode())
    plant(connect(make_conninfo(database_url, user=stranger)))
    owner.execute(
        load_queries("merge")["create_staging"]
        .replace("TEMPORARY TABLE", "TABLE")
        .replace("ON COMMIT DELETE ROWS", "")
        .encode()
    )
    usual = {**EXTRA, **_values(datetime.now(UTC), "AC1")}
    caught = {}
    with psycopg.connect(database_url, autocommit=True, cursor_factory=psycopg.ClientCursor) as conn:
        conn.execute("SET search_path = public, pg_temp")
        for table in QUERIES:
            if table == "demo":
                continue
            for name, query in load_queries(table).items():
                if name in NO_BODY:
                    continue
                special = {key: usual[value] for key, value in _SPECIAL_VALUES.get(f"{table}.{name}", {}).items()}
                values = {**usual, **special} if "%(" in query else None
                text = psycopg.ClientCursor(conn).mogrify(query, values).strip().rstrip(";")
                text = re.sub(r"--.*", "", text).strip().rstrip(";")
                with conn.transaction(force_rollback=True):
                    conn.execute(
                        f"CREATE FUNCTION asked() RETURNS void BEGIN ATOMIC {text}; END".replace("%", "%%").encode()
                    )
                    conn.execute("SET LOCAL search_path = pg_catalog")
                    found = conn.execute(
                        """
                        SELECT pg_describe_object(d.refclassid, d.refobjid, 0) FROM pg_depend AS d
                        LEFT JOIN pg_proc AS p ON d.refclassid = 'pg_proc'::regclass::oid AND p.oid = d.refobjid
                        LEFT JOIN pg_operator AS o ON d.refclassid = 'pg_operator'::regclass::oid AND o.oid = d.refobjid
                        WHERE d.objid = 'public.asked'::regproc::oid
                            AND coalesce(p.proowner, o.oprowner) = %s::regrole::oid
                        """,
                        (stranger,),
                    ).fetchall()
                if found:
                    caught[f"{table}.{name}"] = sorted({what for (what,) in found})
    assert caught == {}


@pytest.mark.parametrize("table", [table for table in QUERIES if table != "demo"])
def test_every_function_is_called_by_its_full_name(table: str) -> None:
    """A function of PostgreSQL's is named with its schema: no types have to be thought of then."""
    syntax = {
        "array",
        "coalesce",
        "greatest",
        "least",
        "nullif",
        "extract",
        "any",
        "in",
        "exists",
        "values",
        "filter",
        "as",
        "row",
    }
    ours = {"call_status_rank", "call_status_is_final"}
    for name, query in load_queries(table).items():
        text = re.sub(r"'[^']*'|--.*|%\(\w+\)s", "", query)
        text = re.sub(
            r"\b(AS|INTO|CONFLICT|TABLE( IF NOT EXISTS)?) (\w+ )?\(|\bINTO \w+ \(|\bAS \w+ \(|\bVARCHAR\(|numeric\(",
            "",
            text,
        )
        calls = {call.lower() for call in re.findall(r"(?<![\w.])([a-zA-Z_]\w*)\(", text)}
        assert calls - syntax - ours - {"unnest"} == set(), name
        for one in re.findall(r"(?<!\.)\bunnest\(([^()]*)\)", text):
            assert "," in one, name  # with several arguments it is syntax too

"""A role that owns nothing, and what it plants in our schema to run its code as ours.

Up to PostgreSQL 14 everybody may create objects in schema `public`; later any role with the privilege. PostgreSQL
prefers a function or operator whose types fit exactly, and a schema that search_path names first.

Every object planted here raises `planted` when a session of ours uses it. A test's own session may use it unharmed.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, Final, LiteralString

import psycopg
import pytest
from psycopg import sql

from tests.harness.databases import name_of, new_database

Connection = psycopg.Connection[Any]

# The fixtures that name the database of a test: what a stranger is given there goes with it.
DATABASES: Final = ("database_url", "field_database_url", "empty_database_url")

TYPES: Final = (
    "text", "varchar", "name", "smallint", "integer", "bigint", "numeric", "real", "float8", "boolean", "timestamptz",
    "timestamp", "date", "interval", "jsonb", "json", "oid", "regclass", "text[]", "varchar[]", "bigint[]",
)  # fmt: skip
OPERATORS: Final = (
    "=", "<>", "<", "<=", ">", ">=", "||", "+", "-", "*", "/", "^", "~", "~~", "->>", "#>>", "?", "?|", "<<", "|",
)  # fmt: skip
BOOLEAN: Final = {"=", "<>", "<", "<=", ">", ">=", "~", "~~", "?", "?|"}
OUR_FUNCTIONS: Final = {"call_status_rank": "smallint", "call_status_is_final": "boolean"}

# A session of ours has a purpose in its name. The fixtures `connect` and `conn` give their sessions the purpose "test".
_RAISE: Final = (
    "BEGIN IF pg_catalog.current_setting('application_name') OPERATOR(pg_catalog.~) '^reconciler: (?!test)'"
    " THEN RAISE 'planted'; END IF; {} END"
)
# What the planted operators of tests' own statements must still mean.
_MEANINGS: Final = {
    "planted_equal": ("boolean", "RETURN $1::pg_catalog.text OPERATOR(pg_catalog.=) $2::pg_catalog.text;"),
    "planted_joined": ("text", "RETURN $1::pg_catalog.text OPERATOR(pg_catalog.||) $2::pg_catalog.text;"),
    "planted_boolean": ("boolean", "RAISE 'planted';"),
    "planted_text": ("text", "RAISE 'planted';"),
}
# Types, casts, tables and views with names of PostgreSQL's and of ours; everybody may use them.
_OTHERS: Final = """
CREATE DOMAIN text AS pg_catalog.varchar CHECK (false);
CREATE TYPE evil AS (value pg_catalog.text);
CREATE FUNCTION to_evil(pg_catalog.text) RETURNS evil LANGUAGE plpgsql AS $$ {planted} $$;
CREATE CAST (pg_catalog.text AS evil) WITH FUNCTION to_evil AS IMPLICIT;
CREATE FUNCTION call_status_rank(evil) RETURNS smallint LANGUAGE plpgsql AS $$ {planted} $$;
CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$ {planted} $$;
CREATE TABLE staged_observations AS SELECT NULL::pg_catalog.text AS call_sid, NULL::pg_catalog.text AS status;
CREATE TRIGGER fire BEFORE INSERT OR DELETE ON staged_observations FOR EACH STATEMENT EXECUTE FUNCTION fire();
CREATE TABLE pg_stat_activity (pid integer);
CREATE TABLE pg_class (oid oid, relname name);
GRANT ALL ON staged_observations, pg_stat_activity, pg_class TO PUBLIC;
"""


def plant(conn: Connection) -> None:
    """Plant all that is possible in schema public, as the role of `conn`:

    - each operator that PostgreSQL has for some types, for every pair of types that it lacks: it fits exactly, where
      PostgreSQL would convert;
    - the same for our own functions, with varchar;
    - twins of PostgreSQL's functions that our statements call, with the same arguments;
    - types, casts and tables (`_OTHERS`).
    """
    statements = []
    for left in TYPES:
        for right in TYPES:
            for name, (result, meaning) in _MEANINGS.items():
                body = _RAISE.format(meaning)
                statements.append(
                    f"CREATE FUNCTION {name}({left}, {right}) RETURNS {result} LANGUAGE plpgsql AS $$ {body} $$"
                )
    made = set(
        conn.execute(
            "SELECT oprname::text, oprleft, oprright FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace"
        )
    )
    oids = dict(conn.execute("SELECT name, name::regtype::oid FROM unnest(%s::text[]) AS t (name)", (list(TYPES),)))
    statements += [
        f"CREATE OPERATOR {operator} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = {_function_of(operator)})"
        for operator in OPERATORS
        for left in TYPES
        for right in TYPES
        if (operator, oids[left], oids[right]) not in made
    ]
    statements += [
        f"CREATE FUNCTION {name}(varchar) RETURNS {result} LANGUAGE plpgsql AS 'BEGIN RAISE ''planted''; END'"
        for name, result in OUR_FUNCTIONS.items()
    ]
    statements += _twins(conn)
    with conn.transaction():
        _run(conn, ";".join(statements))
        _run(conn, _OTHERS.format(planted="BEGIN RAISE 'planted'; END"))


def _function_of(operator: str) -> str:
    special = {"=": "planted_equal", "||": "planted_joined"}
    return special.get(operator, "planted_boolean" if operator in BOOLEAN else "planted_text")


def _twins(conn: Connection) -> list[str]:
    """Return statements that create the functions which our SQL calls by PostgreSQL's names, in our schema."""
    folder = files("reconciler.database").joinpath("queries")
    texts = "".join(file.read_text(encoding="utf-8") for file in folder.iterdir())
    called = set(re.findall(r"pg_catalog\.(\w+)\(", texts)) | {"now", "current_schemas", "unnest", "set_config"}
    found = conn.execute(
        "SELECT p.oid::regprocedure::text, pg_get_function_result(p.oid) FROM pg_proc AS p"
        " WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND p.proname = ANY (%s)"
        " AND p.prorettype NOT IN ('internal'::regtype, 'cstring'::regtype) AND p.provariadic = 0",
        (sorted(called),),
    )
    return [
        f"CREATE FUNCTION public.{signature} RETURNS {result} LANGUAGE plpgsql AS 'BEGIN RAISE ''planted''; END'"
        for signature, result in found
        if "internal" not in signature and "any" not in signature
    ]


def _run(conn: Connection, statements: str) -> None:
    conn.execute(statements.encode())


@pytest.fixture
def stranger(server_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a role that may log in, owns nothing and may nothing else. What the test gives it goes with it."""
    urls = [request.getfixturevalue(name) for name in DATABASES if name in request.fixturenames]
    name = f"stranger_{secrets.token_hex(4)}"
    _on_server(server_url, "CREATE ROLE {} LOGIN", name)
    yield name
    for url in urls:
        _on_server(url, "DROP OWNED BY {} CASCADE", name)
    _on_server(server_url, "DROP ROLE {}", name)


@pytest.fixture(scope="session")
def planted_template(server_url: str, template: str) -> Iterator[str]:
    """The name of a migrated database in which a stranger has planted all that it may; nobody connects to it."""
    name = f"planter_{secrets.token_hex(4)}"
    _on_server(server_url, "CREATE ROLE {} LOGIN", name)
    with new_database(server_url, template) as url:
        _on_server(url, "GRANT CREATE ON SCHEMA public TO {}", name)
        with psycopg.connect(url, user=name, autocommit=True) as conn:
            plant(conn)
        yield name_of(url)
    _on_server(server_url, "DROP ROLE {}", name)


@pytest.fixture
def planted_database_url(server_url: str, planted_template: str) -> Iterator[str]:
    """As `database_url`, beside a stranger that has planted all that it may."""
    with new_database(server_url, planted_template) as url:
        yield url


def _on_server(url: str, statement: LiteralString, *names: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

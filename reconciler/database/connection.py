"""Connections, named queries and advisory locks: the only module that knows how we talk to PostgreSQL.

Design rules
- Every connection runs in UTC. `messages.start_time` is a timestamp without time zone that holds UTC, and a
  session in another zone would shift it in silence.
- Connections are in autocommit and every write is inside `with conn.transaction()`, so that no transaction is
  left open by accident (https://www.psycopg.org/psycopg3/docs/basic/transactions.html).
- Driver errors are translated here, once, into what the caller does next (`translated`).
- Statements live in `queries/<table>.sql`; only `load_queries` may turn file text into SQL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from functools import cache, partial
from importlib.resources import files
from typing import Any, Final, LiteralString, cast

import psycopg
from psycopg import errors as pg
from psycopg.types.json import set_json_loads

from reconciler.database import login, pooling
from reconciler.errors import (
    Contended,
    LoginRefused,
    ReadOnlyDatabase,
    ReconcilerError,
    Refused,
    SchemaError,
    Unavailable,
)
from reconciler.masking import mask

APPLICATION_NAME = "reconciler"
CONNECT_TIMEOUT = timedelta(seconds=10)
STATEMENT_TIMEOUT = timedelta(minutes=5)
LOCK_TIMEOUT = timedelta(seconds=30)

# PostgreSQL looks in pg_catalog first unless search_path names it: no name of PostgreSQL's can be hidden.
# It looks in pg_temp first as well, and for tables only; named last, a temporary table hides none of ours
# (https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-SEARCH-PATH). Where search_path names no
# schema that exists, it stays as it is and `migrate` says so.
_PIN_SEARCH_PATH: Final = """
SELECT pg_catalog.set_config(
    'search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' ORDER BY place) || ', pg_temp', false
)
FROM pg_catalog.unnest(pg_catalog.current_schemas(false)::text[]) WITH ORDINALITY AS s (name, place)
WHERE name <> 'pg_catalog' AND name !~ '^pg_temp_'
HAVING pg_catalog.count(*) > 0
"""

STANDBY_HINT: Final = "does DATABASE_URL name a standby?"

Connection = psycopg.Connection[tuple[Any, ...]]

# SQLSTATE classes that speak of the values of a row: data exception, integrity constraint, view check option,
# program limit, RAISE in a trigger (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_FAULTS_OF_A_ROW: Final = ("22", "23", "44", "54", "P0")
# Messages quote values, and names too, in the quotation marks of their language. What follows a colon is a value.
_VALUE: Final = re.compile(r"""(?<=: )["«»„“「].*|["«»„“「]\s*(.+?)\s*["«»“”」]""", re.DOTALL)
_MAX_REASON: Final = 500  # characters

_QUERY = re.compile(r"^-- name: (?P<name>\w+)\s*$", re.MULTILINE)


def connect(url: str, *, purpose: str, settings: Mapping[str, str] | None = None) -> Connection:
    """Open a connection in UTC, in autocommit, with timeouts, named `reconciler: <purpose>`.

    `settings` are run-time parameters for this session alone. They and ours are sent after connecting and
    not as start-up options, which connection poolers refuse.

    Raises:
        ConfigError: libpq cannot read `url` or refuses a parameter in it, or a pooler takes sessions apart.
        Refused: the server turned the user, password or database away.
        Unavailable: no server answered.

    """
    login.check_url(url)
    with translated():
        conn = _open(url, purpose)
        session = {
            # What role or database may set otherwise.
            "timezone": "UTC",
            "datestyle": "ISO",  # the only one that the driver reads
            "statement_timeout": f"{_ms(STATEMENT_TIMEOUT)}ms",
            "lock_timeout": f"{_ms(LOCK_TIMEOUT)}ms",
            # A client that dies inside a transaction must not hold its locks until TCP gives up on it.
            "idle_in_transaction_session_timeout": "60s",
            # A policy that hides rows must be an error: hidden rows look like calls that Twilio has and we lack.
            "row_security": "off",
            # PostgreSQL's words for types and objects are compared with ours.
            "quote_all_identifiers": "off",
            **(settings or {}),
        }
        # JSON numbers may be money: a float would be the wrong one.
        set_json_loads(partial(json.loads, parse_float=Decimal), conn)
        try:
            pooling.require_session(conn, url)  # or the settings would be left on a connection of somebody else
            conn.execute(
                "SELECT pg_catalog.set_config(name, value, false)"
                " FROM unnest(%s::text[], %s::text[]) AS s (name, value)",
                (list(session), list(session.values())),
            )
            conn.execute(_PIN_SEARCH_PATH)
        except BaseException:
            conn.close()
            raise
    return conn


def _open(url: str, purpose: str) -> Connection:
    try:
        return psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=int(CONNECT_TIMEOUT.total_seconds()),
            application_name=f"{APPLICATION_NAME}: {purpose}",
            # Twilio's names are in any script, whatever encoding the server or the machine prefers.
            client_encoding="utf8",
            # A server that vanished without a FIN is noticed within about half a minute instead of two hours.
            keepalives_idle=15,
            keepalives_interval=5,
            keepalives_count=3,
            # The same where it owes us an answer: keepalives rest while what we sent is not confirmed.
            tcp_user_timeout=30_000,
        )
    except psycopg.OperationalError as exc:
        raise login.explain(url, exc) from None  # it may be `exc` itself


@cache
def load_queries(table: str) -> Mapping[str, LiteralString]:
    """The named statements of `queries/<table>.sql`: a `-- name: x` line, then the statement.

    Marked as LiteralString here and nowhere else: the type checker then rejects SQL built from other text.
    """
    text = files("reconciler.database").joinpath("queries", f"{table}.sql").read_text(encoding="utf-8")
    parts = _QUERY.split(text)
    names, bodies = parts[1::2], parts[2::2]
    if len(set(names)) != len(names):
        raise ReconcilerError(f"queries/{table}.sql names a statement twice")
    return {name: cast(LiteralString, body.strip()) for name, body in zip(names, bodies, strict=True)}


def is_alive(conn: Connection) -> bool:
    """Whether the server still answers on this connection."""
    try:
        conn.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True


def require_writable(conn: Connection) -> None:
    """Make sure that this session may write, now: a server can become a standby or be fenced under it.

    Raises:
        ReadOnlyDatabase: it may not.

    """
    row = conn.execute("SELECT current_setting('transaction_read_only')").fetchone()
    if row == ("on",):
        raise ReadOnlyDatabase("the database takes no writes: it is a standby, or was replaced", hint=STANDBY_HINT)


def name_connection(conn: Connection, *, purpose: str) -> None:
    """Show in pg_stat_activity what the connection is used for now."""
    conn.execute("SELECT pg_catalog.set_config('application_name', %s, false)", (f"{APPLICATION_NAME}: {purpose}",))


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into ours, with the server's reason and without the statement's values."""
    try:
        yield
    except psycopg.Error as exc:
        raise translate(exc) from exc


def translate(exc: psycopg.Error) -> ReconcilerError:
    """What a driver error means for the caller."""
    reason = exc.diag.message_primary or str(exc).strip().splitlines()[0] if str(exc) else type(exc).__name__
    match exc:
        case pg.InvalidPassword() | pg.InvalidAuthorizationSpecification():
            return LoginRefused(
                f"the database refused the login: {reason}",
                hint="check user and password in DATABASE_URL, or in the file that it is read from",
            )
        case pg.InvalidCatalogName():
            return Refused(f"there is no such database: {reason}", hint="check its name in DATABASE_URL, or create it")
        case pg.InsufficientPrivilege():
            return Refused(f"the role lacks a privilege: {reason}", hint="grant it to the user in DATABASE_URL")
        case pg.UndefinedTable() | pg.UndefinedColumn() | pg.UndefinedFunction():
            return SchemaError(f"the schema is not up to date: {reason}", hint="run `reconcile migrate`")
        case pg.DeadlockDetected() | pg.SerializationFailure() | pg.LockNotAvailable():
            return Contended(f"another writer was in the way: {reason}")
        case pg.ReadOnlySqlTransaction():
            return ReadOnlyDatabase(f"the database takes no writes: {reason}", hint=STANDBY_HINT)
        case pg.ProgramLimitExceeded():
            # An OperationalError by its class, but no waiting makes a row smaller.
            return ReconcilerError(f"the database answered: {reason}")
        case pg.TooManyConnections():
            hint = "raise max_connections, or the CONNECTION LIMIT of the role or database in DATABASE_URL"
            return Unavailable(f"the database has no connection left: {reason}", hint=hint)
        case psycopg.OperationalError() | psycopg.InterfaceError():
            return Unavailable(f"the database is unavailable: {reason}", hint="is the server in DATABASE_URL up?")
    return ReconcilerError(f"the database answered: {reason}")


def is_contention(exc: psycopg.Error) -> bool:
    """Whether another session was in the way; the same statement may succeed later."""
    return isinstance(exc, pg.DeadlockDetected | pg.SerializationFailure | pg.LockNotAvailable)


def refusal(exc: psycopg.Error) -> str | None:
    """Why PostgreSQL refuses a row, without its values; None if no row is to blame."""
    if exc.sqlstate is None:
        return "the driver cannot write it" if isinstance(exc, psycopg.DataError) else None
    if exc.sqlstate[:2] not in _FAULTS_OF_A_ROW:
        return None
    diag = exc.diag
    names = (diag.schema_name, diag.table_name, diag.column_name, diag.constraint_name, diag.datatype_name)

    def hide(quoted: re.Match[str]) -> str:
        return quoted[0] if quoted[1] and quoted[1] in names else "…"

    return mask(_VALUE.sub(hide, diag.message_primary or type(exc).__name__))[:_MAX_REASON]


def _ms(duration: timedelta) -> int:
    return int(duration / timedelta(milliseconds=1))

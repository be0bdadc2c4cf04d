"""Connections, named queries and the translation of the driver's errors.

Design rules
- Every connection runs in UTC. `messages.start_time` is a timestamp without time zone that holds UTC. A session in
  another zone would shift it in silence.
- Connections are in autocommit, and every write is inside `with conn.transaction()`. No transaction stays open by
  accident (https://www.psycopg.org/psycopg3/docs/basic/transactions.html).
- The driver's errors are translated here, once, into errors that say what the caller does next (`translated`).
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
from psycopg import sql
from psycopg.types.json import set_json_loads

from reconciler.database import login, pooling
from reconciler.errors import (
    Contended,
    LoginRefused,
    ReadOnlyDatabase,
    ReconcilerError,
    Refused,
    SchemaError,
    TableFault,
    Unavailable,
)
from reconciler.masking import mask

APPLICATION_NAME = "reconciler"
CONNECT_TIMEOUT = timedelta(seconds=10)
STATEMENT_TIMEOUT = timedelta(minutes=5)
LOCK_TIMEOUT = timedelta(seconds=30)

# Until the search_path is pinned, it is the role's, which may name schemas of others before pg_catalog. The first
# statements of a session therefore qualify every name, and use no operator: a stranger's could fit as well.
_SCHEMAS: Final = "SELECT pg_catalog.current_schemas(false)"
_SET_ALL: Final = """
SELECT pg_catalog.set_config(name, value, false)
FROM ROWS FROM (
    pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[])
) AS s (name, value)
"""

STANDBY_HINT: Final = "does DATABASE_URL name a standby?"

Connection = psycopg.Connection[tuple[Any, ...]]

# SQLSTATE classes that blame the values of a row: data exception, integrity constraint, view check option, program
# limit, RAISE in a trigger (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_FAULTS_OF_A_ROW: Final = ("22", "23", "44", "54", "P0")
# In a new database, and in an older one (sql/025).
_KEYS_OF_EVENTS: Final = ("call_events_facts", "call_events_dedupe_key")
# Messages quote values and names in the quotation marks of their language. A quotation after a colon is a value.
_VALUE: Final = re.compile(r"""(?<=: )["«»„“「].*|["«»„“「]\s*(.+?)\s*["«»“”」]""", re.DOTALL)
_MAX_REASON: Final = 500  # characters

_QUERY = re.compile(r"^-- name: (?P<name>\w+)\s*$", re.MULTILINE)


def connect(url: str, *, purpose: str, settings: Mapping[str, str] | None = None) -> Connection:
    """Open a connection in UTC, in autocommit, with timeouts; its application_name is `reconciler: <purpose>`.

    `settings` are run-time parameters for this session. They are sent after connecting, and not as start-up options,
    because connection poolers refuse those.

    Raises:
        ConfigError: libpq cannot read `url` or refuses a parameter in it, or a pooler does not keep sessions together.
        Refused: the server refused the user, the password or the database.
        Unavailable: no server answered.

    """
    login.check_url(url)
    with translated():
        conn = _open(url, purpose)
        session = {
            # The role or the database may have other defaults for these.
            "timezone": "UTC",
            "datestyle": "ISO",  # the only one that the driver reads
            "statement_timeout": f"{_ms(STATEMENT_TIMEOUT)}ms",
            "lock_timeout": f"{_ms(LOCK_TIMEOUT)}ms",
            # A client that dies inside a transaction must not hold its locks until TCP gives up on it.
            "idle_in_transaction_session_timeout": "60s",
            # A policy that hides rows must be an error: hidden rows look like calls that Twilio has and we lack.
            "row_security": "off",
            # `verify` compares PostgreSQL's names of types and objects with those in our snapshot.
            "quote_all_identifiers": "off",
            **(settings or {}),
        }
        # JSON numbers may be money, which a float would round.
        set_json_loads(partial(json.loads, parse_float=Decimal), conn)
        try:
            pooling.require_session(conn, url)  # otherwise our settings could stay on somebody else's connection
            session |= _pinned_search_path(conn)
            conn.execute(_SET_ALL, (list(session), list(session.values())))
        except BaseException:
            conn.close()
            raise
    return conn


def _pinned_search_path(conn: Connection) -> dict[str, str]:
    """Return a search_path that finds PostgreSQL's objects first, then those of the role's schemas, as a setting.

    - PostgreSQL searches pg_catalog first unless search_path names it: left out, no object can hide one of its own.
    - PostgreSQL also searches pg_temp first, for tables only: named last, no temporary table can hide one of ours
      (https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-SEARCH-PATH).
    - If search_path names no existing schema, it stays unchanged, and `migrate` reports it.
    """
    row = conn.execute(_SCHEMAS).fetchone()
    assert row
    ours = [name for name in row[0] if name != "pg_catalog" and not name.startswith("pg_temp_")]
    path = ", ".join(sql.Identifier(name).as_string() for name in ours)
    return {"search_path": f"{path}, pg_temp"} if ours else {}


async def apply_settings(conn: psycopg.AsyncConnection[Any], session: Mapping[str, str]) -> None:
    """Set the settings of a session that a library opened. `connect` sets those of our own sessions."""
    await conn.execute(_SET_ALL, (list(session), list(session.values())))


def login_parameters(purpose: str) -> dict[str, Any]:
    """Return libpq's parameters for every connection of ours."""
    return {
        "connect_timeout": int(CONNECT_TIMEOUT.total_seconds()),
        "application_name": f"{APPLICATION_NAME}: {purpose}",
        # Names at Twilio are in any script, so the encoding must not depend on the server or the machine.
        "client_encoding": "utf8",
        # With these, a server that vanished without a FIN is noticed in half a minute instead of two hours.
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        # While sent data is not acknowledged, TCP sends no keepalives; this timeout covers that case.
        "tcp_user_timeout": 30_000,
    }


def _open(url: str, purpose: str) -> Connection:
    try:
        return psycopg.connect(url, autocommit=True, **login_parameters(purpose))
    except psycopg.OperationalError as exc:
        raise login.explain(url, exc) from None  # it may be `exc` itself


@cache
def load_queries(table: str) -> Mapping[str, LiteralString]:
    """Return the statements of `queries/<table>.sql` by name: a `-- name: x` line, then the statement.

    Only this function makes them LiteralStrings. The type checker then rejects SQL that is built from other text.

    Raises:
        ReconcilerError: the file has two statements of one name.

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
    """Check that this session may write now: its server can become a standby, or be fenced, at any time.

    Raises:
        ReadOnlyDatabase: the session may not write.

    """
    row = conn.execute("SELECT pg_catalog.current_setting('transaction_read_only')").fetchone()
    if row == ("on",):
        raise ReadOnlyDatabase("the database takes no writes: another server may have replaced it", hint=STANDBY_HINT)


def name_connection(conn: Connection, *, purpose: str) -> None:
    """Set the purpose that pg_stat_activity shows for the connection."""
    conn.execute("SELECT pg_catalog.set_config('application_name', %s, false)", (f"{APPLICATION_NAME}: {purpose}",))


@contextmanager
def translated() -> Iterator[None]:
    """Raise the driver's errors as ours, with the server's reason and without the statement's values."""
    try:
        yield
    except psycopg.Error as exc:
        raise translate(exc) from exc


def translate(exc: psycopg.Error) -> ReconcilerError:
    """Return our error for a driver's error: its class says what the caller does next."""
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
            hint = "`reconcile check` says what the user in DATABASE_URL lacks"
            return Refused(f"the role lacks a privilege: {reason}", hint=hint)
        case pg.UndefinedTable() | pg.UndefinedColumn() | pg.UndefinedFunction():
            return SchemaError(f"the schema is not up to date: {reason}", hint="run `reconcile migrate`")
        case _ if is_contention(exc):
            return Contended(f"another writer was in the way: {reason}")
        case pg.ReadOnlySqlTransaction():
            return ReadOnlyDatabase(f"the database takes no writes: {reason}", hint=STANDBY_HINT)
        case pg.SequenceGeneratorLimitExceeded():
            hint = "no new row can be written; `reconcile check` names the column: change it and its sequence to bigint"
            return TableFault(f"the numbers of an id column are used up: {reason}", hint=hint)
        case pg.NotNullViolation() if is_fault_of_a_table(exc):
            column = f"{exc.diag.table_name}.{exc.diag.column_name}"
            hint = (
                f"give {column} a default, or ALTER COLUMN {exc.diag.column_name} DROP NOT NULL; the next run goes on"
            )
            return TableFault(f"{column} must not be null, has no default and is not ours: no new row fits", hint=hint)
        case pg.ProgramLimitExceeded():
            # By its class it is an OperationalError, but waiting does not make a row smaller.
            return ReconcilerError(f"the database answered: {reason}")
        case pg.TooManyConnections():
            hint = "raise max_connections, or the CONNECTION LIMIT of the role or database in DATABASE_URL"
            return Unavailable(f"the database has no connection left: {reason}", hint=hint)
        case pg.DiskFull():
            hint = "make room on the disk of the database server; the next run goes on"
            return Unavailable(f"the database's disk is full: {reason}", hint=hint)
        case psycopg.OperationalError() | psycopg.InterfaceError():
            return Unavailable(f"the database is unavailable: {reason}", hint="is the server in DATABASE_URL up?")
    return ReconcilerError(f"the database answered: {reason}")


def is_contention(exc: psycopg.Error) -> bool:
    """Whether another session was in the way, or was faster; the same transaction may succeed later."""
    if isinstance(exc, pg.UniqueViolation):
        # The Viewer may have keys of its own. Ours of messages may have any name. The server's detail holds its column,
        # in any language: `Key (twilio_sid)=(CA...) already exists.`
        return exc.diag.constraint_name in _KEYS_OF_EVENTS or "(twilio_sid)=(" in (exc.diag.message_detail or "")
    return isinstance(exc, pg.DeadlockDetected | pg.SerializationFailure | pg.LockNotAvailable)


def unwritten(table: str) -> TableFault:
    """Return the error for a row of ours that is not there although PostgreSQL reported no error."""
    hint = f"`\\d {table}` in psql shows its triggers; the next run goes on where this one was"
    return TableFault(f"a trigger of this database keeps rows away from {table}", hint=hint)


def is_fault_of_a_table(exc: psycopg.Error) -> bool:
    """Whether no row at all can be written: ids ran out, or a column is mandatory that the merge does not know."""
    if isinstance(exc, pg.NotNullViolation) and exc.diag.table_name in ("messages", "call_events"):
        known = re.compile(rf"\b{re.escape(exc.diag.column_name or '')}\b")
        return known.search(load_queries("merge")["merge_staged"]) is None
    return isinstance(exc, pg.SequenceGeneratorLimitExceeded)


def refusal(exc: psycopg.Error) -> str | None:
    """Return why PostgreSQL refuses a row, without the row's values; None if the error is not about a row."""
    if exc.sqlstate is None:
        return "the driver cannot write it" if isinstance(exc, psycopg.DataError) else None
    if exc.sqlstate[:2] not in _FAULTS_OF_A_ROW or is_fault_of_a_table(exc) or is_contention(exc):
        return None
    diag = exc.diag
    names = (diag.schema_name, diag.table_name, diag.column_name, diag.constraint_name, diag.datatype_name)

    def hide(quoted: re.Match[str]) -> str:
        return quoted[0] if quoted[1] and quoted[1] in names else "…"

    return mask(_VALUE.sub(hide, diag.message_primary or type(exc).__name__))[:_MAX_REASON]


def _ms(duration: timedelta) -> int:
    return int(duration / timedelta(milliseconds=1))

"""The reason why a connection failed, from libpq's functions and SQLSTATEs, never from the words of a message.

The server writes messages in the language of its `lc_messages`. libpq passes these words on, but not the SQLSTATE that
came with them. libpq's own trace of a second attempt shows the SQLSTATE
(https://www.postgresql.org/docs/current/libpq-control.html#LIBPQ-PQTRACE).
"""

from __future__ import annotations

import os
import re
import select
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo, ConnStatus, PGconn, PollingStatus, Trace, abc

from reconciler.errors import ConfigError

_TRACE_TIMEOUT: Final = 5.0  # seconds for the traced attempt
_FORM: Final = "write postgresql://user@host/database"
_PARAMETERS: Final = "https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS lists them"
_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
# The name of a parameter in a URL or in libpq's key=value form. The value after it may be a secret.
_OF_URL: Final = re.compile(r"[?&](\w+)=[^&]*")
_OF_PAIRS: Final = re.compile(r"\s*(\w+)\s*=\s*(?:'(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)*)(?=\s|$)")
# A line of libpq's trace: `B  120  ErrorResponse  S "FATAL" V "FATAL" C "28P01" M "…"`. S and M are in any language.
_TRACED_ERROR: Final = re.compile(rb'^B\t\d+\tErrorResponse\t S "[^"]*" (?:V "[^"]*" )?C "([0-9A-Z]{5})"', re.MULTILINE)


def check_url(url: str) -> None:
    """Check that libpq can read `url`. No message shows a value: any of them may be a piece of a password.

    Raises:
        ConfigError: libpq cannot read it; the message names the parameter that libpq does not know, if there is one.

    """
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        known = {option.keyword.decode() for option in Conninfo.get_defaults()} | {"ssl"}
        unknown = [name for name in _parameter_names(url) if name not in known]
        if unknown:
            raise ConfigError(
                f"DATABASE_URL: libpq knows no parameter {unknown[0]!r}", hint=f"leave it out; {_PARAMETERS}"
            ) from None
        raise ConfigError("DATABASE_URL: libpq cannot read it", hint=_FORM) from None


def explain(url: str, error: psycopg.OperationalError) -> psycopg.Error:
    """Return `error` in the class of its SQLSTATE, if a server gave one. This may try to connect once more.

    Raises:
        ConfigError: libpq or the server refuses a parameter.

    """
    if error.sqlstate is not None or isinstance(error, pg.ConnectionTimeout):
        return error
    if error.pgconn is not None and error.pgconn.needs_password:
        return pg.InvalidPassword(str(error))
    _check_values(url)
    try:
        kind = pg.lookup(_sqlstate_of_refusal(url, str(error)))
    except LookupError:  # no server answered, or a pooler invented a SQLSTATE
        return error
    if issubclass(kind, pg.UndefinedObject | pg.InvalidParameterValue):
        reason = str(error).splitlines()[0]
        raise ConfigError(f"DATABASE_URL: the server refuses a parameter: {reason}", hint="correct it, or leave it out")
    is_known = issubclass(kind, psycopg.OperationalError | pg.InvalidCatalogName | pg.InsufficientPrivilege)
    return kind(str(error)) if is_known else error


def _check_values(url: str) -> None:
    """Check that libpq accepts the value of each parameter.

    Raises:
        ConfigError: libpq does not accept one; the message does not show the value.

    """
    if not _is_accepted({}):
        raise ConfigError("libpq does not accept one of its own PG* variables in the environment", hint=_PARAMETERS)
    for name, value in conninfo_to_dict(url).items():
        if name not in ("host", "hostaddr", "port") and not _is_accepted({name: str(value)}):
            raise ConfigError(f"DATABASE_URL: libpq does not accept the value of {name!r}", hint=_PARAMETERS)
        if name in _FILES and value != "system" and not os.access(str(value), os.R_OK):
            raise ConfigError(f"DATABASE_URL: the file that {name!r} names cannot be read")


def _parameter_names(url: str) -> Iterator[str]:
    """Yield the parameters' names up to a password: text after an unencoded password may belong to it."""
    is_url = "://" in url
    for match in (_OF_URL if is_url else _OF_PAIRS).finditer(url, url.find("?") if is_url else 0):
        yield match[1]
        if match[1].endswith("password"):
            return


def _is_accepted(parameters: dict[str, str]) -> bool:
    """Whether libpq accepts these parameters. It checks them before it sends the first byte."""
    # On the loopback address nothing answers or refuses before `connect_start` returns.
    conninfo = make_conninfo(host="127.0.0.1", hostaddr="127.0.0.1", port=1, **parameters)
    pgconn = PGconn.connect_start(conninfo.encode())
    try:
        return bool(pgconn.status != ConnStatus.BAD)
    finally:
        pgconn.finish()


@lru_cache(maxsize=32)
def _sqlstate_of_refusal(url: str, _message: str) -> str:
    """Return the SQLSTATE with which the server refuses a connection.

    There is one attempt for each message: servers count failed logins, and psycopg leaks the stream of its trace.

    Raises:
        LookupError: the server gives no SQLSTATE now.

    """
    if sys.platform != "linux":
        raise LookupError("libpq's trace is only available on Linux")
    trace = os.memfd_create("libpq")  # in memory only: the trace holds the proof of the password
    pgconn = PGconn.connect_start(url.encode())
    try:
        _finish_connecting(pgconn, trace)
        refusals = _TRACED_ERROR.findall(os.pread(trace, os.fstat(trace).st_size, 0))
    finally:
        pgconn.finish()
        os.close(trace)
    hosts = str(conninfo_to_dict(url).get("host") or "").split(",")
    if len(refusals) < len(hosts):  # a host that is away might have accepted the login
        raise LookupError("no SQLSTATE")
    return str(refusals[-1], "ascii")


def _finish_connecting(pgconn: abc.PGconn, trace: int) -> None:
    """Connect, for at most `_TRACE_TIMEOUT`; libpq writes its trace from the moment a server listens."""
    deadline = time.monotonic() + _TRACE_TIMEOUT
    is_traced = False
    while pgconn.status != ConnStatus.BAD:
        status = pgconn.connect_poll()
        left = deadline - time.monotonic()
        if status in (PollingStatus.OK, PollingStatus.FAILED) or left <= 0:
            break
        if not is_traced and pgconn.status != ConnStatus.STARTED:
            pgconn.trace(trace)
            pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)
            is_traced = True
        is_reading = status == PollingStatus.READING
        select.select([pgconn.socket] * is_reading, [pgconn.socket] * (not is_reading), [], left)
    if is_traced:
        pgconn.untrace()  # this also flushes the trace

"""The exceptions of reconciler, sorted by what the caller does next, and the exit codes they end in.

    ReconcilerError
    ├── ConfigError          78  names the setting and the rule it breaks
    ├── UsageError           64  an argument that cannot be read
    ├── Refused              77  credentials or privileges: a person must act; NotFound, LoginRefused are two
    ├── Retriable            75  the same request again, with backoff; a one-off run that gives up ends so
    │   ├── RateLimited          carries retry_after
    │   ├── Unavailable      69  network, timeout, 5xx, database away; ConnectionLost, ReadOnlyDatabase, Outpaced
    │   ├── FilterIgnored    75  a listing holds what was not asked for
    │   ├── CredentialsDoubted 77  401 for credentials that worked a moment ago
    │   └── Contended        75  another writer was in the way; nothing was committed
    ├── OutsideRetention      1  the window lies before what Twilio keeps
    ├── JobHeld              75  another process holds the job
    ├── SchemaError          78  the database's schema is not what this version works with
    ├── TwilioAnswerError    75  Twilio answers what it never should: 400, a redirect, a page that leads back
    └── BadObservation        1  one record that cannot be read: dead letter with its reason, the run goes on

| situation | raise |
| --- | --- |
| a setting is missing, unknown or malformed | ConfigError |
| 401, 403, a password the database refuses, a missing GRANT | Refused |
| 429 | RateLimited |
| 5xx, reset, timeout, a body cut short, HTML where JSON belongs | Unavailable |
| the ledger and the files disagree, migrations are missing | SchemaError |
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    """Exit codes of `reconcile`; 64 to 78 are those of sysexits.h."""

    DONE = 0
    UNRECONCILED = 1
    USAGE = 64
    UNAVAILABLE = 69
    BUG = 70
    TRY_AGAIN = 75
    REFUSED = 77
    CONFIG = 78
    INTERRUPTED = 130


EXIT_MEANINGS: Final[Mapping[ExitCode, str]] = {
    ExitCode.DONE: "done",
    ExitCode.UNRECONCILED: "done, but something could not be reconciled (dead letters, drift; with --dry-run: "
    "differences found)",
    ExitCode.USAGE: "usage",
    ExitCode.UNAVAILABLE: "database or Twilio unavailable",
    ExitCode.BUG: "a bug",
    ExitCode.TRY_AGAIN: "try again (the job is held by another process, slices failed)",
    ExitCode.REFUSED: "refused (credentials, privileges)",
    ExitCode.CONFIG: "configuration",
    ExitCode.INTERRUPTED: "interrupted",
}


class ReconcilerError(Exception):
    """Something we expected could happen. The message is for a person and never holds a secret."""

    exit_code = ExitCode.BUG
    is_refusal = False  # of credentials or privileges: one account may be refused while others work
    hint: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(ReconcilerError):
    """A setting is missing, unknown or malformed."""

    exit_code = ExitCode.CONFIG


class UsageError(ReconcilerError):
    """An argument on the command line cannot be read."""

    exit_code = ExitCode.USAGE


class Refused(ReconcilerError):
    """Credentials or privileges were refused: trying again does not help, a person must act."""

    exit_code = ExitCode.REFUSED
    is_refusal = True


class NotFound(Refused):
    """404: Twilio has no such thing, or shows it to others only."""


class LoginRefused(Refused):
    """The database let this user with this password not in. The daemon tries a few times more: it may pass."""


class SchemaError(ReconcilerError):
    """The database's schema is not the one this version works with."""

    exit_code = ExitCode.CONFIG


class Retriable(ReconcilerError):
    """The same request may succeed a little later.

    A request is given up after so many `attempts` that failed in this way; the first repeat is `at_once`, or after
    a wait.
    """

    exit_code = ExitCode.TRY_AGAIN
    attempts = 10
    at_once = False


class RateLimited(Retriable):
    """HTTP 429: too many concurrent requests of the account; the request was not processed."""

    def __init__(self, message: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(Retriable):
    """Twilio or the database is away for now."""

    exit_code = ExitCode.UNAVAILABLE


class ConnectionLost(Unavailable):
    """The peer closed a connection that may have been idle for long; a new one may work at once."""

    at_once = True


class ReadOnlyDatabase(Unavailable):
    """The server at the other end takes no writes: a standby, or a primary that was replaced.

    The connection is of no use any more. The same address may lead to the new primary by now.
    """


class Outpaced(Unavailable):
    """Another writer was in the way too often: its locks, or rows that changed. Nothing was committed."""


class FilterIgnored(Retriable):
    """A listing holds what was not asked for: Twilio ignored a filter. Asked again a little, then loud."""

    attempts = 3


class CredentialsDoubted(Retriable):
    """401 for credentials that worked a moment ago: a passing fault or a revoked key; a few repeats tell which."""

    exit_code = ExitCode.REFUSED
    is_refusal = True
    attempts = 4


class OutsideRetention(ReconcilerError):
    """The window lies before what Twilio keeps (error 20004)."""

    exit_code = ExitCode.UNRECONCILED


class Contended(Retriable):
    """Another writer was in the way: a deadlock, a lock held too long, a row changed. Nothing was committed."""


class JobHeld(ReconcilerError):
    """Another process is running this job for this account."""

    exit_code = ExitCode.TRY_AGAIN


class TwilioAnswerError(ReconcilerError):
    """Twilio's answer is not one to the question asked; going on could be wrong without end."""

    exit_code = ExitCode.TRY_AGAIN


class BadObservation(ReconcilerError):
    """One record that cannot be read. It becomes a dead letter and stops nothing."""

    exit_code = ExitCode.UNRECONCILED

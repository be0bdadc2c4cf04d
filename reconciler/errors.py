"""The exceptions of reconciler, grouped by the caller's next step, and their exit codes.

    ReconcilerError
    ├── ConfigError          78  names the setting and the rule it breaks
    ├── UsageError           64  an argument cannot be read
    ├── Refused              77  credentials or privileges: a person must act; also NotFound, NotPermitted,
    │                            LoginRefused
    ├── Retriable            75  send the same request again, with backoff; the exit code is that of a run that gave up
    │   ├── RateLimited          carries retry_after
    │   ├── Unavailable      69  network, timeout, 5xx, database away; ConnectionLost, ReadOnlyDatabase, Outpaced
    │   ├── FilterIgnored    75  a listing holds calls that the filter excludes
    │   ├── CredentialsDoubted 77  401 for credentials that worked a moment ago
    │   └── Contended        75  another writer was in the way; nothing was committed
    ├── OutsideRetention      1  the window is older than Twilio's retention
    ├── JobHeld              75  another process holds the job
    ├── TableFault           75  a table withholds a row, or refuses all: a person must mend it; then runs go on
    ├── SchemaError          78  this version cannot work with the database's schema
    ├── TimeIgnored          70  a listing of some hours was answered by the date alone: sync reads the whole day
    ├── TwilioAnswerError    75  an answer that Twilio should never give: 400, a redirect, a page that leads back
    └── BadObservation        1  one record cannot be read: it becomes a dead letter, and the run goes on

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
    """An error that the program expects. The message is for a person and never holds a secret."""

    exit_code = ExitCode.BUG
    is_refusal = False  # True if it is about credentials or privileges: other accounts may still work
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
    """Credentials or privileges were refused. Trying again does not help; a person must act."""

    exit_code = ExitCode.REFUSED
    is_refusal = True


class NotFound(Refused):
    """404: the resource does not exist at Twilio, or these credentials may not see it."""


class NotPermitted(Refused):
    """The credentials may read the account's calls, and lack a permission for something else."""


class LoginRefused(Refused):
    """The database refused the login. The refusal may pass, so the daemon tries a few times more."""


class TableFault(ReconcilerError):
    """A table is to blame, and no single row: it takes no row, none of a page, or a trigger withholds a row of ours.

    Nothing was committed.
    """

    exit_code = ExitCode.TRY_AGAIN


class SchemaError(ReconcilerError):
    """This version cannot work with the database's schema."""

    exit_code = ExitCode.CONFIG


class Retriable(ReconcilerError):
    """The same request may succeed a little later.

    A request is given up after `attempts` failures of this kind. `at_once`: the first repeat follows without a wait.
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
    """Twilio or the database cannot be reached at the moment."""

    exit_code = ExitCode.UNAVAILABLE


class ConnectionLost(Unavailable):
    """The peer closed a connection, perhaps because it was idle for long. A new one may work at once."""

    at_once = True


class ReadOnlyDatabase(Unavailable):
    """The server takes no writes: it is a standby, or a primary that was replaced.

    Close the connection and open another: the same address may lead to the new primary by now.
    """


class Outpaced(Unavailable):
    """Another writer interfered in every attempt, with its locks or by changing rows. Nothing was committed."""


class TimeIgnored(ReconcilerError):
    """A listing of some hours was answered by the date alone. The whole day is to be asked for."""


class FilterIgnored(Retriable):
    """A listing holds calls that its filter excludes: Twilio ignored the filter. There are few repeats."""

    attempts = 3


class CredentialsDoubted(Retriable):
    """401 for credentials that worked a moment ago. A few repeats tell a passing fault from a revoked key."""

    exit_code = ExitCode.REFUSED
    is_refusal = True
    attempts = 4


class OutsideRetention(ReconcilerError):
    """The window is older than Twilio's retention (error 20004)."""

    exit_code = ExitCode.UNRECONCILED


class Contended(Retriable):
    """Another writer interfered: a deadlock, a lock held too long, a row changed. Nothing was committed."""


class JobHeld(ReconcilerError):
    """Another process is running this job for this account."""

    exit_code = ExitCode.TRY_AGAIN


class TwilioAnswerError(ReconcilerError):
    """Twilio's answer does not fit the request. To continue could repeat the error without end."""

    exit_code = ExitCode.TRY_AGAIN


class BadObservation(ReconcilerError):
    """One record cannot be read. It becomes a dead letter; the run goes on."""

    exit_code = ExitCode.UNRECONCILED

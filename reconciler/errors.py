"""The exceptions of reconciler, sorted by what the caller does next, and the exit codes they end in.

    ReconcilerError
    ├── ConfigError          78  names the setting and the rule it breaks
    ├── UsageError           64  an argument that cannot be read
    ├── Refused              77  credentials or privileges: a person must act
    ├── Retriable            75  the same request again, with backoff; a one-off run that gives up ends so
    │   ├── RateLimited          carries retry_after
    │   └── Unavailable      69  network, timeout, 5xx, database away
    ├── JobHeld              75  another process holds the job
    ├── SchemaError          78  the database's schema is not what this version works with
    ├── TwilioAnswerError    70  Twilio answers what it never should: an ignored filter, a foreign next page
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

from datetime import timedelta
from enum import IntEnum


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


class ReconcilerError(Exception):
    """Something we expected could happen. The message is for a person and never holds a secret."""

    exit_code = ExitCode.BUG
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


class SchemaError(ReconcilerError):
    """The database's schema is not the one this version works with."""

    exit_code = ExitCode.CONFIG


class Retriable(ReconcilerError):
    """The same request may succeed a little later."""

    exit_code = ExitCode.TRY_AGAIN


class RateLimited(Retriable):
    """HTTP 429: too many concurrent requests of the account; the request was not processed."""

    def __init__(self, message: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(Retriable):
    """Twilio or the database is away for now."""

    exit_code = ExitCode.UNAVAILABLE


class JobHeld(ReconcilerError):
    """Another process is running this job for this account."""

    exit_code = ExitCode.TRY_AGAIN


class TwilioAnswerError(ReconcilerError):
    """Twilio's answer is not one to the question asked; going on could be wrong without end."""

    exit_code = ExitCode.TRY_AGAIN


class BadObservation(ReconcilerError):
    """One record that cannot be read. It becomes a dead letter and stops nothing."""

    exit_code = ExitCode.UNRECONCILED

"""The preparation of a command: settings and logging, the database and its schema, the client, and signals."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Final, TextIO, cast

from reconciler import logs, masking
from reconciler.database import connection as db
from reconciler.database import embedded, engine_schema
from reconciler.database import migrate as runner
from reconciler.database.budgets import Budgets
from reconciler.database.store import Store
from reconciler.database.transaction import Rules
from reconciler.errors import ExitCode, SchemaError, UsageError
from reconciler.model import ACCOUNT_SID
from reconciler.settings import Settings
from reconciler.terminal.log_lines import LogLines
from reconciler.times import parse_moment
from reconciler.twilio.accounts import Accounts, find_accounts, named_accounts
from reconciler.twilio.client import Session, TwilioClient
from reconciler.wording import counted

BEFORE_MIGRATING: Final = "Before you migrate: back up, and migrate a copy first (docs/operations.md)."


def read_settings(*, serves: bool = False, quietest: str = "warning") -> Settings:
    """Read the settings and configure logging. A command that `serves` prints no result, only its log.

    Raises:
        ConfigError: a setting is missing, unknown or malformed.

    """
    settings = Settings.read(os.environ)
    for secret in settings.secrets():
        masking.protect(secret)
    stream = cast("TextIO", _Stderr())
    level = settings.log_level
    if level == "auto":
        level = quietest if stream.isatty() and not serves else "info"
    lines = _log_lines(stream, serves=serves)
    logs.configure(form=settings.log_format, level=level, pii=settings.log_pii, stream=stream, lines=lines)
    return settings


def _log_lines(stream: TextIO, *, serves: bool) -> LogLines:
    is_terminal = stream.isatty()
    return LogLines(
        width=lambda: shutil.get_terminal_size().columns if is_terminal else None,
        colours=is_terminal and not os.environ.get("NO_COLOR"),  # https://no-color.org
        says_failures=not serves,
    )


def database_url(settings: Settings) -> str:
    """Return the URL of the database; without DATABASE_URL start the embedded one."""
    return settings.database_url or embedded.start().url


def connect(settings: Settings, *, purpose: str) -> closing[db.Connection]:
    """Return a connection for a command that reads the database itself."""
    return closing(db.connect(database_url(settings), purpose=purpose))


def prepare_schema(url: str, *, migrate: bool, settings: Settings | None = None) -> None:
    """Apply missing migrations if `migrate` is set, else refuse to run on an old schema.

    With `settings` that ask for the engine, its schema is prepared too.

    Raises:
        ConfigError: the engine is not installed.
        SchemaError: migrations are missing, and `migrate` is false.

    """
    shares = settings is not None and engine_schema.shares_work(settings)
    with db.connect(url, purpose="migrate") as conn:
        if not migrate:
            require_schema(conn)
            return
        if runner.behind(conn):
            runner.migrate(conn, on_planned=log_planned, on_applied=log_applied)
        if shares and engine_schema.behind(conn):
            engine_schema.migrate(conn, on_applied=log_engine_applied)


def require_schema(conn: db.Connection) -> None:
    """Refuse to work on an old schema.

    Raises:
        SchemaError: migrations are missing.

    """
    if behind := runner.behind(conn):
        raise SchemaError(not_applied(len(behind)), hint="run `reconcile migrate` first")


def not_applied(migrations: int) -> str:
    """Return the sentence that says how many migrations are not applied."""
    return f"{counted(migrations, 'migration')} {'is' if migrations == 1 else 'are'} not applied yet"


def log_planned(steps: Sequence[runner.Step]) -> None:
    """Log that migrations begin, with the steps that belong before them. On a terminal this is always shown."""
    log = logs.get_logger("reconciler.database.migrate")
    if sys.stderr.isatty() and not log.is_enabled_for(logging.INFO):
        print(BEFORE_MIGRATING, file=sys.stderr)
    log.info("migration.started", migrations=len(steps), hint=BEFORE_MIGRATING)


def log_applied(applied: runner.Applied) -> None:
    """Log an applied migration. On a terminal it is always shown, because many migrations take long."""
    log = logs.get_logger("reconciler.database.migrate")
    if sys.stderr.isatty() and not log.is_enabled_for(logging.INFO):
        print(f"Migration {applied.version:03} {applied.name} {applied.outcome}.", file=sys.stderr)
    log.info(
        "migration.applied", version=applied.version, name=applied.name, adopted=applied.outcome == "adopted",
        duration_seconds=round(applied.duration.total_seconds(), 3),
    )  # fmt: skip


def log_engine_applied(filename: str) -> None:
    """Log that a file of the engine's schema was applied."""
    log = logs.get_logger("reconciler.database.engine_schema")
    if sys.stderr.isatty() and not log.is_enabled_for(logging.INFO):
        print(f"The engine's {filename} applied.", file=sys.stderr)
    log.info("engine.migrated", file=filename)


def make_store(url: str, settings: Settings) -> Store:
    """Return a store with the merge rules of the settings."""
    return Store(url, rules=Rules(settings.webhook_grace, settings.freeze_after), channel=settings.notify_channel)


def share_budget(client: TwilioClient, url: str) -> None:
    """Make the client share its budget of requests with the other processes of this database."""
    client.pacer.share_through(Budgets(url))


@contextmanager
def make_client(settings: Settings) -> Iterator[TwilioClient]:
    """Yield the client that the settings describe, and close it at the end.

    Raises:
        ConfigError: credentials are missing.

    """
    with closing(TwilioClient.from_settings(settings)) as client:
        yield client


def accounts_asked_for(named: str | None, settings: Settings, session: Session) -> tuple[Accounts, tuple[str, ...]]:
    """Return all accounts of the settings, and those to work for now: the one that --account names, or all.

    Raises:
        UsageError: the name is not the SID of an account.
        Refused: Twilio does not list the accounts for these credentials.
        Retriable: Twilio did not answer.

    """
    main = settings.credentials().account_sid
    accounts = named_accounts(settings, main)
    if named is not None:
        require_account(named)
        return accounts, (named,)
    if not accounts.is_complete:
        accounts = find_accounts(session, main)
    return accounts, accounts.sids


def require_account(named: str) -> None:
    """Refuse a value of --account that is not the SID of an account.

    Raises:
        UsageError: it is not.

    """
    if not ACCOUNT_SID.fullmatch(named):
        raise UsageError(f"--account must be AC and 32 hexadecimal digits, not {named!r}")


def read_moment(text: str, option: str, now: datetime) -> datetime:
    """Return the moment that an option names.

    Raises:
        UsageError: the text cannot be read.

    """
    try:
        return parse_moment(text, now=now)
    except (ValueError, OverflowError) as exc:
        raise UsageError(f"{option} {text!r} cannot be read", hint=str(exc)) from None


def read_since(text: str, now: datetime) -> datetime:
    """Return the moment that --since names.

    Raises:
        UsageError: the text cannot be read, or the moment does not lie in the past.

    """
    since = read_moment(text, "--since", now)
    if since >= now:
        raise UsageError(f"--since {text} is not before now", hint="write how long ago, like 7d, or a date of the past")
    return since


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set, so that a run ends after its page. A second signal exits at once."""
    stop = threading.Event()
    watched = sys.stderr.isatty()

    def say(text: str) -> None:
        # `print` is not safe here: the signal may have interrupted another print.
        if watched:
            os.write(2, text.encode())

    def handle(_number: int, _frame: object) -> None:
        if stop.is_set():
            say("\x1b[?25h\n")  # a progress bar hides the cursor
            os._exit(ExitCode.INTERRUPTED)
        stop.set()
        say("\nFinishing the page in hand; again to leave at once.\n")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stderr:
    """The present stderr. While a progress bar is shown, that is the bar, which prints log lines above itself."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()

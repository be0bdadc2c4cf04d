"""What stands ready before a command does its work: settings and logging, a database, its schema, a way to stop."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from typing import TextIO, cast

from reconciler import logs, masking
from reconciler.database import connection as db
from reconciler.database import embedded
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


def read_settings(*, serves: bool = False, quietest: str = "warning") -> Settings:
    """Read the settings and set logging up by them. A command that `serves` prints no result: its log is what it says.

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
    logs.configure(
        form=settings.log_format, level=level, pii=settings.log_pii, stream=stream, lines=_log_lines(stream)
    )  # fmt: skip
    return settings


def _log_lines(stream: TextIO) -> LogLines:
    is_terminal = stream.isatty()
    return LogLines(
        width=lambda: shutil.get_terminal_size().columns if is_terminal else None,
        colours=is_terminal and not os.environ.get("NO_COLOR"),  # https://no-color.org
    )


def database_url(settings: Settings) -> str:
    """Where the database is; with no DATABASE_URL the embedded one is started."""
    return settings.database_url or embedded.start()


def connect(settings: Settings, *, purpose: str) -> closing[db.Connection]:
    """A connection for a command that looks at the database itself."""
    return closing(db.connect(database_url(settings), purpose=purpose))


def prepare_schema(url: str, *, migrate: bool) -> None:
    """Apply what is missing, or refuse to run on an old schema.

    Raises:
        SchemaError: migrations are missing, and `migrate` is false.

    """
    with db.connect(url, purpose="migrate") as conn:
        if not migrate:
            require_schema(conn)
        elif runner.behind(conn):
            runner.migrate(conn, on_applied=log_applied)


def require_schema(conn: db.Connection) -> None:
    """Refuse to work on an old schema.

    Raises:
        SchemaError: migrations are missing.

    """
    if behind := runner.behind(conn):
        raise SchemaError(f"{counted(len(behind), 'migration')} not applied yet", hint="run `reconcile migrate` first")


def log_applied(applied: runner.Applied) -> None:
    """Log one migration that was applied; who watches sees it in any case, as many take their time."""
    log = logs.get_logger("reconciler.database.migrate")
    if sys.stderr.isatty() and not log.is_enabled_for(logging.INFO):
        print(f"Migration {applied.version:03} {applied.name} {applied.outcome}.", file=sys.stderr)
    log.info(
        "migration.applied", version=applied.version, name=applied.name, adopted=applied.outcome == "adopted",
        duration_seconds=round(applied.duration.total_seconds(), 3),
    )  # fmt: skip


def make_store(url: str, settings: Settings) -> Store:
    """A store that merges by the rules that the settings give."""
    return Store(url, rules=Rules(settings.webhook_grace, settings.freeze_after), channel=settings.notify_channel)


def share_budget(client: TwilioClient, url: str) -> None:
    """Have the client ask Twilio no more at once than the other processes of this database leave."""
    client.pacer.share_through(Budgets(url))


@contextmanager
def make_client(settings: Settings) -> Iterator[TwilioClient]:
    """The client that the settings describe, closed at the end.

    Raises:
        ConfigError: credentials are missing.

    """
    with closing(TwilioClient.from_settings(settings)) as client:
        yield client


def accounts_asked_for(named: str | None, settings: Settings, session: Session) -> tuple[Accounts, tuple[str, ...]]:
    """The accounts that are looked after, and of them those to work for now: the one that --account names, or all.

    Raises:
        UsageError: the name is no account's.
        Refused: Twilio does not list the accounts for these credentials.
        Retriable: Twilio stayed away.

    """
    main = settings.credentials().account_sid
    accounts = named_accounts(settings, main)
    if named is not None:
        if not ACCOUNT_SID.fullmatch(named):
            raise UsageError("--account must be AC and 32 hexadecimal digits")
        return accounts, (named,)
    if not accounts.is_complete:
        accounts = find_accounts(session, main)
    return accounts, accounts.sids


def read_moment(text: str, option: str, now: datetime) -> datetime:
    """The moment that an option names.

    Raises:
        UsageError: it cannot be read.

    """
    try:
        return parse_moment(text, now=now)
    except (ValueError, OverflowError) as exc:
        raise UsageError(f"{option} {text!r} cannot be read", hint=str(exc)) from None


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set: the page in hand is finished. A second one ends the process at once."""
    stop = threading.Event()
    watched = sys.stderr.isatty()

    def say(text: str) -> None:
        # Not print: the signal may have come in the middle of one.
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
    """Whatever stderr is now: while a progress bar is shown, the bar, which keeps log lines apart from itself."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()

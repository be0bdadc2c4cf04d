"""What one run of a job works with: the context that every job takes as its one argument."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from reconciler.database.store import Store
from reconciler.model import JobName
from reconciler.settings import Settings
from reconciler.twilio.client import Session

PROGRESS_EVERY: Final = timedelta(seconds=10)  # between two log lines of one run


def utc_now() -> datetime:
    """The machine's time."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Account:
    """The account that a run asks Twilio about.

    `owns_unassigned`: the run also asks about rows that name no account. `is_only`: no call can belong to another
    account, so a 404 means that Twilio has no such call.
    """

    sid: str
    owns_unassigned: bool = True
    is_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a single run is asked for beyond the settings; a job reads the options that concern it."""

    since: datetime | None = None  # hot, warm: read from here on, wherever the cursor is
    deep: bool | None = None  # cold: a deep sweep, or none; None: when one is due
    is_scheduled: bool = False  # warm: ask only about the calls that are due
    scheduled_accounts: tuple[str, ...] | None = ()  # freeze: warm works for these; None: for all accounts
    batch_size: int | None = None  # freeze, inbox, housekeeping: rows a commit; None: the job's own


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """What one run of a job works with.

    `session` and `account` are set for jobs that ask Twilio. `stop` belongs to this run alone if there is a
    `time_limit`.
    """

    job: JobName
    settings: Settings
    store: Store
    session: Session | None = None
    account: Account | None = None
    options: Options = field(default_factory=Options)
    dry_run: bool = False  # write nothing, and take no lock
    stop: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], datetime] = utc_now
    time_limit: timedelta | None = None
    on_progress: Callable[[], None] = lambda: None  # called after each commit, and while the database is away
    retry_at: Callable[[], datetime | None] = lambda: None  # when the job is due next
    pause_if_refused: timedelta | None = None  # how long the schedule leaves a refused job alone; None: until it is due
    make_executor: Callable[[int], Executor] = partial(ThreadPoolExecutor, thread_name_prefix="fetch")
    progress_every: timedelta = PROGRESS_EVERY

"""The context of a run: the one argument that every job takes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import ClassVar, Final

from reconciler.database.store import Store
from reconciler.model import JobName
from reconciler.settings import Settings
from reconciler.twilio.client import Session

PROGRESS_EVERY: Final = timedelta(seconds=10)  # between two log lines of one run


def utc_now() -> datetime:
    """Return the machine's time."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Account:
    """The account that a run asks Twilio about.

    - `owns_unassigned`: the run also handles the rows without an account.
    - `is_only`: every call must belong to this account, so a 404 means that the call is gone.
    """

    sid: str
    owns_unassigned: bool = True
    is_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a single run, in addition to the settings; each job reads only its own."""

    since: datetime | None = None  # hot, warm: read from here on, and ignore the cursor
    deep: bool | None = None  # cold: whether the sweep is deep; None: if a deep one is due
    is_scheduled: bool = False  # warm: ask only about the calls that are due
    scheduled_accounts: tuple[str, ...] | None = ()  # freeze: the accounts for which warm runs; None: all accounts
    slice: str | None = None  # a backfill by a fleet: the name of the slice to read
    room: int | None = None  # for how many more slices the fleet has room; None: the job does not cut slices
    batch_size: int | None = None  # freeze, inbox, housekeeping: rows in one commit; None: the job's default


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """The context of one run: everything a job needs.

    - `session` and `account` are set for jobs that ask Twilio.
    - If there is a `time_limit`, `stop` must belong to this run alone, because the limit sets it.
    """

    looks_after: ClassVar[bool] = True  # a run of it means that this installation looks after the account

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
    pause_if_refused: timedelta | None = None  # the schedule's pause after a refusal; None: until the job is due
    mergers: int = 1  # connections that merge the pages of a sweep at once
    make_executor: Callable[[int], Executor] = partial(ThreadPoolExecutor, thread_name_prefix="fetch")
    progress_every: timedelta = PROGRESS_EVERY

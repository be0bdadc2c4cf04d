"""Contexts of runs, as a test needs them: the usual settings, and what the test changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from reconciler.database.store import Store
from reconciler.database.transaction import Cursor
from reconciler.jobs.backfill import BackfillContext, BackfillCounts, Watcher, Window, backfill, name_backfill
from reconciler.jobs.inbox import REPLAY, InboxCounts, ReplayContext, replay, work_inbox
from reconciler.model import JobName
from reconciler.settings import Settings
from reconciler.sync.context import Account, JobContext, Options
from reconciler.twilio.client import Session

SETTINGS = Settings.read({})


def make_context(
    job: str | JobName, store: Store, *, settings: dict[str, Any] | None = None, **more: Any
) -> JobContext:
    """A context of that job; `settings` are those that differ from the usual ones."""
    name = JobName(job) if isinstance(job, str) else job
    return JobContext(job=name, settings=replace(SETTINGS, **settings or {}), store=store, **more)


def cursor_at(job: str, value: object) -> Cursor:
    """A cursor that holds `value`."""
    return Cursor(JobName(job), json.dumps(value))


def run_backfill(
    account_sid: str, window: Window, *, session: Session, store: Store, watcher: Watcher | None = None, **more: Any
) -> BackfillCounts:
    """A backfill of one account."""
    return backfill(
        BackfillContext(
            job=name_backfill(account_sid),
            settings=SETTINGS,
            store=store,
            session=session,
            account=Account(account_sid),
            window=window,
            watcher=watcher or Watcher(),
            **more,
        )
    )


def run_inbox(
    store: Store,
    *,
    clock: Callable[[], datetime],
    grace: timedelta,
    batch: int | None = None,
    **more: Any,
) -> InboxCounts:
    """One run of the inbox job."""
    return work_inbox(
        make_context(
            "inbox", store, settings={"inbox_grace": grace}, clock=clock, options=Options(batch_size=batch), **more
        )
    )


def run_replay(
    store: Store, *, clock: Callable[[], datetime], ids: list[int] | None = None, batch: int | None = None
) -> InboxCounts:
    """A replay of dead letters."""
    return replay(
        ReplayContext(
            job=REPLAY, settings=SETTINGS, store=store, clock=clock, ids=ids, options=Options(batch_size=batch)
        )
    )

"""`reconcile` alone: what to do next, in the situation that we are in."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from datetime import UTC, datetime
from typing import NamedTuple

from reconciler.cli.wiring import read_settings
from reconciler.database import connection as db
from reconciler.database import migrate as runner
from reconciler.errors import ExitCode, ReconcilerError
from reconciler.settings import Settings
from reconciler.status.snapshot import Snapshot, take_snapshot
from reconciler.terminal.printing import complain
from reconciler.wording import counted, rough


class Advice(NamedTuple):
    """What is in the way, and what to do about it."""

    situation: str
    step: str


def advise(_: argparse.Namespace) -> int:
    """Say the first thing that is not as it should be, and what to do; exit 0 only if there is none."""
    try:
        settings = read_settings()
        found = _unset(settings) or _in_database(settings)
    except ReconcilerError as exc:
        found = Advice(str(exc), exc.hint or "`reconcile check` looks at one thing after the other")
    if isinstance(found, Advice):
        complain(found.situation, found.step)
        print("  All commands: reconcile --help", file=sys.stderr)
        return int(ExitCode.USAGE)
    print(found)
    return int(ExitCode.DONE)


def _unset(settings: Settings) -> Advice | None:
    """What must be set first.

    Raises:
        ConfigError: the credentials are not whole.

    """
    if settings.database_url is None and settings.twilio_account_sid is None:
        return Advice(
            "neither a database nor a Twilio account is configured",
            "to see it work with nothing set: `reconcile demo`; then set DATABASE_URL, TWILIO_ACCOUNT_SID and "
            "TWILIO_AUTH_TOKEN",
        )
    if settings.database_url is None:
        return Advice(
            "DATABASE_URL is not set",
            "set it to the Viewer's database; or look at the account without one: `reconcile --since 7d` fills an "
            "embedded PostgreSQL",
        )
    settings.credentials()
    return None


def _in_database(settings: Settings) -> Advice | str:
    """What the database tells; a sentence if all is well.

    Raises:
        ReconcilerError: it does not answer.

    """
    assert settings.database_url
    with closing(db.connect(settings.database_url, purpose="advice")) as conn:
        with db.translated():
            behind = runner.behind(conn)
        if behind:
            return Advice(
                f"{counted(len(behind), 'migration')} not applied yet",
                "back the database up, look at `reconcile migrate --dry-run`, then `reconcile migrate`",
            )
        status = take_snapshot(
            conn, now=datetime.now(UTC), stuck_after=settings.stuck_after, inbox_grace=settings.inbox_grace
        )
    return _next_step(status)


def _next_step(status: Snapshot) -> Advice | str:
    if all(job.last_success_at is None and job.last_error_at is None for job in status.jobs):
        return Advice(
            "no job has run yet", "see what would change: `reconcile --since 7d --dry-run`; then `reconcile --since 7d`"
        )
    if status.leader is None:
        return Advice(
            "no daemon leads: nothing runs by itself", "start it: `systemctl start reconciler`, or `reconcile run`"
        )
    for job in status.jobs:
        if job.last_error_at is not None:
            when = rough(status.at - job.last_error_at)
            return Advice(f"{job.job} failed {when} ago: {job.last_error}", "`reconcile check` looks for the cause")
    if status.inbox.dead_letters:
        return Advice(
            f"{counted(status.inbox.dead_letters, 'dead letter')} could not be read", "see `reconcile inbox list`"
        )
    if status.days.incomplete:
        return Advice(f"{counted(status.days.incomplete, 'account day')} not proven complete", "see `reconcile report`")
    newest = min((job.age_seconds for job in status.jobs if job.age_seconds is not None), default=0.0)
    return f"All is well: a daemon leads, and a job ended {newest:.0f} s ago. `reconcile status` shows more."

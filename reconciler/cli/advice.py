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
from reconciler.status.check_work import troubles
from reconciler.status.snapshot import Snapshot, take_snapshot
from reconciler.terminal.printing import complain
from reconciler.wording import counted, rough


class Advice(NamedTuple):
    """What is in the way, and what to do about it; `more` things wait behind it."""

    situation: str
    step: str
    exit_code: ExitCode = ExitCode.USAGE
    more: int = 0


def advise(_: argparse.Namespace) -> int:
    """Say the first thing that is not as it should be, and what to do; exit 0 only if there is none.

    Something to be done is exit code 1; what keeps us from looking ends as it does elsewhere.
    """
    try:
        settings = read_settings()
        found = _unset(settings) or _in_database(settings)
    except ReconcilerError as exc:
        step = exc.hint or "`reconcile check` looks at one thing after the other"
        found = Advice(str(exc), step, ExitCode(exc.exit_code))
    if isinstance(found, str):
        print(found)
        return int(ExitCode.DONE)
    complain(found.situation, found.step)
    if found.more:
        print(f"  And {counted(found.more, 'other thing')}: `reconcile check` lists all.", file=sys.stderr)
    print("  All commands: reconcile --help", file=sys.stderr)
    return int(found.exit_code)


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
                ExitCode.UNRECONCILED,
            )
        snapshot = take_snapshot(
            conn, now=datetime.now(UTC), stuck_after=settings.stuck_after, inbox_grace=settings.inbox_grace
        )
    return _next_step(snapshot, settings)


def _next_step(snapshot: Snapshot, settings: Settings) -> Advice | str:
    """The first line of `check` on the work that is not OK."""
    if found := troubles(snapshot, settings):
        first = found[0]
        step = first.hint or "`reconcile check` looks at one thing after the other"
        return Advice(f"{first.name}: {first.detail}", step, ExitCode.UNRECONCILED, len(found) - 1)
    newest = min((job.age_seconds for job in snapshot.jobs if job.age_seconds is not None), default=0.0)
    leads = "a daemon leads" if snapshot.leader is None else f"{snapshot.leader.name} leads"
    return f"All is well: {leads}, and a job ended {rough(newest)} ago. `reconcile status` shows more."

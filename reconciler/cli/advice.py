"""`reconcile` without arguments: what to do next in the present situation."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from typing import NamedTuple

from reconciler.cli.wiring import connect, not_applied, read_settings
from reconciler.database import connection as db
from reconciler.database import embedded
from reconciler.database import migrate as runner
from reconciler.errors import ExitCode, ReconcilerError
from reconciler.settings import Settings
from reconciler.status.check_work import troubles
from reconciler.status.snapshot import Snapshot, read_snapshot
from reconciler.terminal.printing import complain
from reconciler.wording import counted, rough


class Advice(NamedTuple):
    """The first problem, the step that solves it, and the number of further problems."""

    situation: str
    step: str
    exit_code: ExitCode = ExitCode.USAGE
    more: int = 0


def advise(_: argparse.Namespace) -> int:
    """Print the first problem and what to do; return exit code 0 only if there is none.

    A problem in the work is exit code 1. An error that prevents the check has its usual exit code.
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
    """Return the advice about missing settings; None if none is missing.

    Raises:
        ConfigError: a part of the credentials is not set.

    """
    if settings.database_url is None and embedded.is_there():
        settings.credentials()
        return None
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
    """Return the advice from the database's state; a sentence if all is well.

    Raises:
        ReconcilerError: the database does not answer.

    """
    with connect(settings, purpose="advice") as conn:
        with db.translated():
            behind = runner.behind(conn)
        if behind:
            return Advice(
                not_applied(len(behind)),
                "back the database up, look at `reconcile migrate --dry-run`, then `reconcile migrate`",
                ExitCode.UNRECONCILED,
            )
        snapshot = read_snapshot(conn, settings, now=datetime.now(UTC))
    return _next_step(snapshot, settings)


def _next_step(snapshot: Snapshot, settings: Settings) -> Advice | str:
    """Return the first line of `check` on the work that is not OK, as advice."""
    if found := troubles(snapshot, settings):
        first = found[0]
        step = first.hint or "`reconcile check` looks at one thing after the other"
        return Advice(f"{first.name}: {first.detail}", step, ExitCode.UNRECONCILED, len(found) - 1)
    newest = min((job.age_seconds for job in snapshot.jobs if job.age_seconds is not None), default=0.0)
    leads = "a daemon leads" if snapshot.leader is None else f"{snapshot.leader.name} leads"
    return f"All is well: {leads}, and a job ended {rough(newest)} ago. `reconcile status` shows more."

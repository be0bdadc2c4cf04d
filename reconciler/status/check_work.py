"""`reconcile check` on the work: the daemon, the jobs, the inbox, the proven days and the open calls; pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from reconciler.errors import ExitCode
from reconciler.settings import Settings
from reconciler.status.check_line import Check, ok, warn
from reconciler.status.snapshot import Snapshot
from reconciler.times import format_duration
from reconciler.wording import byte_size, counted, rough

INBOX_OLD: Final = timedelta(minutes=15)  # beyond the grace: what is due goes within a run or two
INBOX_LARGE: Final = 1_000_000_000  # bytes
PROVEN_WITHIN: Final = timedelta(days=3)  # a day is over, the job is daily, and Twilio may have been away for one


def check_work(snapshot: Snapshot, settings: Settings) -> Iterator[Check]:
    """Who leads, which jobs fail, what the inbox holds and keeps, which days are not complete, what is stuck."""
    if snapshot.leader is None:
        hint = "start one: `systemctl start reconciler`, or `reconcile run`"
        yield warn("daemon", "none leads: jobs run only when somebody starts them", hint)
    else:
        yield ok("daemon", f"one leads (database process {snapshot.leader.pid})")
    yield from _jobs(snapshot)
    yield from _inbox(snapshot, settings)
    yield _days(snapshot)
    if snapshot.calls.stuck:
        detail = f"{snapshot.calls.stuck:,} open for longer than {format_duration(settings.stuck_after)}"
        oldest = snapshot.calls.stuck_calls[0].call_sid
        yield warn("calls", detail, f"the oldest: `reconcile call {oldest}`")
    else:
        yield ok("calls", f"none is open for longer than {format_duration(settings.stuck_after)}")


def _jobs(snapshot: Snapshot) -> Iterator[Check]:
    failing = [job for job in snapshot.jobs if job.last_error_at is not None]
    for job in failing:
        assert job.last_error_at
        when = rough(snapshot.at - job.last_error_at)
        hint = "the next run goes on where it stopped; `reconcile status` shows since when"
        yield warn("jobs", f"{job.job} failed {when} ago: {job.last_error}", hint)
    if not failing:
        yield ok("jobs", "none failed since its last success" if snapshot.jobs else "none has run yet")


def _inbox(snapshot: Snapshot, settings: Settings) -> Iterator[Check]:
    inbox = snapshot.inbox
    oldest = timedelta(seconds=inbox.oldest_due_seconds or 0)
    waiting = f"{counted(inbox.due, 'webhook')} {'waits' if inbox.due == 1 else 'wait'}"
    if oldest > settings.inbox_grace + INBOX_OLD:
        hint = "does the daemon run? `reconcile once inbox` takes them up now"
        yield warn("inbox", f"{waiting}, the oldest for {rough(oldest)}", hint)
    elif not inbox.dead_letters:
        yield ok("inbox", f"{waiting}, no dead letter")
    if inbox.dead_letters:
        detail = counted(inbox.dead_letters, "dead letter")
        yield warn("inbox", detail, "see `reconcile inbox list`", ExitCode.UNRECONCILED)
    size = next((table.bytes for table in snapshot.tables if table.table == "twilio_webhook_inbox"), 0)
    if settings.inbox_retention is not None:
        yield ok("retention", f"processed webhooks go after {format_duration(settings.inbox_retention)}")
    elif size > INBOX_LARGE:
        detail = f"the inbox takes {byte_size(size)}, and nothing ever goes"
        yield warn("retention", detail, "set RECONCILER_INBOX_RETENTION, say to 30d")
    else:
        yield ok("retention", f"processed webhooks stay for good; the inbox takes {byte_size(size)}")


def _days(snapshot: Snapshot) -> Check:
    days = snapshot.days
    if days.incomplete:
        newest = max(days.incomplete_days, key=lambda day: day.day)
        detail = f"{counted(days.incomplete, 'account day')} not proven complete, the newest {newest.day}"
        return warn("days", detail, "see `reconcile report`", ExitCode.UNRECONCILED)
    if days.newest_verified is None:
        return ok("days", "none is proven yet: the daemon does it daily, `reconcile once cold` now")
    if snapshot.at.date() - days.newest_verified > PROVEN_WITHIN:
        detail = f"none later than {days.newest_verified} is proven complete"
        return warn("days", detail, "does the daemon run? `reconcile once cold` proves them now")
    return ok("days", f"{days.verified:,} account days proven complete, up to {days.newest_verified}")

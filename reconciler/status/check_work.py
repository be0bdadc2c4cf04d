"""`reconcile check` on the work: the daemon, the jobs, the inbox, the proven days and the open calls; pure.

Bare `reconcile` and the status page show the same lines, so that all three give the same advice. The first line that is
not OK is what to do first. A refusal comes before a missing daemon, because a daemon that starts again is refused again
(docs/runbook.md, ReconcilerRefused). Each hint ends in a command to type.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from reconciler.errors import ExitCode
from reconciler.settings import Settings
from reconciler.status.causes import Cause, causes
from reconciler.status.check_line import Check, Severity, ok, warn
from reconciler.status.snapshot import Snapshot
from reconciler.times import format_duration
from reconciler.wording import byte_size, counted, rough, short_sids

INBOX_OLD: Final = timedelta(minutes=15)  # past the grace; one or two runs settle a due webhook
INBOX_LARGE: Final = 1_000_000_000  # bytes
PROVEN_WITHIN: Final = timedelta(days=3)  # a day to end, a day for the daily job, and a day for an outage of Twilio
CAUSES_NAMED: Final = 5

_CORRECT_IT: Final = (
    "correct the credentials (of a service: /etc/reconciler/TWILIO_AUTH_TOKEN), then `reconcile check`; "
    "if that says OK: "
)


def check_work(snapshot: Snapshot, settings: Settings, *, is_refused: bool = False) -> Iterator[Check]:
    """Yield one line for each part of the work, the most urgent first.

    `is_refused`: Twilio refused the credentials just now. A daemon that starts would be refused too.
    """
    found = causes(snapshot.jobs)
    refusals = [cause for cause in found if cause.is_refusal_by_twilio or cause.is_refusal_by_database]
    main = settings.twilio_account_sid
    ended = next((cause for cause in refusals if cause.ends_daemon(main) and snapshot.leader is None), None)
    is_refused = is_refused or any(cause.is_refusal_by_twilio and cause.is_of_account(main) for cause in refusals)
    for cause in refusals:
        yield _refusal(snapshot, cause, is_of_main=cause.is_of_account(main), has_ended=cause is ended)
    if snapshot.waiting is not None:
        hint = "nothing is lost, jobs go on by themselves; https://status.twilio.com; since when: `reconcile status`"
        yield warn(snapshot.waiting.service, snapshot.waiting.in_words(snapshot.at), hint)
    if ended is None:
        yield _daemon(snapshot, is_refused=is_refused)
    yield from _jobs(snapshot, [cause for cause in found if cause not in refusals], has_refusals=bool(refusals))
    yield from _inbox(snapshot, settings)
    yield _days(snapshot)
    yield _open_calls(snapshot, settings)


def troubles(snapshot: Snapshot, settings: Settings) -> list[Check]:
    """Return the lines of `check_work` that ask for an action."""
    return [line for line in check_work(snapshot, settings) if line.severity is not Severity.OK]


def _refusal(snapshot: Snapshot, cause: Cause, *, is_of_main: bool, has_ended: bool) -> Check:
    newest = cause.jobs[0].last_error_at
    when = "" if newest is None else f"{rough(snapshot.at - newest)} ago: "
    detail = f"{when}{short_sids(cause.error)} ({short_sids(cause.named())})"
    if has_ended:
        detail += "; no daemon leads: it ended with 77 and stays down on purpose"
    if cause.is_refusal_by_database:
        return warn("refused", detail, "run deploy/grants.sql again; then `reconcile check`")
    if is_of_main:
        verb = "start" if snapshot.leader is None else "reload"
        return warn("refused", detail, f"{_CORRECT_IT}`systemctl {verb} reconciler`")
    hint = "is the subaccount suspended? See Twilio's console; the others go on; `reconcile check` asks again"
    return warn("refused", detail, hint)


def _daemon(snapshot: Snapshot, *, is_refused: bool) -> Check:
    if snapshot.leader is None:
        if is_refused:
            hint = f"{_CORRECT_IT}`systemctl start reconciler`"
        elif all(job.last_success_at is None for job in snapshot.jobs):
            hint = "see what would change: `reconcile --since 7d --dry-run`; then `reconcile run`"
        else:
            hint = "start it: `systemctl start reconciler`, or `reconcile run`"
        return warn("daemon", "none leads: jobs run only when somebody starts them", hint)
    standbys = "" if snapshot.fleet else ", ".join(standby.name for standby in snapshot.standbys)
    return ok("daemon", f"{snapshot.leader.name} leads" + (f"; standing by: {standbys}" if standbys else ""))


def _jobs(snapshot: Snapshot, found: list[Cause], *, has_refusals: bool) -> Iterator[Check]:
    """Yield a line for each cause: one outage is one line, even if it stops many jobs."""
    for cause in found[:CAUSES_NAMED]:
        times = [job.last_error_at for job in cause.jobs if job.last_error_at is not None]
        name = short_sids(cause.named())
        if len(cause.jobs) == 1:
            detail = f"{name} failed {rough(snapshot.at - times[0])} ago: {cause.error}"
        else:
            since = f"since {min(times):%H:%M}"
            detail = f"{len(cause.jobs)} of {len(snapshot.jobs):,} fail {since}: {cause.error} ({name})"
        hint = "nothing is lost, the next run goes on where this one stopped; `reconcile status` shows since when"
        yield warn("jobs", detail, hint)
    if len(found) > CAUSES_NAMED:
        rest = counted(len(found) - CAUSES_NAMED, "other cause")
        yield warn("jobs", f"jobs fail of {rest} too", "`reconcile status --json` holds each job's error")
    if not found and not has_refusals:
        yield ok("jobs", "none failed since its last success" if snapshot.jobs else "none has run yet")


def _inbox(snapshot: Snapshot, settings: Settings) -> Iterator[Check]:
    inbox = snapshot.inbox
    oldest = timedelta(seconds=inbox.oldest_due_seconds or 0)
    waiting = f"{counted(inbox.due, 'webhook')} {'waits' if inbox.due == 1 else 'wait'}"
    if inbox.dead_letters:
        detail = f"{counted(inbox.dead_letters, 'dead letter')} could not be read"
        hint = "their reasons: `reconcile inbox list`; after an upgrade `reconcile inbox replay --all`"
        yield warn("inbox", detail, hint, ExitCode.UNRECONCILED)
    if oldest > settings.inbox_grace + INBOX_OLD:
        hint = "is the Viewer's worker running? `reconcile once inbox` works them off now"
        yield warn("inbox", f"{waiting}, the oldest for {rough(oldest)}", hint)
    elif not inbox.dead_letters:
        yield ok("inbox", f"{waiting}, no dead letter")
    size = next((table.bytes for table in snapshot.tables if table.table == "twilio_webhook_inbox"), 0)
    if settings.inbox_retention is not None:
        yield ok("retention", f"processed webhooks go after {format_duration(settings.inbox_retention)}")
    elif size > INBOX_LARGE:
        detail = f"the inbox takes {byte_size(size)}, and processed webhooks are never deleted"
        yield warn("retention", detail, "set RECONCILER_INBOX_RETENTION, say to 30d")
    else:
        yield ok("retention", f"processed webhooks stay for good; the inbox takes {byte_size(size)}")


def _days(snapshot: Snapshot) -> Check:
    days = snapshot.days
    if days.incomplete:
        newest = max(days.incomplete_days, key=lambda day: day.day).day
        detail = f"{counted(days.incomplete, 'account day')} not proven complete, the newest {newest}"
        again = f"`reconcile --since {newest} --until {newest + timedelta(days=1)}`"
        hint = f"read the day again: {again}; then `reconcile once cold`; all of them: `reconcile report --since 35d`"
        return warn("days", detail, hint, ExitCode.UNRECONCILED)
    if days.newest_verified is None:
        return ok("days", "none is proven yet: the daemon proves them daily, `reconcile once cold` now")
    if snapshot.at.date() - days.newest_verified > PROVEN_WITHIN:
        detail = f"none later than {days.newest_verified} is proven complete"
        return warn("days", detail, "does the daemon run? `reconcile once cold` proves them now")
    return ok("days", f"{counted(days.verified, 'account day')} proven complete, up to {days.newest_verified}")


def _open_calls(snapshot: Snapshot, settings: Settings) -> Check:
    longer = f"open for longer than {format_duration(settings.stuck_after)}"
    if snapshot.calls.stuck:
        oldest = snapshot.calls.stuck_calls[0].call_sid
        verb = "is" if snapshot.calls.stuck == 1 else "are"
        hint = f"what Twilio says of the oldest: `reconcile call {oldest}`; if it is over: `reconcile once hot`"
        return warn("calls", f"{counted(snapshot.calls.stuck, 'call')} {verb} {longer}", hint)
    return ok("calls", f"none is {longer}")

"""`reconcile check` on the database: the server, what the role may do, the schema, and how the work goes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from reconciler.database import connection as db
from reconciler.database import migrate, pooling
from reconciler.database.verify import verify
from reconciler.errors import ExitCode, SchemaError
from reconciler.settings import Settings
from reconciler.status import snapshot as report
from reconciler.status.check_line import Check, compare_clocks, fail, failed, ok, warn
from reconciler.times import format_duration
from reconciler.wording import counted, rough

TESTED: Final = range(14, 19)  # major versions of PostgreSQL
FEW: Final = 3  # migrations that are named one by one
INBOX_OLD: Final = timedelta(minutes=15)  # beyond the grace: what is due goes within a run or two
INBOX_LARGE: Final = 1_000_000_000  # bytes
PROVEN_WITHIN: Final = timedelta(days=3)  # a day is over, the job is daily, and Twilio may have been away for one

_QUERIES = db.load_queries("check")


def check_database(url: str, settings: Settings) -> Iterator[Check]:
    """Look at it all; what cannot be looked at after a failure is left out.

    Raises:
        ReconcilerError: the database does not answer as it should.

    """
    with db.connect(url, purpose="check") as conn:
        yield from check_server(conn)
        found = []
        try:
            for line in check_schema(conn, prunes_inbox=settings.inbox_retention is not None):
                found.append(line)
                yield line
        except SchemaError as exc:  # the ledger does not fit this version's files
            yield failed("schema", exc)
            return
        if any(check.hint for check in found):
            return
        now = datetime.now(UTC)
        status = report.status(conn, now=now, stuck_after=settings.stuck_after, inbox_grace=settings.inbox_grace)
        yield from check_work(status, settings)


def check_server(conn: db.Connection) -> Iterator[Check]:
    """Its version, whether it takes writes, our session's time zone, its clock."""
    version = (conn.info.parameter_status("server_version") or "?").split()[0]
    way = ", through a pooler that keeps sessions together" if pooling.is_pooled(conn) else ""
    said = f"PostgreSQL {version}, database {conn.info.dbname}{way}"
    with db.translated():
        before = datetime.now(UTC)
        row = conn.execute(_QUERIES["session"]).fetchone()
        after = datetime.now(UTC)
    assert row
    is_read_only, zone, servers_zone, clock = row
    if is_read_only:
        hint = "does DATABASE_URL name a standby? else reset default_transaction_read_only"
        yield fail("database", f"{said}, takes no writes", hint, ExitCode.UNAVAILABLE)
    elif conn.info.server_version // 10_000 not in TESTED:
        tested = f"{TESTED[0]} to {TESTED[-1]}"
        yield warn("database", said, f"this version was tested with PostgreSQL {tested}")
    else:
        yield ok("database", said)
    if zone != "UTC":
        yield fail(
            "time zone",
            f"our session runs in {zone}, not UTC",
            "what between us and the server drops SET?",
            ExitCode.CONFIG,
        )
    else:
        beside = "" if servers_zone in ("UTC", "Etc/UTC") else f"; the server's own, {servers_zone}, does not matter"
        yield ok("time zone", f"our session runs in UTC{beside}")
    yield compare_clocks("database clock", "the database's", before - clock, clock - after)


def check_schema(conn: db.Connection, *, prunes_inbox: bool = False) -> Iterator[Check]:
    """The ledger against the files, the catalog against what they make, and what the role may do."""
    if lacking := _lacking(conn, "unreadable"):
        yield lacking
        return
    if behind := migrate.behind(conn):
        names = ", ".join(f"{m.version:03}" for m in behind)
        if len(behind) > FEW and behind[-1].version - behind[0].version + 1 == len(behind):
            names = f"{behind[0].version:03} to {behind[-1].version:03}"
        yield warn("schema", f"migrations not yet applied: {names}", "run `reconcile migrate`")
        migrate.plan(conn)
        yield ok("privileges", "the role may apply the migrations")
        return
    findings = verify(conn)
    for finding in findings:
        detail = f"{finding.subject} {finding.problem}"
        yield fail("schema", detail, finding.hint, ExitCode.CONFIG)
    if not findings:
        yield ok("schema", "the ledger is as the files are, and tables, indexes and triggers as they make them")
    yield _lacking(conn, "lacking_privileges", prunes_inbox=prunes_inbox) or ok(
        "privileges", f"{conn.info.user} may read and write what a run does"
    )


def check_work(status: report.Status, settings: Settings) -> Iterator[Check]:
    """Who leads, which jobs fail, what the inbox holds and keeps, which days are not complete, what is stuck."""
    if status.leader is None:
        hint = "start one: `systemctl start reconciler`, or `reconcile run`"
        yield warn("daemon", "none leads: jobs run only when somebody starts them", hint)
    else:
        yield ok("daemon", f"one leads (database process {status.leader.pid})")
    yield from _jobs(status)
    yield from _inbox(status, settings)
    yield _days(status)
    if status.calls.stuck:
        detail = f"{status.calls.stuck:,} open for longer than {format_duration(settings.stuck_after)}"
        oldest = status.calls.stuck_calls[0].call_sid
        yield warn("calls", detail, f"the oldest: `reconcile call {oldest}`")
    else:
        yield ok("calls", f"none is open for longer than {format_duration(settings.stuck_after)}")


def _jobs(status: report.Status) -> Iterator[Check]:
    failing = [job for job in status.jobs if job.last_error_at is not None]
    for job in failing:
        assert job.last_error_at
        when = rough(status.at - job.last_error_at)
        hint = "the next run goes on where it stopped; `reconcile status` shows since when"
        yield warn("jobs", f"{job.job} failed {when} ago: {job.last_error}", hint)
    if not failing:
        yield ok("jobs", "none failed since its last success" if status.jobs else "none has run yet")


def _inbox(status: report.Status, settings: Settings) -> Iterator[Check]:
    inbox = status.inbox
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
    size = next((table.bytes for table in status.tables if table.table == "twilio_webhook_inbox"), 0)
    if settings.inbox_retention is not None:
        yield ok("retention", f"processed webhooks go after {format_duration(settings.inbox_retention)}")
    elif size > INBOX_LARGE:
        detail = f"the inbox takes {size / 1e9:.1f} GB, and nothing ever goes"
        yield warn("retention", detail, "set RECONCILER_INBOX_RETENTION, say to 30d")
    else:
        yield ok("retention", f"processed webhooks stay for good; the inbox takes {size / 1e6:,.1f} MB")


def _days(status: report.Status) -> Check:
    days = status.days
    if days.incomplete:
        newest = max(days.incomplete_days, key=lambda day: day.day)
        detail = f"{counted(days.incomplete, 'account day')} not proven complete, the newest {newest.day}"
        return warn("days", detail, "see `reconcile report`", ExitCode.UNRECONCILED)
    if days.newest_verified is None:
        return ok("days", "none is proven yet: the daemon does it daily, `reconcile once cold` now")
    if status.at.date() - days.newest_verified > PROVEN_WITHIN:
        detail = f"none later than {days.newest_verified} is proven complete"
        return warn("days", detail, "does the daemon run? `reconcile once cold` proves them now")
    return ok("days", f"{days.verified:,} account days proven complete, up to {days.newest_verified}")


def _lacking(conn: db.Connection, query: str, **params: bool) -> Check | None:
    """What the role may not do, in one line."""
    with db.translated():
        lacking = [what for (what,) in conn.execute(_QUERIES[query], params)]
    if not lacking:
        return None
    detail = f"{conn.info.user} lacks {', '.join(lacking)}"
    hint = f"as the owner of messages: sed 's/TO reconciler/TO {conn.info.user}/' deploy/grants.sql | psql DATABASE"
    return fail("privileges", detail, hint, ExitCode.REFUSED)

"""`reconcile check`: is everything there that a run needs? One line for each thing, and what to do where it is not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from reconciler import db, migrate, pooling
from reconciler.config import Settings
from reconciler.errors import ExitCode, ReconcilerError
from reconciler.pacing import Pacer
from reconciler.source import Listing, Source

# Grace periods are a minute and more; a clock further off than this blurs them.
SKEW_ALLOWED: Final = timedelta(seconds=15)

# A run waits minutes for Twilio to come back; whoever checks wants to know that it is away.
PATIENCE: Final = timedelta(seconds=10)

_NOT_TOLD: Final = datetime.fromtimestamp(0, UTC)  # stands for a missing `Date`


_QUERIES = db.load_queries("check")


class Severity(StrEnum):
    """How a check ended."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


class Check(NamedTuple):
    """One line: what was looked at, how it is, and what to do."""

    name: str
    severity: Severity
    detail: str
    hint: str | None = None
    exit_code: ExitCode = ExitCode.DONE


def check(settings: Settings, *, database_url: Callable[[], str]) -> Iterator[Check]:
    """Look at one thing after the other; each is reported, whatever became of the ones before."""
    yield Check("settings", Severity.OK, "can be read, and do not contradict each other")
    yield from _guarded(
        "database", lambda: _database(database_url(), prunes_inbox=settings.inbox_retention is not None)
    )
    yield from _guarded("Twilio", lambda: _twilio(settings))


def exit_code(checks: list[Check]) -> ExitCode:
    """The code of the first failure."""
    return next((c.exit_code for c in checks if c.severity is Severity.FAIL), ExitCode.DONE)


def _guarded(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from look()
    except ReconcilerError as exc:
        yield Check(name, Severity.FAIL, str(exc), exc.hint, ExitCode(exc.exit_code))


def _database(url: str, *, prunes_inbox: bool = False) -> Iterator[Check]:
    with db.connect(url, purpose="check") as conn:
        version = conn.info.parameter_status("server_version") or "?"
        way = ", through a pooler that keeps sessions together" if pooling.is_pooled(conn) else ""
        yield Check("database", Severity.OK, f"PostgreSQL {version.split()[0]}, database {conn.info.dbname}{way}")
        if lacking := _lacking(conn, "unreadable"):
            yield lacking
            return
        behind = migrate.behind(conn)
        if behind:
            names = ", ".join(f"{m.version:03}" for m in behind)
            yield Check("schema", Severity.WARN, f"migrations not yet applied: {names}", "run `reconcile migrate`")
            migrate.plan(conn)
            yield Check("privileges", Severity.OK, "the role may apply the migrations")
            return
        findings = migrate.verify(conn)
        for finding in findings:
            detail = f"{finding.subject} {finding.problem}"
            yield Check("schema", Severity.FAIL, detail, "run `reconcile verify`", ExitCode.CONFIG)
        if not findings:
            yield Check("schema", Severity.OK, "all migrations applied, and the catalog is as they left it")
        yield _lacking(conn, "lacking_privileges", prunes_inbox=prunes_inbox) or Check(
            "privileges", Severity.OK, f"{conn.info.user} may read and write what a run does"
        )


def _lacking(conn: db.Connection, query: str, **params: bool) -> Check | None:
    """What the role may not do, in one line."""
    lacking = [what for (what,) in conn.execute(_QUERIES[query], params)]
    if not lacking:
        return None
    detail = f"{conn.info.user} lacks {', '.join(lacking)}"
    hint = "run deploy/grants.sql for the user in DATABASE_URL"
    return Check("privileges", Severity.FAIL, detail, hint, ExitCode.REFUSED)


def _twilio(settings: Settings) -> Iterator[Check]:
    credentials = settings.credentials()
    patience = threading.Event()
    timer = threading.Timer(PATIENCE.total_seconds(), patience.set)
    timer.start()
    source = Source(credentials, pacer=Pacer(1), stop=patience, clock=lambda: _NOT_TOLD)
    try:
        before = datetime.now(UTC)
        page = source.page(Listing(credentials.account_sid, page_size=1))
        after = datetime.now(UTC)
    finally:
        timer.cancel()
        source.close()
    yield Check("Twilio", Severity.OK, f"the calls of {credentials.account_sid} can be read")
    if page.observed_at == _NOT_TOLD:
        detail = "cannot be compared with Twilio's: its answer came without a Date header"
        yield Check("clock", Severity.WARN, detail, "find out what on the way to Twilio drops it")
        return
    # `Date` has whole seconds, so the true time lies in [Date, Date + 1 s).
    skew = max(before - page.observed_at - timedelta(seconds=1), page.observed_at - after, timedelta(0))
    if skew > SKEW_ALLOWED:
        detail = f"{skew.total_seconds():.0f} s away from Twilio's"
        yield Check("clock", Severity.WARN, detail, "run an NTP client on this machine")
    else:
        yield Check("clock", Severity.OK, "agrees with Twilio's")

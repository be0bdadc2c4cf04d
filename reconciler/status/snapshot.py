"""What the database knows of the jobs and of completeness, as facts; read only.

Times are aware UTC, ages and lags seconds, sizes bytes. Everything is plain data: `dataclasses.asdict` of a fact is
what `--json` prints, and a contract.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final

from reconciler.database import connection as db
from reconciler.database.locks import LOCK
from reconciler.database.migration_files import load_migrations
from reconciler.jobs.inbox import STUCK_AFTER as INBOX_STUCK_AFTER
from reconciler.model import Gap
from reconciler.times import midnight
from reconciler.twilio.listing import RETENTION

DAYS_SHOWN: Final = timedelta(days=35)  # as far back as the weekly cold sweep proves
STUCK_NAMED: Final = 20

_TABLES: Final = ("messages", "call_events", "twilio_webhook_inbox", "sync_state", "account_days")
# Jobs whose records come by REST: what they found, webhooks had not told. The inbox job merges webhooks.
_FINDERS: Final = ("hot", "warm", "cold", "backfill", "call")
_SOURCE: Final = "reconcile_"

_queries = db.load_queries("report")
_messages = db.load_queries("messages")
_inbox = db.load_queries("inbox")


@dataclass(frozen=True, slots=True)
class JobState:
    """A row of `sync_state`; `last_error` only if it is newer than the last success."""

    job: str
    is_running: bool
    last_success_at: datetime | None
    age_seconds: float | None
    read_until: datetime | None
    lag_seconds: float | None
    last_error_at: datetime | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Leader:
    """The connection of the daemon that runs the jobs; `since` only if the role may see it."""

    pid: int
    application_name: str | None
    since: datetime | None


@dataclass(frozen=True, slots=True)
class StuckCall:
    """A call open for longer than it should be."""

    call_sid: str
    account_sid: str | None
    status: str
    began_at: datetime


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls that something is still expected of; `stuck_calls` are the oldest of those stuck."""

    open: int
    stuck: int
    unfrozen: int
    stuck_calls: list[StuckCall]


@dataclass(frozen=True, slots=True)
class Inbox:
    """Rows of the inbox that are not settled; `due` are those our job would take up now."""

    pending: int
    processing: int
    failed: int
    dead_letters: int
    due: int
    oldest_due_seconds: float | None


@dataclass(frozen=True, slots=True)
class Day:
    """What the cold job found of an account and UTC day."""

    account_sid: str
    day: date
    listed: int
    held: int
    billed: int | None
    differences: dict[str, int]
    is_complete: bool
    verified_at: datetime


@dataclass(frozen=True, slots=True)
class Days:
    """How many account days of the last 35 are proven complete, how many are not, and which."""

    verified: int
    incomplete: int
    newest_verified: date | None
    incomplete_days: list[Day]


@dataclass(frozen=True, slots=True)
class TableSize:
    """A table with its indexes; the rows are the planner's estimate."""

    table: str
    bytes: int
    rows: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """How things stand at `at`."""

    at: datetime
    schema_version: int
    leader: Leader | None
    jobs: list[JobState]
    calls: Calls
    inbox: Inbox
    days: Days
    tables: list[TableSize]


@dataclass(frozen=True, slots=True)
class GapsOfDay:
    """Gaps found on a UTC day, by kind, and by the job that found them."""

    day: date
    kinds: dict[str, int]
    jobs: dict[str, int]


@dataclass(frozen=True, slots=True)
class GapsOfHour:
    """Gaps found in the hour that begins at `hour`, by kind."""

    hour: datetime
    kinds: dict[str, int]


@dataclass(frozen=True, slots=True)
class Report:
    """Completeness and gaps; `calls` we hold of the time, of which webhooks lost something of `calls_with_losses`."""

    since: datetime
    until: datetime
    days: list[Day]
    gaps: list[GapsOfDay]
    calls: int
    calls_with_losses: int
    share_lost: float | None


def status(conn: db.Connection, *, now: datetime, stuck_after: timedelta, inbox_grace: timedelta) -> Status:
    """How the jobs, the calls, the inbox and the proven days stand.

    Raises:
        SchemaError: the database's schema is older than this program's.
        Refused, Unavailable: the database does not answer.

    """
    with db.translated():
        jobs, leader = _jobs(conn, now)
        return Status(
            at=now,
            schema_version=len(load_migrations()) - 1,
            leader=leader,
            jobs=jobs,
            calls=_calls(conn, now, stuck_after),
            inbox=_unsettled(conn, now, inbox_grace),
            days=_proven(_days(conn, (now - DAYS_SHOWN).date())),
            tables=[TableSize(*row) for row in conn.execute(_queries["table_sizes"], {"tables": list(_TABLES)})],
        )


def report(conn: db.Connection, *, since: datetime, now: datetime, webhook_grace: timedelta) -> Report:
    """What is proven of each account and UTC day, and what webhooks lost, from the UTC day of `since` on.

    Raises:
        SchemaError: the database's schema is older than this program's.
        Refused, Unavailable: the database does not answer.

    """
    since = midnight(since)
    window = {"since": since, "now": now}
    with db.translated():
        days = _days(conn, since.date())
        found = _gaps_found(conn, window, "day", webhook_grace)
        (calls,) = conn.execute(_queries["count_calls"], window).fetchone() or (0,)
    lost = min(found[-1][-1], calls)  # the row of all days; some of these calls began before them
    gaps: dict[date, GapsOfDay] = {}
    for found_in, source, kind, count, _ in found[:-1]:
        day = found_in.date()
        of_day = gaps.setdefault(day, GapsOfDay(day, {gap.value: 0 for gap in Gap}, {}))
        job = source.removeprefix(_SOURCE)
        of_day.kinds[kind] += count
        of_day.jobs[job] = of_day.jobs.get(job, 0) + count
    share = round(lost / calls, 6) if calls else None
    return Report(since, now, days, list(gaps.values()), calls, lost, share)


def gaps_by_hour(conn: db.Connection, *, since: datetime, now: datetime, webhook_grace: timedelta) -> list[GapsOfHour]:
    """The gaps found since `since`, by hour; hours without one are left out.

    Raises:
        SchemaError: the database's schema is older than this program's.
        Refused, Unavailable: the database does not answer.

    """
    hours: dict[datetime, GapsOfHour] = {}
    with db.translated():
        for hour, _, kind, count, _ in _gaps_found(conn, {"since": since, "now": now}, "hour", webhook_grace)[:-1]:
            kinds = hours.setdefault(hour, GapsOfHour(hour, {gap.value: 0 for gap in Gap})).kinds
            kinds[kind] += count
    return list(hours.values())


def _gaps_found(
    conn: db.Connection, window: Mapping[str, datetime], unit: str, webhook_grace: timedelta
) -> list[tuple[Any, ...]]:
    sources = [_SOURCE + job for job in _FINDERS]
    params = {**window, "unit": unit, "sources": sources, "webhook_grace": webhook_grace}
    return conn.execute(_queries["gaps_found"], params).fetchall()


def _jobs(conn: db.Connection, now: datetime) -> tuple[list[JobState], Leader | None]:
    rows = conn.execute(_queries["jobs"]).fetchall()
    names = [LOCK, *(row[0] for row in rows)]
    holders = {
        name: Leader(*rest)
        for name, *rest in conn.execute(_queries["lock_holders"], {"names": names, "prefix": f"{db.APPLICATION_NAME}:"})
    }
    jobs = []
    for name, place, success_at, error_at, error in rows:
        read_until = _moment(place)
        has_failed_since = error_at is not None and (success_at is None or error_at > success_at)
        jobs.append(
            JobState(
                name,
                name in holders,
                success_at,
                _seconds_between(success_at, now),
                read_until,
                _seconds_between(read_until, now),
                error_at if has_failed_since else None,
                error if has_failed_since else None,
            )
        )
    return jobs, holders.get(LOCK)


def _calls(conn: db.Connection, now: datetime, stuck_after: timedelta) -> Calls:
    stuck_since = now - stuck_after
    counts = conn.execute(
        _messages["count_open"], {"stuck_since": stuck_since, "kept_since": now - RETENTION}
    ).fetchone()
    named = conn.execute(
        _messages["stuck_calls"], {"stuck_since": stuck_since, "named_since": None, "batch": STUCK_NAMED}
    )
    open_, stuck, unfrozen = counts or (0, 0, 0)
    return Calls(open_, stuck, unfrozen, [StuckCall(*row) for row in named])


def _unsettled(conn: db.Connection, now: datetime, grace: timedelta) -> Inbox:
    counts: dict[str, int] = dict(conn.execute(_inbox["count_unsettled"]).fetchall())
    due = {"now": now, "pending_before": now - grace, "stuck_before": now - grace - INBOX_STUCK_AFTER}
    backlog = conn.execute(_inbox["backlog"], due).fetchone() or (0, None)
    by_status = (counts.get(name, 0) for name in ("pending", "processing", "failed", "dead_letter"))
    return Inbox(*by_status, *backlog)


def _days(conn: db.Connection, since: date) -> list[Day]:
    return [Day(*row) for row in conn.execute(_queries["account_days"], {"since": since})]


def _proven(days: Sequence[Day]) -> Days:
    counts = Counter(day.is_complete for day in days)
    return Days(
        counts[True],
        counts[False],
        max((day.day for day in days if day.is_complete), default=None),
        [day for day in days if not day.is_complete],
    )


def _moment(text: str | None) -> datetime | None:
    """A cursor's moment; None if there is none or it cannot be read, of which the job itself complains."""
    with suppress(ValueError):
        moment = datetime.fromisoformat(text or "")
        return moment if moment.tzinfo else None
    return None


def _seconds_between(then: datetime | None, now: datetime) -> float | None:
    return None if then is None else round((now - then).total_seconds(), 3)

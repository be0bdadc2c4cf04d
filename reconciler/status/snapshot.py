"""A snapshot of the work at one moment, read from the database: jobs, calls, inbox and proven days; read only.

Times are aware UTC, ages and lags are in seconds, sizes in bytes. All classes are plain data: `reconcile status --json`
prints `dataclasses.asdict` of a snapshot, and that shape is a contract.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from reconciler.database import connection as db
from reconciler.database import engine_schema
from reconciler.database.calls import count_open, stuck_calls
from reconciler.database.inbox import backlog, count_unsettled
from reconciler.database.locks import LOCK
from reconciler.database.migration_files import TABLES, load_migrations
from reconciler.settings import Settings
from reconciler.twilio.listing import RETENTION
from reconciler.wording import waiting_for

DAYS_SHOWN: Final = timedelta(days=35)  # as far back as the weekly cold sweep proves
STUCK_NAMED: Final = 20


_NAMED: Final = re.compile(rf"{db.APPLICATION_NAME}: {LOCK} (.+)/(\d+)")

_queries = db.load_queries("report")


@dataclass(frozen=True, slots=True)
class JobState:
    """One job's row of `sync_state`. `last_error` is set only if it is newer than the last success."""

    job: str
    is_running: bool
    last_success_at: datetime | None
    age_seconds: float | None
    read_until: datetime | None
    lag_seconds: float | None
    last_error_at: datetime | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A service that does not answer the leader: the reason, the number of tries, and the time of the next try."""

    service: str
    reason: str
    attempt: int
    next_at: datetime
    since: datetime

    def in_words(self, now: datetime) -> str:
        """Return the wait in words: `waiting for Twilio: HTTP 503, try 8, next in 18 s`."""
        left = (self.next_at - now).total_seconds()
        return waiting_for(self.service, self.reason, attempt=self.attempt, seconds_left=left)


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon, known by its connection.

    `pid` is the server's process; `host` and `process` are the daemon's own. `since` is the time of the connection, if
    the role may see it.
    """

    pid: int
    host: str | None
    process: int | None
    since: datetime | None

    @property
    def name(self) -> str:
        """The daemon's name, such as `db1/4711`."""
        return f"database process {self.pid}" if self.host is None else f"{self.host}/{self.process}"


@dataclass(frozen=True, slots=True)
class StuckCall:
    """A call that has been open for longer than RECONCILER_STUCK_AFTER."""

    call_sid: str
    account_sid: str | None
    status: str
    began_at: datetime


@dataclass(frozen=True, slots=True)
class Calls:
    """The numbers of calls that may still change, and the oldest stuck calls."""

    open: int
    stuck: int
    unfrozen: int
    stuck_calls: list[StuckCall]


@dataclass(frozen=True, slots=True)
class Inbox:
    """The numbers of inbox rows that are not settled. `due` counts the rows that our inbox job would claim now."""

    pending: int
    processing: int
    failed: int
    dead_letters: int
    due: int
    oldest_due_seconds: float | None


@dataclass(frozen=True, slots=True)
class AccountDay:
    """The cold job's proof of one account and UTC day. `recordings_...` are None if the day's were not compared."""

    account_sid: str
    day: date
    listed: int
    held: int
    billed: int | None
    differences: dict[str, int]
    is_complete: bool
    verified_at: datetime
    billed_price: Decimal | None = None
    held_price: Decimal | None = None
    price_unit: str | None = None
    unsettled: int | None = None
    recordings_listed: int | None = None
    recordings_held: int | None = None


@dataclass(frozen=True, slots=True)
class ProvenDays:
    """The account days of the last 35 days: how many are proven complete, and those that are not."""

    verified: int
    incomplete: int
    newest_verified: date | None
    incomplete_days: list[AccountDay]


@dataclass(frozen=True, slots=True)
class RefusedRecordings:
    """An account whose recordings Twilio refuses to these credentials, and when it last did."""

    account_sid: str
    refused_at: datetime


@dataclass(frozen=True, slots=True)
class Recordings:
    """Recordings of the last 35 days, as far as cold compared them: those that Twilio lists, and those that are told.

    A told one has an event. `refused`: the accounts whose recordings cannot be read.
    """

    listed: int
    told: int
    refused: list[RefusedRecordings]


@dataclass(frozen=True, slots=True)
class TableSize:
    """The size of a table with its indexes. `rows` is the planner's estimate."""

    table: str
    bytes: int
    rows: int | None


@dataclass(frozen=True, slots=True)
class Fleet:
    """The daemons that share the work, oldest first, and the queues that hold tasks."""

    workers: list[engine_schema.Worker]
    queues: list[engine_schema.Queue]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the work at the moment `at`."""

    at: datetime
    schema_version: int
    leader: Daemon | None
    standbys: list[Daemon]
    waiting: Waiting | None
    next_runs: dict[str, datetime]
    jobs: list[JobState]
    calls: Calls
    inbox: Inbox
    days: ProvenDays
    recordings: Recordings
    tables: list[TableSize]
    fleet: Fleet | None = None


def read_snapshot(conn: db.Connection, settings: Settings, *, now: datetime) -> Snapshot:
    """Read the state that the settings ask for; see `take_snapshot`."""
    return take_snapshot(
        conn,
        now=now,
        stuck_after=settings.stuck_after,
        inbox_grace=settings.inbox_grace,
        shares=settings.engine != "local",
    )


def take_snapshot(
    conn: db.Connection, *, now: datetime, stuck_after: timedelta, inbox_grace: timedelta, shares: bool = False
) -> Snapshot:
    """Read the state of the jobs, the calls, the inbox and the proven days; with `shares` also that of the fleet.

    Raises:
        SchemaError: the database's schema is older than this program's.
        Refused, Unavailable: the database does not answer.

    """
    with db.translated():
        jobs, leader = _jobs(conn, now)
        waiting, next_runs = _leaders_note(conn, leader)
        days = account_days(conn, since=(now - DAYS_SHOWN).date())
        return Snapshot(
            at=now,
            schema_version=len(load_migrations()) - 1,
            leader=leader,
            standbys=_standbys(conn, leader),
            waiting=waiting,
            next_runs=next_runs,
            jobs=jobs,
            calls=_calls(conn, now, stuck_after),
            inbox=_unsettled(conn, now, inbox_grace),
            days=_proven(days),
            recordings=_recordings(conn, days),
            tables=[TableSize(*row) for row in conn.execute(_queries["table_sizes"], {"tables": list(TABLES)})],
            fleet=_fleet(conn) if shares else None,
        )


def _jobs(conn: db.Connection, now: datetime) -> tuple[list[JobState], Daemon | None]:
    rows = conn.execute(_queries["jobs"]).fetchall()
    names = [LOCK, *(row[0] for row in rows)]
    holders = {
        name: _daemon(*rest)
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


def _daemon(pid: int, application_name: str | None, since: datetime | None) -> Daemon:
    named = _NAMED.fullmatch(application_name or "")
    return Daemon(pid, named[1] if named else None, int(named[2]) if named else None, since)


def _standbys(conn: db.Connection, leader: Daemon | None) -> list[Daemon]:
    rows = conn.execute(_queries["daemons"], {"prefix": f"{db.APPLICATION_NAME}: {LOCK} "})
    return [_daemon(*row) for row in rows if leader is None or row[0] != leader.pid]


def _leaders_note(conn: db.Connection, leader: Daemon | None) -> tuple[Waiting | None, dict[str, datetime]]:
    """Return the leader's note in `sync_state`; nothing if an earlier leader wrote it."""
    row = conn.execute(_queries["leaders_note"], {"job": LOCK}).fetchone()
    note: dict[str, Any] = row[0] if row else {}
    if leader is None or note.get("backend") != leader.pid:
        return None, {}
    waiting = note["waiting"] and Waiting(
        **{**note["waiting"], **{name: datetime.fromisoformat(note["waiting"][name]) for name in ("next_at", "since")}}
    )
    return waiting, {kind: datetime.fromisoformat(at) for kind, at in note["next_runs"].items()}


def _calls(conn: db.Connection, now: datetime, stuck_after: timedelta) -> Calls:
    stuck_since = now - stuck_after
    counts = count_open(conn, stuck_since=stuck_since, kept_since=now - RETENTION, now=now)
    named = stuck_calls(conn, stuck_since=stuck_since, named_since=None, limit=STUCK_NAMED)
    return Calls(counts.open, counts.stuck, counts.unfrozen, [StuckCall(*call) for call in named])


def _unsettled(conn: db.Connection, now: datetime, grace: timedelta) -> Inbox:
    counts = count_unsettled(conn)
    due = backlog(conn, now=now, grace=grace)
    return Inbox(
        pending=counts.get("pending", 0),
        processing=counts.get("processing", 0),
        failed=counts.get("failed", 0),
        dead_letters=counts.get("dead_letter", 0),
        due=due.rows,
        oldest_due_seconds=due.oldest_seconds,
    )


def account_days(conn: db.Connection, *, since: date) -> list[AccountDay]:
    """Return the cold job's proofs from `since` on, by account, then by day."""
    return [AccountDay(*row) for row in conn.execute(_queries["account_days"], {"since": since})]


def _proven(days: Sequence[AccountDay]) -> ProvenDays:
    counts = Counter(day.is_complete for day in days)
    return ProvenDays(
        counts[True],
        counts[False],
        max((day.day for day in days if day.is_complete), default=None),
        [day for day in days if not day.is_complete],
    )


def _recordings(conn: db.Connection, days: Sequence[AccountDay]) -> Recordings:
    refused = [(account_sid, _moment(at)) for account_sid, at in conn.execute(_queries["refused_recordings"])]
    return Recordings(
        sum(day.recordings_listed or 0 for day in days),
        sum(day.recordings_held or 0 for day in days),
        [RefusedRecordings(account_sid, at) for account_sid, at in refused if account_sid and at is not None],
    )


def _fleet(conn: db.Connection) -> Fleet | None:
    """Return the state of the fleet; None if the database has no engine yet."""
    if not engine_schema.is_there(conn):
        return None
    return Fleet(engine_schema.read_workers(conn), engine_schema.read_queues(conn))


def _moment(text: str | None) -> datetime | None:
    """Return the moment in a cursor; None if it has none or is unreadable (the job itself reports that)."""
    with suppress(ValueError):
        moment = datetime.fromisoformat(text or "")
        return moment if moment.tzinfo else None
    return None


def _seconds_between(then: datetime | None, now: datetime) -> float | None:
    return None if then is None else round((now - then).total_seconds(), 3)

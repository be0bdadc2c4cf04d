"""A simulated Twilio, a database, and the jobs that run between them at a time that the test sets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
import structlog

from reconciler.database import connection as db
from reconciler.database.decisions import Decision
from reconciler.database.store import Store
from reconciler.database.transaction import Origin, Rules
from reconciler.jobs.backfill import BackfillCounts, Watcher, Window, name_backfill
from reconciler.jobs.cold import ColdCounts, cold
from reconciler.jobs.freeze import freeze
from reconciler.jobs.hot import hot
from reconciler.jobs.housekeeping import keep_house
from reconciler.jobs.recordings import read_new_recordings
from reconciler.jobs.warm import warm
from reconciler.jobs.webhooks import read_webhooks
from reconciler.model import name_job
from reconciler.settings import Credentials
from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio
from reconciler.simulator.journal import Entry
from reconciler.sync.context import PROGRESS_EVERY, Account, JobContext, Options
from reconciler.sync.counts import Counts
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.concurrency import Pacer
from reconciler.twilio.listing import PAGE_SIZE
from reconciler.twilio.records import read_record
from reconciler.twilio.transport import Transport

from .contexts import make_context, run_backfill
from .equality import differences, records_of
from .names import ACCOUNT, NOW, TOKEN

MINUTE = timedelta(minutes=1)
OVERLAP = timedelta(minutes=10)
FREEZE_AFTER = timedelta(hours=24)
BACKFILL = str(name_backfill(ACCOUNT))


def day(days_ago: float) -> datetime:
    """The midnight so many days before that of NOW; with a fraction, a time of that day."""
    return datetime(2026, 6, 10, tzinfo=UTC) - timedelta(days=days_ago)


@dataclass
class Watched(Watcher):
    """Remembers the reports of a backfill; may act on each page."""

    slices: int = 0
    remaining: int = 0
    pages: int = 0
    on_page: Callable[[], None] = lambda: None
    decisions: list[Decision] = field(default_factory=list)

    def planned(self, slices: int, remaining: int) -> None:
        """Remember the numbers of slices."""
        self.slices, self.remaining = slices, remaining

    def merged(self, summary: BackfillCounts, decisions: Sequence[Decision]) -> None:
        """Count the page."""
        self.pages += 1
        self.decisions += decisions
        self.on_page()


@dataclass
class World:
    """A Twilio, a database, and the jobs between them, all on one clock; `log` has their log events."""

    clock: Clock
    account: SimulatedAccount
    twilio: SimulatedTwilio
    database_url: str
    conn: db.Connection
    log: list[Any] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    on_progress: Callable[[], None] = lambda: None  # called after each commit
    progress_every: timedelta = PROGRESS_EVERY
    watched: Watched = field(default_factory=Watched)
    page_size: int = PAGE_SIZE
    behind: timedelta = timedelta(0)  # our clock, compared with Twilio's

    def hot(self, account_sid: str = ACCOUNT, *, since: datetime | None = None, concurrency: int = 4) -> Counts:
        """One run of the hot job of an account; the journal is that of this run afterwards."""
        with self._asking("hot", account_sid, concurrency, options=Options(since=since)) as context:
            return hot(context)

    def warm(
        self, account_sid: str = ACCOUNT, *, interval: timedelta | None = None, since: datetime | None = None
    ) -> Counts:
        """One run of the warm job of an account, with `interval` a scheduled one; the journal is that of this run."""
        options = Options(since=since, is_scheduled=interval is not None)
        settings = {} if interval is None else {"warm_interval": interval}
        with self._asking("warm", account_sid, options=options, settings=settings) as context:
            return warm(context)

    def cold(
        self, *, deep: bool | None = False, key: tuple[str, str] = (ACCOUNT, TOKEN), concurrency: int = 4
    ) -> ColdCounts:
        """One sweep; the journal is that of this run afterwards."""
        options = Options(deep=deep)
        with self._asking("cold", ACCOUNT, concurrency, key=key, is_bulk=True, options=options) as context:
            return cold(context)

    def recordings(self, account_sid: str = ACCOUNT) -> Counts:
        """One run of the recordings job of an account; the journal is that of this run afterwards."""
        with self._asking("recordings", account_sid, is_bulk=True) as context:
            return read_new_recordings(context)

    def webhooks(self, account_sid: str = ACCOUNT, *, key: tuple[str, str] = (ACCOUNT, TOKEN)) -> Counts:
        """One run of the webhooks job of an account; the journal is that of this run afterwards."""
        with self._asking("webhooks", account_sid, key=key, is_bulk=True) as context:
            return read_webhooks(context)

    def backfill(self, since: str = "7d", *, days: float = 7, concurrency: int = 4, until: datetime | None = None,
                 dry_run: bool = False, read_timeout: float = 30.0, **rules: Any) -> BackfillCounts:  # fmt: skip
        """One `reconcile --since` of the simulated present; the journal goes on."""
        now = self.now()
        window = Window(now - timedelta(days=days), until or now, {"since": since, "until": None})
        transport = Transport(self.twilio.base_url, connections=concurrency, read_timeout=read_timeout)
        with (
            closing(self._client(concurrency, transport=transport, key=(self.account.sid, TOKEN))) as client,
            Store(self.database_url, rules=Rules(**rules)) as store,
        ):
            return run_backfill(
                self.account.sid, window, session=client.session(self.stop), store=store, watcher=self.watched,
                dry_run=dry_run, **self._common(),
            )  # fmt: skip

    def freeze(self, *, scheduled_accounts: tuple[str, ...] | None = (), batch: int = 1000) -> Counts:
        """One run of the freeze job."""
        options = Options(scheduled_accounts=scheduled_accounts, batch_size=batch)
        with Store(self.database_url) as store:
            return freeze(make_context("freeze", store, options=options, **self._common()))

    def keep_house(
        self, retention: timedelta | None = None, *, events: timedelta | None = None, batch: int = 1000
    ) -> Counts:
        """One run of the housekeeping, with a retention of webhooks and one of events."""
        options = Options(batch_size=batch)
        settings = {"inbox_retention": retention, "events_retention": events}
        with Store(self.database_url) as store:
            return keep_house(make_context("housekeeping", store, options=options, settings=settings, **self._common()))

    def now(self) -> datetime:
        """The time on our clock."""
        return self.clock.now() - self.behind

    def hot_after(self, time: timedelta, **changes: Any) -> Counts:
        """One run of the hot job, `time` later."""
        self.clock.advance(time)
        return self.hot(**changes)

    def warm_after(self, time: timedelta, **changes: Any) -> Counts:
        """One run of the warm job, `time` later."""
        self.clock.advance(time)
        return self.warm(**changes)

    def stop_after_commits(self, count: int) -> None:
        """Stop the next run when it has used the database so many times since it read its cursor."""
        left = [count + 2]  # the note of the first look, and the cursor

        def count_down() -> None:
            left[0] -= 1
            if not left[0]:
                self.stop.set()

        self.on_progress = count_down

    def go_on(self) -> None:
        """Nobody stops the next run."""
        self.stop.clear()
        self.on_progress = lambda: None

    def differences(self) -> list[str]:
        """Return the differences between the database and Twilio's present records."""
        return differences(self.conn, records_of(self.account, self.clock.now()))

    def differences_but_prices(self) -> list[str]:
        """Return the differences except prices, which warm fetches later."""
        return [line for line in self.differences() if " price: " not in line]

    def proofs(self) -> dict[datetime, dict[str, Any]]:
        """The rows of account_days by day."""
        rows = self.conn.execute("SELECT to_jsonb(d) FROM account_days AS d ORDER BY day")
        return {row["day"]: row for (row,) in rows.fetchall()}

    def row(self, sid: str) -> dict[str, Any]:
        """A row of messages."""
        found = self.conn.execute("SELECT to_jsonb(m) FROM messages AS m WHERE twilio_sid = %s", (sid,)).fetchone()
        return dict(found[0]) if found else {}

    def events(self, sid: str) -> list[str]:
        """The types of a call's events, in the order they came in."""
        rows = self.conn.execute("SELECT event_type FROM call_events WHERE call_sid = %s ORDER BY id", (sid,))
        return [row[0] for row in rows]

    def said(self, event: str) -> list[dict[str, Any]]:
        """The lines of that event, without what all lines of a run carry."""
        rest = ("event", "log_level")
        return [{k: v for k, v in line.items() if k not in rest} for line in self.log if line["event"] == event]

    def told(self, event: str = "recording.ready") -> list[str]:
        """The SIDs of the recordings that events of that type tell of, each as often as it is told."""
        rows = self.conn.execute(
            "SELECT payload ->> 'recording_sid' FROM call_events WHERE event_type = %s ORDER BY 1", (event,)
        )
        return [row[0] for row in rows]

    def event_count(self) -> int:
        """How many events there are."""
        row = self.conn.execute("SELECT count(*) FROM call_events").fetchone()
        return int(row[0]) if row else 0

    def state(self, job: str = "hot") -> dict[str, Any]:
        """A job's row in sync_state."""
        row = self.conn.execute("SELECT to_jsonb(s) FROM sync_state AS s WHERE job_name = %s", (job,)).fetchone()
        return dict(row[0]) if row else {}

    def cursor(self, job: str = "hot") -> dict[str, Any]:
        """A job's cursor."""
        return dict(self.state(job).get("cursor", {}))

    def set_cursor(self, value: object, job: str = "hot") -> None:
        """Put a job's cursor where it never would be."""
        self.conn.execute(
            "INSERT INTO sync_state (job_name, cursor) VALUES (%s, %s)"
            " ON CONFLICT (job_name) DO UPDATE SET cursor = EXCLUDED.cursor",
            (job, json.dumps(value)),
        )

    def asked(self) -> list[str]:
        """Return the requests of the last run, in order of arrival."""
        return [question(entry) for entry in self.twilio.requests]

    def hours_asked(self) -> set[tuple[str, str]]:
        """Return the windows of the last run's listings that begin and end within a day."""
        found = set()
        for entry in self.twilio.requests:
            params = dict(entry.params)
            window = params.get("StartTime>", ""), params.get("StartTime<", "")
            if not any(moment[11:] in ("", "00:00:00Z", "00:00:01Z") for moment in window):
                found.add(window)
        return found

    def asked_singly(self) -> list[str]:
        """The calls that the last run asked about one by one."""
        paths = [entry.path for entry in self.twilio.requests if "/Calls/" in entry.path]
        return [path.rpartition("/")[2].removesuffix(".json") for path in paths]

    def know(self, sids: Sequence[str] | None = None) -> None:
        """Have the database know these calls (None: all) as Twilio shows them now, as if by the REST API."""
        now = self.clock.now()
        wanted = None if sids is None else set(sids)
        records = [r for r in records_of(self.account, now) if wanted is None or r["sid"] in wanted]
        observations = [read_record(record, observed_at=now) for record in records]
        with Store(self.database_url, rules=Rules(freeze_after=FREEZE_AFTER)) as store:
            store.commit_page(observations, origin=Origin("reconcile_test", "before"), now=now)

    def write_as_viewer(self, sid: str, status: str, *, created_at: datetime | None = None, **columns: Any) -> None:
        """A row as the Viewer's backend writes it: no account, no date_created."""
        values = {
            "twilio_sid": sid, "direction": "outbound-api", "status": status, "from_number": "+12025550100",
            "to_number": "+13125550123", "created_at": (created_at or self.clock.now()).replace(tzinfo=None), **columns,
        }  # fmt: skip
        names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
        self.conn.execute(f"INSERT INTO messages ({names}) VALUES ({marks})".encode(), list(values.values()))

    def _common(self) -> dict[str, Any]:
        return {
            "stop": self.stop, "clock": self.now, "on_progress": self.on_progress,
            "progress_every": self.progress_every,
        }  # fmt: skip

    @contextmanager
    def _asking(
        self,
        kind: str,
        account_sid: str,
        concurrency: int = 4,
        *,
        key: tuple[str, str] = (ACCOUNT, TOKEN),
        is_bulk: bool = False,
        **more: Any,
    ) -> Iterator[JobContext]:
        self.twilio.requests.clear()
        with (
            closing(self._client(concurrency, key=key)) as client,
            Store(self.database_url, rules=Rules(freeze_after=FREEZE_AFTER)) as store,
        ):
            yield make_context(
                name_job(kind, account_sid, main=ACCOUNT),
                store,
                session=client.session(self.stop, is_bulk=is_bulk),
                account=Account(account_sid, owns_unassigned=account_sid == ACCOUNT),
                **more,
                **self._common(),
            )

    def _client(
        self, concurrency: int, *, key: tuple[str, str] = (ACCOUNT, TOKEN), transport: Transport | None = None
    ) -> TwilioClient:
        credentials = Credentials(self.account.sid, *key, base_url=self.twilio.base_url)
        return TwilioClient(
            credentials, pacer=Pacer(concurrency), transport=transport, clock=self.now, page_size=self.page_size
        )


def question(entry: Entry) -> str:
    """Return the question of a request, without the account."""
    query = urlencode(entry.params)
    return entry.path.partition("/Accounts/")[2].partition("/")[2] + (f"?{query}" if query else "")


@pytest.fixture
def world(account: SimulatedAccount, database_url: str, conn: db.Connection) -> Iterator[World]:
    """An account without calls, and nothing in the database; the time is NOW."""
    clock = Clock(NOW)
    with SimulatedTwilio([account], clock=clock) as twilio, structlog.testing.capture_logs() as log:
        yield World(clock, account, twilio, database_url, conn, log)

"""A simulated account behind HTTP, a fresh database, and backfills between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from reconciler import logs
from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.database.transaction import Decision, Rules
from reconciler.jobs.backfill import BackfillCounts, Watcher, Window, name_backfill
from reconciler.settings import Credentials
from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.concurrency import Pacer
from reconciler.twilio.listing import PAGE_SIZE
from reconciler.twilio.transport import Transport
from tests.harness.contexts import run_backfill
from tests.harness.equality import differences, records_of
from tests.harness.names import ACCOUNT, NOW


@dataclass
class Watched(Watcher):
    """Remembers what a backfill told; may act on each page."""

    slices: int = 0
    remaining: int = 0
    pages: int = 0
    on_page: Callable[[], None] = lambda: None
    decisions: list[Decision] = field(default_factory=list)

    def planned(self, slices: int, remaining: int) -> None:
        self.slices, self.remaining = slices, remaining

    def merged(self, summary: BackfillCounts, decisions: Sequence[Decision]) -> None:
        self.pages += 1
        self.decisions += decisions
        self.on_page()


@dataclass
class World:
    """A Twilio, a database, and what runs between them."""

    clock: Clock
    account: SimulatedAccount
    twilio: SimulatedTwilio
    database_url: str
    conn: db.Connection
    watched: Watched = field(default_factory=Watched)
    stop: threading.Event = field(default_factory=threading.Event)
    page_size: int = PAGE_SIZE

    def backfill(self, since: str = "7d", *, days: float = 7, concurrency: int = 4, until: datetime | None = None,
                 dry_run: bool = False, read_timeout: float = 30.0, **rules: Any) -> BackfillCounts:  # fmt: skip
        """One `reconcile --since` of the simulated present."""
        now = self.clock.now()
        account_sid = self.account.sid
        window = Window(now - timedelta(days=days), until or now, {"since": since, "until": None})
        credentials = Credentials(account_sid, account_sid, "token-of-the-account", base_url=self.twilio.base_url)
        transport = Transport(self.twilio.base_url, connections=concurrency, read_timeout=read_timeout)
        client = TwilioClient(
            credentials, pacer=Pacer(concurrency), transport=transport, clock=self.clock.now, page_size=self.page_size
        )
        try:
            with Store(self.database_url, rules=Rules(**rules)) as store:
                return run_backfill(
                    account_sid,
                    window,
                    session=client.session(self.stop),
                    store=store,
                    watcher=self.watched,
                    dry_run=dry_run,
                    stop=self.stop,
                    clock=self.clock.now,
                )
        finally:
            client.close()

    def differences(self) -> list[str]:
        """Return the differences between the database and Twilio's present records."""
        return differences(self.conn, records_of(self.account, self.clock.now()))

    def cursor(self) -> dict[str, Any]:
        """The backfill's row in sync_state."""
        row = self.conn.execute(
            "SELECT to_jsonb(s) FROM sync_state AS s WHERE job_name = %s", (str(name_backfill(ACCOUNT)),)
        ).fetchone()
        return dict(row[0]) if row else {}


@pytest.fixture
def world(account: SimulatedAccount, database_url: str, conn: db.Connection) -> Iterator[World]:
    """An account of 3,000 calls in the week before NOW."""
    account.generate(3_000, NOW - timedelta(days=7), NOW)
    clock = Clock(NOW)
    with SimulatedTwilio([account], clock=clock) as twilio:
        yield World(clock, account, twilio, database_url, conn)


@pytest.fixture(autouse=True)
def only_warnings() -> None:
    """Thousands of gaps a test would drown what failed."""
    logs.configure(form="json", level="warning", pii="masked")

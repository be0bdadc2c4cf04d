"""A simulated account behind HTTP, a fresh database, and the jobs that run between them at a time we set."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

from reconciler import db, pacing
from reconciler.cold import Swept, cold
from reconciler.config import Credentials
from reconciler.freeze import freeze
from reconciler.housekeeping import keep_house
from reconciler.pacing import Pacer
from reconciler.runs import Job, Terms, Totals
from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio
from reconciler.source import Source
from reconciler.store import Store
from reconciler.transaction import Rules
from tests.equality import differences, records_of

NOW = datetime(2026, 6, 10, 12, tzinfo=UTC)
ACCOUNT = "AC" + 32 * "1"
TOKEN = "token-of-the-account"
COLD = Job("cold")


def day(days_ago: float) -> datetime:
    """The midnight so many days before that of NOW; with a fraction, a time of that day."""
    return datetime(2026, 6, 10, tzinfo=UTC) - timedelta(days=days_ago)


@dataclass
class World:
    """A Twilio, a database, and the jobs between them; `log` is what they said."""

    clock: Clock
    account: SimulatedAccount
    twilio: SimulatedTwilio
    database_url: str
    conn: db.Connection
    log: list[Any]
    stop: threading.Event = field(default_factory=threading.Event)

    def cold(
        self,
        *,
        deep: bool | None = False,
        key: tuple[str, str] = (ACCOUNT, TOKEN),
        on_progress: Callable[[], None] = lambda: None,
        concurrency: int = 4,
    ) -> Swept:
        """One sweep of the simulated present."""
        credentials = Credentials(ACCOUNT, *key, base_url=self.twilio.base_url)
        source = Source(credentials, pacer=Pacer(concurrency), clock=self.clock.now).for_run(self.stop, is_bulk=True)
        try:
            with Store(self.database_url, rules=Rules()) as store:
                return cold(
                    ACCOUNT, job=COLD, store=store, source=source, deep=deep,
                    terms=Terms(self.stop, self.clock.now, on_progress=on_progress),
                )  # fmt: skip
        finally:
            source.close()

    def freeze(self, *, batch: int = 1000) -> Totals:
        """One run of the freeze job."""
        with Store(self.database_url) as store:
            return freeze(
                store, terms=Terms(self.stop, self.clock.now), freeze_after=timedelta(hours=24),
                stuck_after=timedelta(hours=24), batch=batch,
            )  # fmt: skip

    def keep_house(self, retention: timedelta | None = None, *, batch: int = 1000, **terms: Any) -> Totals:
        """One run of the housekeeping."""
        with Store(self.database_url) as store:
            return keep_house(
                store, terms=Terms(self.stop, self.clock.now, **terms), inbox_retention=retention, batch=batch
            )

    def differences(self) -> list[str]:
        """What is not as Twilio says now."""
        return differences(self.conn, records_of(self.account, self.clock.now()))

    def proofs(self) -> dict[datetime, dict[str, Any]]:
        """The rows of account_days by day."""
        return {
            row["day"]: row
            for (row,) in self.conn.execute("SELECT to_jsonb(d) FROM account_days AS d ORDER BY day").fetchall()
        }

    def state(self, job: str = COLD) -> dict[str, Any]:
        """A job's row in sync_state."""
        row = self.conn.execute("SELECT to_jsonb(s) FROM sync_state AS s WHERE job_name = %s", (job,)).fetchone()
        return dict(row[0]) if row else {}

    def said(self, event: str) -> list[dict[str, Any]]:
        """The lines of that event, without what all lines of a run carry."""
        rest = ("event", "log_level")
        return [{k: v for k, v in line.items() if k not in rest} for line in self.log if line["event"] == event]


@pytest.fixture
def account() -> SimulatedAccount:
    return SimulatedAccount(ACCOUNT, TOKEN, seed=7)


@pytest.fixture
def world(account: SimulatedAccount, database_url: str, conn: db.Connection) -> Iterator[World]:
    """An account without calls, and nothing in the database."""
    clock = Clock(NOW)
    with SimulatedTwilio([account], clock=clock) as twilio, structlog.testing.capture_logs() as log:
        yield World(clock, account, twilio, database_url, conn, log)


@pytest.fixture
def busy(world: World) -> World:
    """The same with 600 calls of all kinds in the days that the usual sweep reads."""
    world.account.generate(600, day(3), NOW)
    return world


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between repeats a hundred times shorter: what is tested is that there are repeats."""
    monkeypatch.setattr(pacing, "FIRST_WAIT", 0.005)
    monkeypatch.setattr(pacing, "LONGEST_WAIT", 0.05)

"""A simulated account behind HTTP, a fresh database, and the jobs that run between them at a time we set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from reconciler.database import connection as db
from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio
from tests.harness.names import NOW

from .world import World, day


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

"""Bulk work lets hot of the same account go first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from psycopg.conninfo import make_conninfo

from reconciler.database import connection as db
from reconciler.database.locks import is_locked, release_advisory_lock, try_advisory_lock
from reconciler.database.store import Store
from reconciler.model import JobName
from reconciler.sync.right_of_way import LOOKS_EVERY, WAITS_AT_MOST, RightOfWay
from tests.harness.world import World, day


class _Stop(threading.Event):
    """Is never set; a wait for it acts at once."""

    def __init__(self, on_wait: Callable[[float], None]) -> None:
        super().__init__()
        self._on_wait = on_wait

    def wait(self, timeout: float | None = None) -> bool:
        """Act in place of waiting."""
        assert timeout is not None
        self._on_wait(timeout)
        return False


def _refuse_to_wait(_: float) -> None:
    pytest.fail("nobody is to be waited for")


def _count(conn: db.Connection) -> int:
    row = conn.execute("SELECT count(*) FROM messages").fetchone()
    return int(row[0]) if row else 0


def test_bulk_work_merges_no_page_while_hot_is_at_work(world: World, conn: db.Connection) -> None:
    world.account.generate(20, day(3), day(0))
    merged = []

    def end_hot(_: float) -> None:
        merged.append(_count(conn))
        release_advisory_lock(hot, "hot")

    world.stop = _Stop(end_hot)
    with db.connect(world.database_url, purpose="hot") as hot:
        assert try_advisory_lock(hot, "hot")
        world.cold()
    assert merged == [0]
    assert world.differences() == []


def test_hot_of_another_account_is_not_waited_for(world: World) -> None:
    world.account.generate(20, day(3), day(0))
    world.stop = _Stop(_refuse_to_wait)
    with db.connect(world.database_url, purpose="hot") as hot:
        assert try_advisory_lock(hot, f"hot:AC{7:032x}")
        world.cold()
    assert world.differences() == []


def test_hot_does_not_wait_for_itself(world: World) -> None:
    world.hot()
    world.account.generate(20, day(0), world.now() + timedelta(days=5))
    world.clock.advance(timedelta(days=5))  # hot then sweeps the days, as bulk work does
    world.stop = _Stop(_refuse_to_wait)
    world.hot()
    assert world.differences() == []


def test_one_run_of_hot_is_waited_for_a_second_and_the_next_one_again(database_url: str, conn: db.Connection) -> None:
    clock = [0.0]

    def advance(seconds: float) -> None:
        clock[0] += seconds

    def give_way() -> float:
        """How long the job waits."""
        clock[0] += LOOKS_EVERY
        began = clock[0]
        way.give(store)
        return clock[0] - began

    way = RightOfWay(JobName("hot"), _Stop(advance), clock=lambda: clock[0])
    with Store(database_url) as store:
        assert try_advisory_lock(conn, "hot")
        assert give_way() == pytest.approx(WAITS_AT_MOST, abs=2 * LOOKS_EVERY)
        assert give_way() == 0
        release_advisory_lock(conn, "hot")
        assert give_way() == 0
        assert try_advisory_lock(conn, "hot")
        assert give_way() == pytest.approx(WAITS_AT_MOST, abs=2 * LOOKS_EVERY)


def test_a_stop_ends_the_wait_for_hot(database_url: str, conn: db.Connection) -> None:
    stop = threading.Event()
    stop.set()
    assert try_advisory_lock(conn, "hot")
    with Store(database_url) as store:
        RightOfWay(JobName("hot"), stop, clock=lambda: 0.0).give(store)  # on this clock the second never ends


def test_a_lock_of_another_database_is_another_lock(database_url: str, conn: db.Connection) -> None:
    with db.connect(make_conninfo(database_url, dbname="postgres"), purpose="hot") as other:
        assert try_advisory_lock(other, "hot")
        assert is_locked(other, "hot")
        assert not is_locked(conn, "hot")

"""The engine of one daemon, in the process of the test: when it looks for tasks."""

from __future__ import annotations

import os
import threading
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from queue import SimpleQueue

import psycopg
import pytest

from reconciler.database import engine_schema
from reconciler.model import JobName
from reconciler.service import engine_tables
from reconciler.service.backfill_queue import BackfillQueue, SliceTask
from reconciler.service.engine import Engine
from reconciler.service.engine_tables import Identity, Manager
from reconciler.service.queues import bulk_slots
from tests.harness.daemons import eventually

SLICES = [JobName("backfill", None, f"slice{number}") for number in range(30)]


@pytest.fixture
def queue(conn, database_url):
    """The queue of a fleet that nobody asks for tasks again within the test."""
    engine_schema.migrate(conn)
    with closing(BackfillQueue(database_url)) as opened:
        yield opened


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """An engine that found no task would ask again in an hour."""
    monkeypatch.setattr(engine_tables, "ASKED_EVERY", 3600.0)


class Running:
    """An engine at work. Its runs end when they are told to."""

    def __init__(self, url: str, slots: int) -> None:
        self.jobs: SimpleQueue[JobName] = SimpleQueue()  # as they begin
        self.may_end = threading.Event()
        self.engine = Engine(
            lambda: url, Identity("host", os.getpid(), datetime.now(UTC), slots), run=self._run,
            on_missed=lambda *_: None, hot_at=lambda: None,
        )  # fmt: skip

    def _run(self, job: JobName, *_: object) -> None:
        self.jobs.put(job)
        assert self.may_end.wait(60)


@contextmanager
def engine(url: str, slots: int = 4):
    """An engine at work."""
    running = Running(url, slots)
    running.engine.start()
    try:
        yield running
    finally:
        running.may_end.set()
        assert running.engine.stop(within=30)


def until_idle(conn, workers: int) -> None:
    """Return when so many engines have found no task."""
    eventually(
        lambda: (
            conn.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'reconciler: engine%'"
                " AND state = 'idle' AND query LIKE '%fetch_job%'"
            ).fetchone()
            == (workers,)
        )
    )


def put(queue: BackfillQueue, *jobs: JobName) -> None:
    """Put slices into the queue."""
    queue.put(SliceTask(job, "slice") for job in jobs)


def test_bulk_work_is_taken_at_once(queue, conn, database_url):
    """All that wait take it, without asking every second; a run that ends makes room for the next one."""
    with engine(database_url) as one, engine(database_url) as other:
        until_idle(conn, 2)
        put(queue, *SLICES)
        for running in (one, other):
            eventually(lambda running=running: running.jobs.qsize() == bulk_slots(4))  # type: ignore[misc]
        for running in (one, other):
            running.may_end.set()
        eventually(lambda: one.jobs.qsize() + other.jobs.qsize() == len(SLICES))
        eventually(lambda: not queue.known(SLICES))


def test_work_is_notified_on_the_connection_after_a_broken_one(queue, conn, database_url):
    """The server ended the connection of an idle engine."""
    with engine(database_url) as running:
        until_idle(conn, 1)
        ended = listening(conn)
        conn.execute("SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s::int[]) AS p (pid)", (ended,))
        eventually(lambda: listening(conn) and listening(conn) != ended)
        put(queue, SLICES[0])
        assert eventually(lambda: not running.jobs.empty() and running.jobs.get()) == SLICES[0]


def test_a_connection_that_breaks_while_the_engine_ends_leaves_no_socket(queue, conn, database_url, monkeypatch):
    """The pool connects again after the last look for tasks, and listens again."""
    ended: SimpleQueue[Manager] = SimpleQueue()
    end = Manager.end

    def note_end(own: Manager) -> None:
        end(own)
        ended.put(own)

    monkeypatch.setattr(Manager, "end", note_end)
    with engine(database_url) as running:
        put(queue, SLICES[0])
        assert running.jobs.get(timeout=60) == SLICES[0]
        before = listening(conn)
        running.engine.stop(within=0)
        own = ended.get(timeout=60)
        conn.execute("SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s::int[]) AS p (pid)", (before,))
        running.may_end.set()
        assert running.engine.stop(within=30)
        assert own.listener._socket is None


def test_a_slice_that_waits_already_is_put_once(queue):
    """The others of the same call are put beside it."""
    put(queue, SLICES[0])
    put(queue, *SLICES[:3])
    assert queue.known(SLICES) == {str(job) for job in SLICES[:3]}
    queue.withdraw("backfill:")
    assert queue.known(SLICES) == set()


def listening(conn: psycopg.Connection) -> list[int]:
    """The server processes of engines that have executed LISTEN: their last statement is that one or a later one."""
    return [
        pid
        for (pid,) in conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'reconciler: engine%' AND state = 'idle'"
            " AND query ~ 'LISTEN|fetch_job|procrastinate_workers'"
        )
    ]

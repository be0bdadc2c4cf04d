"""The fleet's queue, as the command that fills it sees it (`reconcile --since 400d --fleet`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from procrastinate import SyncPsycopgConnector, exceptions
from procrastinate.jobs import Job
from procrastinate.manager import JobManager

from reconciler.database import connection as db
from reconciler.database.engine_schema import read_workers
from reconciler.errors import ReconcilerError
from reconciler.model import JobName
from reconciler.service.engine_tables import make_task
from reconciler.service.queues import bulk_slots

_queries = db.load_queries("engine")


class SliceTask(NamedTuple):
    """The task of a worker: the job that reads a slice, and the slice's name."""

    job: JobName
    slice: str
    room: int = 0  # for how many more slices the fleet has room
    is_urgent: bool = False  # before other slices


class BackfillQueue:
    """The queue, on one connection, which is opened again if it broke.

    Raises, from every method:
        Unavailable: the database is away.
        Refused: the role lacks a privilege.

    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._conn: db.Connection | None = None
        self._manager = JobManager(SyncPsycopgConnector())

    def close(self) -> None:
        """Close the connection."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def capacity(self) -> int:
        """Return how many slices the workers that give signs of life read at once."""
        with self._use() as conn:
            workers = [worker for worker in read_workers(conn) if worker.is_alive]
        return sum(bulk_slots(worker.slots) for worker in workers if worker.slots is not None)

    def put(self, tasks: Iterable[SliceTask]) -> None:
        """Put tasks into the queue; one that waits there already stays alone."""
        wanted = [_make_task(task) for task in tasks]
        if not wanted:
            return
        with self._use() as conn:
            try:
                self._defer(conn, wanted)
            except exceptions.AlreadyEnqueued:
                for task in wanted:
                    with suppress(exceptions.AlreadyEnqueued):
                        self._defer(conn, [task])

    def known(self, jobs: Iterable[JobName]) -> set[str]:
        """Return which of these jobs have a task, waiting or at work."""
        with self._use() as conn:
            rows = conn.execute(_queries["pending"], {"names": [str(job) for job in jobs]})
            return {row[0] for row in rows}

    def withdraw(self, prefix: str) -> None:
        """Take the tasks back that no worker has taken yet, of jobs whose names begin so."""
        with self._use() as conn, conn.transaction():
            conn.execute(_queries["enter_schema"])  # for procrastinate's triggers
            conn.execute(_queries["withdraw"], {"prefix": prefix})

    def _defer(self, conn: db.Connection, tasks: list[Job]) -> None:
        with conn.transaction():
            conn.execute(_queries["enter_schema"])
            self._manager.batch_defer_jobs(tasks, connection=conn)

    @contextmanager
    def _use(self) -> Iterator[db.Connection]:
        """Lend the connection; after an error it is closed."""
        if self._conn is None:
            self._conn = db.connect(self._url, purpose="fleet")
        try:
            with db.translated():
                try:
                    yield self._conn
                except exceptions.ConnectorException as exc:
                    raise exc.__cause__ or exc from exc
        except ReconcilerError:
            self.close()
            raise


def _make_task(task: SliceTask) -> Job:
    made = make_task(task.job, slice=task.slice, room=task.room)
    return made.evolve(priority=made.priority + task.is_urgent)

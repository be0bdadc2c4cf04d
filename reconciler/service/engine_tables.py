"""The engine's tables, as this daemon's worker uses them: on one connection, which may break at any time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, NamedTuple

import procrastinate
import psycopg
from procrastinate import exceptions, jobs, manager

from reconciler.database import connection as db
from reconciler.database.engine_schema import SCHEMA
from reconciler.model import JobName
from reconciler.service.queue_listener import QueueListener
from reconciler.service.queues import PLACES, USUAL, Pending, open_queues

# The pool logs each failed attempt in its own words; we log them as `engine.retried`.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)

ASKED_EVERY: Final = 1.0  # seconds between two looks for tasks
TASK: Final = "run"
_SESSION: Final = {
    "search_path": f"{SCHEMA}, pg_temp", "timezone": "UTC", "statement_timeout": "10s", "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "10s",
}  # fmt: skip

_queries = db.load_queries("engine")


class Identity(NamedTuple):
    """This daemon, as the others see it."""

    host: str
    process: int
    since: datetime
    slots: int


class Manager(manager.JobManager):
    """procrastinate's way to its tables, which outlives a database that is away and takes from open queues only."""

    def __init__(
        self, connector: procrastinate.PsycopgConnector, identity: Identity, hot_at: Callable[[], datetime | None]
    ) -> None:
        super().__init__(connector)
        self._identity = identity
        self._hot_at = hot_at
        self._queues: dict[int, str] = {}  # of the tasks at work here, by id
        self._woken = asyncio.Event()
        self.listener = QueueListener(self.wake)
        self._has_ended = False
        self.is_stopped: Callable[[], bool] = lambda: False
        self.leads: Callable[[], bool] = lambda: False
        self.is_answered = True

    async def fetch_job(self, queues: Iterable[str] | None, worker_id: int) -> jobs.Job | None:  # noqa: ARG002
        """Take the next task from the queues that have a free slot here; wait until there is one.

        procrastinate's own wait would end neither for a freed slot nor for a new task.

        None: the database is away, or this manager has ended.
        """
        while not self._has_ended and not self.is_stopped():
            leads, slots = self.leads(), self._identity.slots
            allowed = open_queues(list(self._queues.values()), slots, leads=leads)
            self._woken.clear()
            try:
                job = await super().fetch_job(allowed, worker_id)
            except exceptions.ConnectorException:
                self.is_answered = False
                return None
            self.is_answered = True
            if job is not None:
                assert job.id is not None
                self._queues[job.id] = job.queue
                return job
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), ASKED_EVERY)
        return None

    def wake(self) -> None:
        """Look for tasks now: there may be new ones, or a queue that was closed."""
        self._woken.set()

    def end(self) -> None:
        """Look for tasks no more."""
        self._has_ended = True
        self.wake()

    async def register_worker(self) -> int:
        """Register this daemon's worker, with its name."""
        worker_id = await super().register_worker()
        await self._sign_of_life(worker_id)
        return worker_id

    async def update_heartbeat(self, worker_id: int) -> None:
        """Give a sign of life. A worker that was silent for too long, and forgotten, is known again."""
        try:
            await self._sign_of_life(worker_id)
            self.is_answered = True
        except exceptions.ConnectorException:
            self.is_answered = False

    async def unregister_worker(self, worker_id: int) -> None:
        """Forget this daemon's worker; the leader does it if the database is away."""
        with suppress(exceptions.ConnectorException):
            await super().unregister_worker(worker_id)

    async def finish_job(self, job: jobs.Job, status: jobs.Status, delete_job: bool) -> None:
        """Delete a task that was worked."""
        self._free(job)
        finish = super().finish_job
        await self._until_written(lambda: finish(job, status, delete_job))

    async def retry_job(
        self,
        job: jobs.Job,
        retry_at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        lock: str | None = None,
    ) -> None:
        """Put a task back into the queue. If another task of its job waits there, that one stands for both."""
        self._free(job)
        retry = super().retry_job
        try:
            await self._until_written(lambda: retry(job, retry_at, priority, queue, lock))
        except exceptions.UniqueViolation:
            await self.finish_job(job, jobs.Status.ABORTED, delete_job=True)

    async def defer_all(self, names: Iterable[JobName]) -> None:
        """Defer a task for each job; a job whose task another leader deferred just now is left out."""
        wanted = [make_task(name) for name in names]
        if not wanted:
            return
        try:
            await self.batch_defer_jobs_async(wanted)
        except exceptions.AlreadyEnqueued:
            for task in wanted:
                with suppress(exceptions.AlreadyEnqueued):
                    await self.defer_job_async(task)

    async def pending(self, names: list[str]) -> dict[str, Pending]:
        """Return which of these jobs have a task."""
        rows = await self.connector.execute_query_all_async(query=_queries["pending"], names=names)
        found: dict[str, Pending] = {}
        for row in rows:  # of two tasks of a job the one at work counts
            if row["name"] not in found or row["is_at_work"]:
                found[row["name"]] = Pending(row["is_at_work"], row["is_put_off"])
        return found

    async def forget_put_off(self) -> list[JobName]:
        """Delete the tasks that were put off; return their jobs."""
        rows = await self.connector.execute_query_all_async(query=_queries["forget_put_off"])
        return [JobName.parse(row["name"]) for row in rows]

    async def last_hot(self) -> datetime | None:
        """Return hot's last success in any daemon."""
        row = await self.connector.execute_query_one_async(query=_queries["last_hot"])
        at = row["at"]
        assert at is None or isinstance(at, datetime)
        return at

    async def _sign_of_life(self, worker_id: int) -> None:
        params = {**self._identity._asdict(), "worker_id": worker_id, "hot_at": self._hot_at()}
        await self.connector.execute_query_async(query=_queries["sign_of_life"], **params)

    async def _until_written(self, write: Callable[[], Awaitable[None]]) -> None:
        """Call `write` until the database has answered; given up when the daemon stops."""
        while True:
            try:
                await write()
                return
            except exceptions.UniqueViolation:
                raise
            except exceptions.ConnectorException as exc:
                if isinstance(exc.__cause__, psycopg.errors.RaiseException):
                    return  # the task was put back, and another worker has worked it by now
                self.is_answered = False
                if self.is_stopped():
                    return  # the leader will notice that this worker is gone
            await asyncio.sleep(ASKED_EVERY)

    def _free(self, job: jobs.Job) -> None:
        if job.id is not None:
            self._queues.pop(job.id, None)
        self.wake()


def make_task(job: JobName, **more: Any) -> jobs.Job:
    """Return the task of one run of a job."""
    queue, priority = PLACES.get(job.kind, (USUAL, 0))
    return jobs.Job(
        queue=queue, priority=priority, lock=None, queueing_lock=str(job), task_name=TASK,
        task_kwargs={"job": str(job), **more},
    )  # fmt: skip


def make_app(
    url: str,
    identity: Identity,
    hot_at: Callable[[], datetime | None],
    *,
    make_manager: Callable[
        [procrastinate.PsycopgConnector, Identity, Callable[[], datetime | None]], Manager
    ] = Manager,
) -> procrastinate.App:
    """Return procrastinate's app on one connection of ours. Close its manager's `listener` after the app."""

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        # Set after connecting: poolers refuse start-up options.
        await db.apply_settings(conn, _SESSION)
        await own.listener.listen(conn)

    connector = procrastinate.PsycopgConnector(
        conninfo=url, min_size=1, max_size=1, timeout=15.0, reconnect_timeout=5.0, configure=configure,
        kwargs={"autocommit": True, **db.login_parameters(f"engine {identity.host}/{identity.process}")},
    )  # fmt: skip
    app = procrastinate.App(connector=connector)
    app.job_manager = own = make_manager(connector, identity, hot_at)
    return app

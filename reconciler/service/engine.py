"""The engine: this daemon as a worker of the fleet, on procrastinate (https://procrastinate.readthedocs.io).

Design rules
- A task names one run of one job. Its `queueing_lock` is the job's name: of each job at most one task waits.
- procrastinate's `lock` is not used. To fetch a task, PostgreSQL would compare it with every other one (2,000 tasks
  with a lock: 60 s instead of 7 s). The leader defers no job that is at work, and the job's own lock keeps two runs
  apart.
- Tasks are coroutines that hand the run to threads of ours: procrastinate's own threads are few.
- Finished tasks are deleted at once. The outcome of a run stands in `sync_state`.
- A worker that is silent for SILENT_AFTER is gone. The leader then puts its tasks back into the queue. A run may
  therefore happen twice, which does no harm: its lock, cursor and outcome are those of every run.
- The database may be away for any time. No error of it ends the worker: it goes on when the database is back.
- New tasks are found by asking every second. For bulk work the daemon listens as well (`service/queue_listener.py`):
  otherwise it would idle up to a second whenever the queue was empty.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final

import procrastinate
import psycopg
from procrastinate import exceptions, jobs
from procrastinate.retry import BaseRetryStrategy, RetryDecision

from reconciler import metrics
from reconciler.database import connection as db
from reconciler.database.engine_schema import SILENT_AFTER
from reconciler.logs import get_logger
from reconciler.model import JobName
from reconciler.service.engine_tables import ASKED_EVERY, TASK, Identity, Manager, make_app
from reconciler.service.queues import BULK, HOT, LEADER, USUAL, decide_deferrals

HEARTBEAT_EVERY: Final = 5.0  # seconds
DEFERRED_EVERY: Final = 0.5  # seconds; the jobs that became due meanwhile are deferred together
LOOKED_AFTER_EVERY: Final = 3.0  # seconds between two looks of the leader for the tasks of silent workers
CONNECTED_AGAIN_AFTER: Final = 2.0  # seconds

_AT_ONCE: Final = datetime(2000, 1, 1, tzinfo=UTC)  # whatever the clocks of machine and server say

log = get_logger(__name__)

_queries = db.load_queries("engine")


class Again(Exception):
    """The task's run is to happen again, after `delay`."""

    def __init__(self, delay: timedelta) -> None:
        super().__init__("to be run again")
        self.delay = delay


class Engine:
    """A worker of the fleet, in a thread of its own. While it `leads`, it also defers what is due."""

    def __init__(
        self,
        url: Callable[[], str],
        identity: Identity,
        *,
        run: Callable[[JobName, Mapping[str, Any], int], None],
        on_missed: Callable[[JobName, int, str], None],
        hot_at: Callable[[], datetime | None],
    ) -> None:
        self._url = url
        self._identity = identity
        self._run = run
        self._on_missed = on_missed
        self._hot_at = hot_at
        self._due: SimpleQueue[JobName] = SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._pool = ThreadPoolExecutor(identity.slots, thread_name_prefix="run")
        self._asked_to_end_pauses = threading.Event()
        self.leads = False
        self.is_connected = False
        self.hot_seen_at: datetime | None = None  # hot's last success in any daemon, while this one leads

    def start(self) -> None:
        """Begin to work; harmless if it has begun."""
        if not self._thread.ident and not self._stop.is_set():
            self._thread.start()

    def defer(self, job: JobName) -> None:
        """Defer a run of a job that is due."""
        self._due.put(job)

    def end_pauses(self) -> None:
        """Forget the tasks that were put off after failures: their jobs run when they are due."""
        self._asked_to_end_pauses.set()

    def stop(self, *, within: float) -> bool:
        """Take no more tasks, and wait for the runs under way; return whether all has ended."""
        self._stop.set()
        if self._thread.ident:
            self._thread.join(within)
        self._pool.shutdown(wait=False)
        return not self._thread.is_alive()

    # In the engine's thread

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                asyncio.run(self._work_with(self._url()))
            except (exceptions.ProcrastinateException, psycopg.Error, OSError) as exc:
                reason = exc.__cause__ if isinstance(exc.__cause__, psycopg.Error) else exc
                log.warning("engine.retried", error=_said(reason), wait_seconds=CONNECTED_AGAIN_AFTER)
            except Exception as exc:
                log.exception("program.failed", kind=type(exc).__name__)
            self.is_connected = False
            self._stop.wait(CONNECTED_AGAIN_AFTER)

    async def _work_with(self, url: str) -> None:
        """Work until told to stop, or until the database's URL has changed."""
        app = make_app(url, self._identity, self._hot_at)
        own = app.job_manager
        assert isinstance(own, Manager)
        app.task(name=TASK, retry=_RunAgain(), pass_context=True)(self._perform)
        # The listener closes last: until the app is closed, its pool may connect again, and listens again.
        with closing(own.listener):
            async with app.open_async():
                own.is_stopped, own.leads = self._stop.is_set, lambda: self.leads
                worker = asyncio.create_task(
                    app.run_worker_async(
                        queues=[HOT, USUAL, BULK, LEADER], concurrency=self._identity.slots, wait=True,
                        fetch_job_polling_interval=ASKED_EVERY, abort_job_polling_interval=3600.0, listen_notify=False,
                        delete_jobs="always", install_signal_handlers=False, update_heartbeat_interval=HEARTBEAT_EVERY,
                        stalled_worker_timeout=SILENT_AFTER,
                    )
                )  # fmt: skip
                self.is_connected = True
                try:
                    await self._attend(own, worker, url)
                finally:
                    own.end()
                    worker.cancel()
                    with suppress(asyncio.CancelledError):
                        await worker

    async def _attend(self, own: Manager, worker: asyncio.Task[None], url: str) -> None:
        """Do the leader's part until the worker ends."""
        looked_after_at = 0.0
        while not self._stop.is_set() and not worker.done() and self._url() == url:
            await asyncio.sleep(DEFERRED_EVERY)
            self.is_connected = own.is_answered
            if not self.leads:
                continue
            try:
                await self._defer_due(own)
                if time.monotonic() - looked_after_at >= LOOKED_AFTER_EVERY:
                    looked_after_at = time.monotonic()
                    await _take_back(own)
                    self.hot_seen_at = await own.last_hot()
                    await _show_queue(own)
            except exceptions.ConnectorException:
                continue  # the lead is checked elsewhere, and due runs stay in the queue of this process
        if worker.done() and not worker.cancelled() and (error := worker.exception()) is not None:
            raise error

    async def _defer_due(self, own: Manager) -> None:
        if self._asked_to_end_pauses.is_set():
            self._asked_to_end_pauses.clear()
            for job in await own.forget_put_off():
                self._due.put(job)
        due = dict.fromkeys(_drain(self._due))
        if not due:
            return
        try:
            found = decide_deferrals(due, await own.pending([str(job) for job in due]))
            await own.defer_all(found.wanted)
        except exceptions.ConnectorException:
            for job in due:
                self._due.put(job)
            raise
        for job, why in found.missed:
            self._on_missed(job, 1, why)

    async def _perform(self, context: procrastinate.JobContext, /, **task: Any) -> None:
        """Run the job that a task names, in a thread of ours. Its failures are handled there."""
        job, attempts = JobName.parse(str(task.pop("job"))), context.job.attempts
        await asyncio.get_running_loop().run_in_executor(self._pool, partial(self._run, job, task, attempts))


class _RunAgain(BaseRetryStrategy):
    """Puts a task that raised Again back into the queue. No other exception is expected: the run handles them."""

    def get_retry_decision(self, *, exception: BaseException, job: jobs.Job) -> RetryDecision | None:  # noqa: ARG002
        if not isinstance(exception, Again):
            return None
        at = datetime.now(UTC) + exception.delay if exception.delay else _AT_ONCE
        return RetryDecision(retry_at=at)


async def _take_back(own: Manager) -> None:
    """Put the tasks of silent workers back into the queue, and forget these workers."""
    for job in await own.get_stalled_jobs(seconds_since_heartbeat=SILENT_AFTER):
        log.warning("task.reclaimed", task=job.queueing_lock, worker=job.worker_id)
        await own.retry_job(job, retry_at=_AT_ONCE)
    await own.prune_stalled_workers(SILENT_AFTER)


async def _show_queue(own: Manager) -> None:
    """Set the metrics of the fleet."""
    workers = await own.connector.execute_query_all_async(query=_queries["workers"])
    metrics.workers.set(len(workers))
    queues = {row["queue"]: row for row in await own.connector.execute_query_all_async(query=_queries["queue"])}
    for queue in (HOT, USUAL, BULK, LEADER):
        row = queues.get(queue, {})
        metrics.tasks_due.labels(queue).set(row.get("due", 0))
        metrics.tasks_oldest.labels(queue).set(row.get("oldest_seconds", 0))
        metrics.tasks_at_work.labels(queue).set(row.get("at_work", 0))


def _drain(queue: SimpleQueue[JobName]) -> Iterable[JobName]:
    with suppress(Empty):
        while True:
            yield queue.get_nowait()


def _said(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

"""A fleet within this process: machines that share an engine's queue, and that die.

All parts of a fleet are real. The leader defers, and takes back the tasks of silent workers. The workers' loops fetch
tasks and write their ends. Only the waits are shorter. A machine that dies writes nothing any more, neither the end of
its tasks nor a sign of life. Another machine then stands in its place.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from unittest.mock import patch

import procrastinate
from procrastinate import jobs
from procrastinate.manager import JobManager

from reconciler.database import connection as db
from reconciler.database import engine_schema
from reconciler.jobs.registry import KINDS, SLICE, Kind
from reconciler.model import JobName
from reconciler.service import engine, engine_tables, fleet, fleet_backfill
from reconciler.service.engine_tables import Identity, Manager
from reconciler.service.fleet import Fleet
from reconciler.service.runner import Setup
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts

PATIENCE = 60.0  # seconds for a task to be worked off

Work = Callable[[JobContext], Counts]
Run = Callable[[Work, JobContext, int], Counts]  # with the depth of the machine that has taken the task

_SILENCE = """
UPDATE reconciler_engine.procrastinate_workers SET last_heartbeat = last_heartbeat - interval '1 hour'
WHERE id = {}
"""
_AT_WORK = "(SELECT worker_id FROM reconciler_engine.procrastinate_jobs WHERE queueing_lock = %s AND status = 'doing')"


class Killed(BaseException):
    """The process died here, as far as one that lives on can say so."""


class Machine:
    """One daemon's part in the fleet. It takes tasks while it is the turn of its `depth`."""

    def __init__(self, machines: Machines, name: str, depth: int, slots: int) -> None:
        self.name = name
        self.depth = depth
        self.is_dead = False
        self.is_asking = False
        self.worker_id: int | None = None
        settings = replace(machines.setup().settings, workers=slots)
        kinds = {name: self._mortal(machines, kind) for name, kind in KINDS.items()}
        with (
            patch.object(fleet, "host_name", lambda: name),
            patch.object(fleet, "SLICE", self._mortal(machines, SLICE)),
        ):
            self.fleet = Fleet(
                lambda: replace(machines.setup(), settings=settings), on_fatal=lambda _: None, kinds=kinds
            )
        machines.by_name[name] = self
        self.fleet.work()

    def _mortal(self, machines: Machines, kind: Kind) -> Kind:
        return replace(kind, work=partial(self._run, machines, kind.work))

    def _run(self, machines: Machines, work: Work, context: JobContext) -> Counts:
        try:
            with machines.running(context.job):
                return machines.run(work, context, self.depth)
        except Killed:
            context.store.close()
            self.is_dead = True
            machines.replace_dead(self)
            raise


class Machines:
    """The fleet on one database. The machines of a `depth` have the turn, and the first of them leads.

    `setup` and `run` may change: the current ones count when a task is worked.
    """

    def __init__(self, url: str, setup: Setup, *, slots: int) -> None:
        self._url = url
        self._slots = slots
        self._here: dict[int, list[Machine]] = {}
        self._changed = threading.Condition()
        self._deferred: Counter[str] = Counter()
        self._running: Counter[JobName] = Counter()
        self._replacements: list[threading.Thread] = []
        self._number = 0
        self._conn = db.connect(url, purpose="test")
        self._setup = setup
        self.by_name: dict[str, Machine] = {}
        self.depth = 0
        self.run: Run = lambda work, context, _: work(context)

    @classmethod
    @contextmanager
    def on(cls, url: str, setup: Setup, *, at: Iterable[int], slots: int) -> Iterator[Machines]:
        """Open a fleet with a machine at each of these depths."""
        with closing(db.connect(url, purpose="test")) as conn:
            engine_schema.migrate(conn)
        with hurried(), ExitStack() as stack:
            machines = cls(url, setup, slots=slots)
            stack.callback(machines.close)
            stack.enter_context(patch.object(engine, "make_app", machines._make_app))
            for depth in at:
                machines._build(depth)
            yield machines

    def setup(self) -> Setup:
        """Return the current setup."""
        return self._setup

    def use(self, setup: Setup, run: Run) -> None:
        """Let all runs from now on use these."""
        self.await_replacements()
        self._setup, self.run = setup, run

    def perform(self, job: JobName) -> None:
        """Have the leader defer a job, and wait until no task of it is left, and no run that has begun since then.

        If the job is at work, another worker gets its task too: as if the first were silent.
        """
        self.await_replacements()
        name, running = str(job), self._running[job]
        is_at_work = bool(self._ask("SELECT true WHERE EXISTS " + _AT_WORK, name))
        if not is_at_work:
            before = self._deferred[name]
            self._here[self.depth][0].fleet._start_due(job)
            self._wait(lambda: self._deferred[name] > before, f"{name} was not deferred")
        first = self._ask(_AT_WORK, name) if is_at_work else None
        self._wait(
            lambda: self._is_over(name, silent=first) and self._running[job] <= running, f"{name} was not worked off"
        )

    @contextmanager
    def deeper(self) -> Iterator[None]:
        """Give the turn to the machines of the next depth."""
        self._turn_to(self.depth + 1)
        try:
            yield
        finally:
            self._turn_to(self.depth - 1)

    @contextmanager
    def running(self, job: JobName) -> Iterator[None]:
        """Count a run of the job for as long as it lasts."""
        with self._changed:
            self._running[job] += 1
        try:
            yield
        finally:
            with self._changed:
                self._running[job] -= 1
                self._changed.notify_all()

    def replace_dead(self, machine: Machine) -> None:
        """Put another machine in the place of one that died; its worker is silent at once."""
        replacement = threading.Thread(target=self._replace, args=[machine], daemon=True)
        self._replacements.append(replacement)
        replacement.start()

    def await_replacements(self) -> None:
        """Return when another machine stands in the place of each that died."""
        while self._replacements:
            self._replacements.pop().join(PATIENCE)

    def note_deferred(self, names: Iterable[str]) -> None:
        """Take note of tasks that the leader has put into the queue."""
        with self._changed:
            self._deferred.update(names)
            self._changed.notify_all()

    def note_change(self) -> None:
        """Let those that wait look again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Stop all machines."""
        self.await_replacements()
        for machine in [machine for machines in self._here.values() for machine in machines]:
            machine.fleet.stop(within=PATIENCE)
        self._conn.close()

    def _build(self, depth: int) -> None:
        self._number += 1
        machine = Machine(self, f"machine{self._number}", depth, self._slots)
        self._here.setdefault(depth, []).append(machine)
        self._turn_to(self.depth)

    def lets_ask(self, machine: Machine) -> bool:
        """Whether the machine has the turn; it then asks the queue for a task."""
        with self._changed:
            machine.is_asking = not machine.is_dead and machine.depth == self.depth
            return machine.is_asking

    def _turn_to(self, depth: int) -> None:
        with self._changed:
            self.depth = depth
        others = [machine for each in self._here if each != depth for machine in self._here[each]]
        self._wait(lambda: not any(machine.is_asking for machine in others), "a machine goes on asking")
        for each, machines in self._here.items():
            for number, machine in enumerate(machines):
                machine.fleet._engine.leads = each == depth and number == 0

    def _replace(self, machine: Machine) -> None:
        machine.fleet.stop(within=PATIENCE)
        with closing(db.connect(self._url, purpose="test")) as conn:
            conn.execute(_SILENCE.format("%s").encode(), [machine.worker_id])
        self._here[machine.depth].remove(machine)
        self._build(machine.depth)

    def _is_over(self, name: str, *, silent: int | None) -> bool:
        """Whether no task of the job is left that waits for nothing but a worker; those put off are forgotten."""
        if silent is not None:  # it may give a sign of life before the leader looks
            self._conn.execute(_SILENCE.format(_AT_WORK + " AND id = %s").encode(), [name, silent])
        self._conn.execute(
            "DELETE FROM reconciler_engine.procrastinate_jobs"
            " WHERE queueing_lock = %s AND status = 'todo' AND scheduled_at > clock_timestamp()",
            [name],
        )
        return not self._ask(
            "SELECT true WHERE EXISTS (SELECT FROM reconciler_engine.procrastinate_jobs WHERE queueing_lock = %s)", name
        )

    def _wait(self, look: Callable[[], bool], otherwise: str) -> None:
        until = time.monotonic() + PATIENCE
        with self._changed:
            while not look():
                if time.monotonic() > until:
                    raise AssertionError(otherwise)
                self._changed.wait(0.1)

    def _ask(self, query: str, name: str) -> Any:
        row = self._conn.execute(query.encode(), [name]).fetchone()
        return row[0] if row else None

    def _make_app(self, url: str, identity: Identity, hot_at: Callable[[], datetime | None]) -> procrastinate.App:
        make_manager = partial(_Manager, machines=self, machine=self.by_name[identity.host])
        return engine_tables.make_app(url, identity, hot_at, make_manager=make_manager)


class _Gate(JobManager):
    """Lets a machine ask for a task only if it has the turn."""

    _machines: Machines
    _machine: Machine

    async def fetch_job(self, queues: Iterable[str] | None, worker_id: int) -> jobs.Job | None:
        if not self._machines.lets_ask(self._machine):
            return None
        try:
            return await super().fetch_job(queues, worker_id)
        finally:
            self._machine.is_asking = False
            self._machines.note_change()


class _Manager(Manager, _Gate):
    """A machine's way to the queue, which ends with its death."""

    def __init__(self, connector: Any, identity: Identity, hot_at: Any, machines: Machines, machine: Machine) -> None:
        super().__init__(connector, identity, hot_at)
        self._machines = machines
        self._machine = machine

    async def register_worker(self) -> int:
        self._machine.worker_id = await super().register_worker()
        return self._machine.worker_id

    async def update_heartbeat(self, worker_id: int) -> None:
        if not self._machine.is_dead:
            await super().update_heartbeat(worker_id)

    async def unregister_worker(self, worker_id: int) -> None:
        if not self._machine.is_dead:
            await super().unregister_worker(worker_id)

    async def finish_job(self, job: jobs.Job, status: jobs.Status, delete_job: bool) -> None:
        if not self._machine.is_dead:
            await super().finish_job(job, status, delete_job)
            self._machines.note_change()

    async def retry_job(self, job: jobs.Job, *args: Any, **options: Any) -> None:
        if not self._machine.is_dead:
            await super().retry_job(job, *args, **options)
            self._machines.note_change()

    async def defer_all(self, names: Iterable[JobName]) -> None:
        wanted = list(names)
        await super().defer_all(wanted)
        self._machines.note_deferred(map(str, wanted))


@contextmanager
def hurried() -> Iterator[None]:
    """Waits of the engine that are a hundred times shorter. A run whose job is held is tried again at once."""
    shorter: dict[Any, dict[str, Any]] = {
        engine: {"HEARTBEAT_EVERY": 0.1, "DEFERRED_EVERY": 0.005, "LOOKED_AFTER_EVERY": 0.03, "ASKED_EVERY": 0.01},
        engine_tables: {"ASKED_EVERY": 0.01},
        fleet: {"HELD_FOR": timedelta(0)},
        fleet_backfill: {"_LOOKED_EVERY": 0.01, "_COUNTED_EVERY": 0.0},
    }
    said = logging.getLogger("procrastinate")
    level = said.level
    said.setLevel(logging.CRITICAL)
    try:
        with ExitStack() as stack:
            for module, values in shorter.items():
                stack.enter_context(patch.multiple(module, **values))
            yield
    finally:
        said.setLevel(level)

"""Histories of an account, drawn by chance: `python -m tests.faults.history [--histories 10000] [--seed 0]`.

A history consists of the lives of calls, the fate of their webhooks on the road, and steps. In a step
- time passes;
- a job runs to its end, is stopped, or dies between two of its commits;
- another job runs, or the Viewer writes, while a job is at work;
- Twilio corrects or deletes a call.

A history is data: played again, it ends the same way. One that breaks a promise is made smaller until nothing can be
left out. seeds.txt keeps the seeds that failed, and the tests try them again. promises.py has the promises.

The clock is simulated and the pages are fetched in the thread that merges them; everything else is real.
With `--engine procrastinate` each job is a task of a fleet (machines.py). Another machine takes up a run that was
stopped or killed. If a job begins while it is at work, two workers have its task. Uses the server named by
TEST_DATABASE_URL, or an embedded one.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from pprint import pformat
from typing import Any, NoReturn

import structlog
from psycopg import sql

from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.database.transaction import Rules
from reconciler.errors import JobHeld
from reconciler.jobs.backfill import Watcher, Window
from reconciler.jobs.registry import KINDS
from reconciler.model import JobName
from reconciler.service.backfill_queue import BackfillQueue
from reconciler.service.fleet_backfill import FLEET, backfill_by_fleet
from reconciler.service.runner import Setup
from reconciler.settings import Credentials
from reconciler.simulator import Clock, Fault, SimulatedAccount, SimulatedTwilio, Switches, viewer
from reconciler.simulator.webhooks import Delivery, Webhook
from reconciler.sync.context import Account, JobContext, Options
from reconciler.sync.counts import Counts, Outcome
from reconciler.sync.fetch import Inline
from reconciler.twilio.accounts import Accounts
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.concurrency import Pacer
from reconciler.twilio.server_clock import ServerClock
from tests.bench.servers import database
from tests.faults.lives import ACCOUNTS, SPAN, START, History, Step, deliveries, draw
from tests.faults.machines import Killed, Machines, Work
from tests.faults.promises import Broken, Watch
from tests.harness.contexts import SETTINGS, make_context, run_backfill
from tests.harness.names import TOKEN

SEEDS = Path(__file__).with_name("seeds.txt")
OWNER = "AC" + 32 * "0"
PAGE_SIZE = 3  # calls, at most: so that a handful of calls have pages
MERGERS = 3  # connections of a backfill
SHRINKING_FOR = 60.0  # seconds

# Neither PostgreSQL nor the writer reports a trigger that returns NULL.
SILENCE = """
CREATE FUNCTION a_silence() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER a_silence BEFORE INSERT OR UPDATE ON messages
FOR EACH ROW WHEN (NEW.twilio_sid = '{}') EXECUTE FUNCTION a_silence()
"""


@dataclass
class Ground:
    """A Twilio and a database, for one history after another."""

    url: str
    conn: db.Connection
    twilio: SimulatedTwilio
    owner: SimulatedAccount
    numbers: Iterator[str]
    rules: Rules = field(default_factory=Rules)
    ran: Counter[str] = field(default_factory=Counter)
    machines: Machines | None = None  # that work the jobs; None: this process alone

    @classmethod
    @contextmanager
    def on(cls, url: str, *, by_fleet: bool = False) -> Iterator[Ground]:
        """Open it."""
        owner = SimulatedAccount(OWNER, TOKEN)
        with (
            SimulatedTwilio([owner], clock=Clock(START), switches=Switches(largest_page=PAGE_SIZE)) as twilio,
            closing(db.connect(url, purpose="test")) as conn,
        ):
            # The data need not survive a crash of the machine.
            conn.execute(
                sql.SQL("ALTER DATABASE {} SET synchronous_commit TO off").format(sql.Identifier(conn.info.dbname))
            )
            ground = cls(url, conn, twilio, owner, iter(ACCOUNTS))
            if not by_fleet:
                yield ground
                return
            # The second machine works while a run of the first is under way. Each reads one slice at a time.
            with Machines.on(url, ground.setup(OWNER), at=(0, 1), slots=3) as ground.machines:
                yield ground

    def setup(self, account_sid: str, clock: Callable[[], datetime] | None = None) -> Setup:
        """Return the setup of a process that works for this account."""
        credentials = Credentials(account_sid, account_sid, TOKEN, base_url=self.twilio.base_url)
        client = TwilioClient(credentials, pacer=Pacer(3), clock=clock or self.twilio.clock.now)
        return Setup(SETTINGS, self.url, client, Accounts(account_sid, (account_sid,)))

    def live(self, history: History) -> Broken | None:
        """Let it happen; returns the promise that was broken, if one was."""
        with self.conn.transaction():
            self.conn.execute("SET LOCAL session_replication_role = replica")
            for table in ("messages", "call_events", "twilio_webhook_inbox", "sync_state", "account_days"):
                self.conn.execute(f"DELETE FROM {table}".encode())
        self.twilio.clock.set(START)
        self.twilio.requests.clear()
        account = self.owner.add_subaccount(next(self.numbers), TOKEN)
        try:
            with structlog.testing.capture_logs(), ExitStack() as stack:
                Play(self, account, history, stack).live()
        except Broken as broken:
            return broken
        finally:
            del self.owner.subaccounts[account.sid]
        return None


class Play:
    """One history while it happens."""

    def __init__(self, ground: Ground, account: SimulatedAccount, history: History, stack: ExitStack) -> None:
        self.clock = ground.twilio.clock
        self.account = account
        self._ground = ground
        self._conn = ground.conn
        self._history = history
        self._stack = stack
        self._stores: list[Store] = []
        self._ahead = timedelta(0)  # our clock, compared with Twilio's
        self._arriving = deliveries(account, history.lives)
        self.watch = Watch(ground.conn, account, self.clock, SETTINGS, is_alone=history.is_alone)
        self._under_way: list[_Attempt] = []
        setup = ground.setup(account.sid, self._our_time)
        self._client = setup.client
        stack.callback(self._client.close)
        if ground.machines is not None:
            ground.machines.use(setup, self._run_task)

    def live(self) -> None:
        """All steps, then quiet: two hours, and the day in which deadlines pass.

        Raises:
            Broken: a promise was not kept.

        """
        for step in self._history.steps:
            self.do(step)
        self._wait((START + SPAN + timedelta(hours=2) - self.clock.now()) / timedelta(seconds=1))
        for kind in ("inbox", "hot", "warm"):
            self.do(Step(kind))
        self._wait(25 * 3600)
        for kind in ("inbox", "hot", "warm", "freeze", "cold"):
            self.do(Step(kind, twice=self._history.seed % 4 == 0))
        self.watch.check_equal()
        self.watch.check_recordings()
        self.watch.check_settled()

    def do(self, step: Step) -> None:
        """Do one step, and check the promises that hold after each."""
        self._ground.ran[step.kind] += 1
        match step.kind:
            case "wait":
                self._wait(step.seconds)
            case "viewer":
                viewer.work(self._conn, step.habits, now=self.clock.now())
                # Where the Viewer, or the database for it, took the time from the machine's clock.
                self._conn.execute(
                    "UPDATE messages SET created_at = least(created_at, %(now)s AT TIME ZONE 'UTC'),"
                    " finalized_at = least(finalized_at, %(now)s)"
                    " WHERE created_at > %(now)s AT TIME ZONE 'UTC' OR finalized_at > %(now)s",
                    {"now": self.clock.now()},
                )
            case "fail":
                self._conn.execute(
                    "UPDATE twilio_webhook_inbox SET processing_status = 'failed', retry_count = retry_count + 1,"
                    " error = 'the worker fell over' WHERE processing_status IN ('pending', 'processing')"
                )
            case "correct":
                self._correct(step)
            case "delete":
                if step.sid in self.watch.ever:
                    self.account.delete(step.sid, self.clock.now())
            case "unrecord":
                at = self.clock.now()
                made = self.account.recordings_of(step.sid) if step.sid in self.watch.ever else []
                for recording in made:
                    if recording.ready <= at.timestamp() and recording.sid not in self.account.deleted_recordings:
                        self.account.delete_recording(recording.sid, at)
            case _:
                self._work(step)
        self.watch.look(step)

    def meanwhile(self, step: Step, steps: Iterable[Step]) -> None:
        """Do other steps while the job of `step` is at work."""
        self.watch.look(step)
        machines = self._ground.machines
        with nullcontext() if machines is None else machines.deeper():
            for other in steps:
                self.do(other)

    def _our_time(self) -> datetime:
        return self.clock.now() + self._ahead

    def _wait(self, seconds: float) -> None:
        now = self.clock.advance(timedelta(seconds=seconds))
        self._client.server_clock = ServerClock(self._our_time)  # the machine's ticks know nothing of simulated time
        here = [delivery for delivery in self._arriving if delivery.received_at <= now]
        del self._arriving[: len(here)]
        viewer.receive(self._conn, here)

    def _correct(self, step: Step) -> None:
        call: Any = self.account.find(step.sid)
        record = self.account.record(step.sid, self.clock.now())
        if (
            record is None
            or record["status"] != call.status
            or record["start_time"] is None
            or step.status == call.status
        ):
            return
        self.account.change(step.sid, status=step.status)
        self.watch.corrected[step.sid] = self.clock.now()
        if step.tells and not call.is_trunking:  # a trunk sends no webhook
            said = {
                "AccountSid": call.account_sid, "CallSid": step.sid, "CallStatus": step.status, "From": call.from_,
                "To": call.to, "Direction": call.direction, "Timestamp": f"{self.clock.now():%a, %d %b %Y %T +0000}",
            }  # fmt: skip
            webhook = Webhook("status-callback", self.clock.now(), said)
            viewer.receive(self._conn, [Delivery(self.clock.now(), webhook)])

    def _work(self, step: Step) -> None:
        """Run a job. The steps that happen meanwhile begin after a given number of its commits."""
        began = self.clock.now()
        self.watch.hinder(step)
        try:
            with self._in_the_way(step):
                totals = self._run(step)
        except Killed:
            pass
        except JobHeld:
            self._ground.ran["held"] += 1
        except Broken:
            raise
        except Exception as exc:
            raise Broken(f"{step.kind} raised {type(exc).__name__}", str(exc)) from exc
        else:
            self._ground.ran["stopped"] += totals.outcome is Outcome.INTERRUPTED
            if totals.problem is not None and not step.hindered and not step.is_misled:
                raise Broken(f"{step.kind} had a problem", totals.problem)
            if totals.outcome is not Outcome.INTERRUPTED and not step.during and not step.is_misled:
                self.watch.check_promise(step, began)
                # Other machines go on with a backfill while this job is at work.
                if step.twice and (self._ground.machines is None or not self._under_way):
                    before = self.watch.versions()
                    self._run(replace(step, cut=None, dies=False))
                    self.watch.check_unwritten(step, before)

    @contextmanager
    def _in_the_way(self, step: Step) -> Iterator[None]:
        """Set the clock, hold the locks and create the triggers of the step, for as long as it lasts."""
        with ExitStack() as stack:
            if step.ahead:
                self._ahead = timedelta(hours=step.ahead)
                stack.callback(setattr, self, "_ahead", timedelta(0))
                self._ground.ran["ahead"] += 1
            if step.finds_nothing:
                self._ground.twilio.faults.always(Fault.nothing_found())
                stack.callback(self._ground.twilio.faults.clear)
                self._ground.ran["nothing found"] += 1
            if step.locked:
                other = stack.enter_context(closing(db.connect(self._ground.url, purpose="test")))
                stack.enter_context(other.transaction(force_rollback=True))
                row = other.execute("SELECT FROM messages WHERE twilio_sid = %s FOR UPDATE", (step.locked,)).fetchone()
                self._ground.ran["locked"] += row is not None
            if step.silenced:
                self._conn.execute(SILENCE.format(step.silenced).encode())
                stack.callback(self._conn.execute, "DROP FUNCTION a_silence CASCADE")
                self._ground.ran["silenced"] += 1
            yield

    def _run(self, step: Step) -> Counts:
        attempt = _Attempt(step, self)
        self._under_way.append(attempt)
        try:
            return self._run_alone(attempt) if self._ground.machines is None else self._run_by_fleet(attempt)
        finally:
            self._under_way.pop()

    def _run_alone(self, attempt: _Attempt) -> Counts:
        step, depth = attempt.step, len(self._under_way)
        if len(self._stores) < depth:
            self._stores.append(self._stack.enter_context(Store(self._ground.url, rules=self._ground.rules)))
        store, stop = self._stores[depth - 1], threading.Event()
        session = self._client.session(stop, is_bulk=step.kind in ("cold", "backfill", "recordings"))
        common = attempt.common(stop)
        try:
            if step.kind == "backfill":
                return run_backfill(
                    self.account.sid, self._window(step), session=session, store=store, mergers=MERGERS, **common
                )  # fmt: skip
            asks_twilio = KINDS[step.kind].asks_twilio
            context = make_context(
                step.kind,
                store,
                session=session if asks_twilio else None,
                account=Account(self.account.sid) if asks_twilio else None,
                **common,
            )
            return KINDS[step.kind].work(context)
        except Killed:
            store.close()
            raise

    def _run_by_fleet(self, attempt: _Attempt) -> Counts:
        """Have the fleet run the job; return the counts of its last run."""
        machines = self._ground.machines
        assert machines is not None
        job = JobName(attempt.step.kind)
        if attempt.step.kind != "backfill":
            machines.perform(job)
            return attempt.result()
        rules, url = self._ground.rules, self._ground.url
        with Store(url, rules=rules) as store, closing(BackfillQueue(url)) as queue:
            context = make_context(FLEET, store, clock=self._our_time)
            counts = backfill_by_fleet(context, [self.account.sid], self._window(attempt.step), queue, Watcher())
        if attempt.ended:
            attempt.result()
        return counts

    def _run_task(self, work: Work, context: JobContext, depth: int) -> Counts:
        """Run the task that a machine of the fleet has taken."""
        attempt = next(each for each in reversed(self._under_way) if each.step.kind == context.job.kind)
        if depth != attempt.depth:  # a slice that is read while another step happens
            return work(replace(context, **attempt.simulated))
        return attempt.run(work, context)

    def _window(self, step: Step) -> Window:
        now = self._our_time()
        return Window(now - timedelta(seconds=step.seconds), now, {"since": str(step.seconds), "until": None})


class _Attempt:
    """A job that is to be run, and how its runs ended: in a fleet it may have several."""

    def __init__(self, step: Step, play: Play) -> None:
        self.step = step
        self.depth = len(play._under_way)
        self.simulated: dict[str, Any] = {"clock": play._our_time, "make_executor": lambda _: Inline()}
        self.ended: list[Counts | BaseException] = []
        self._play = play
        self._commits = 0
        self._one_at_a_time = threading.Lock()  # a backfill merges in several threads

    def common(self, stop: threading.Event, on_progress: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Return the parts of a run's context that the history decides."""

        def progress() -> None:
            on_progress()
            with self._one_at_a_time:
                self._commit(stop)

        options = Options(deep=False, is_scheduled=self.step.is_scheduled)
        return {**self.simulated, "stop": stop, "on_progress": progress, "options": options}

    def run(self, work: Work, context: JobContext) -> Counts:
        """Run a worker's task. A run that dies later than its last commit dies before its task is deleted."""
        common = self.common(context.stop, context.on_progress)
        options = replace(common["options"], slice=context.options.slice)
        try:
            counts = work(replace(context, **{**common, "options": options}))
            if self.step.dies and self.step.cut is not None and self._commits < self.step.cut:
                self._commits = self.step.cut
                self._die()
        except BaseException as exc:
            self.ended.append(exc)
            raise
        self._play._ground.ran["stopped"] += counts.outcome is Outcome.INTERRUPTED
        self.ended.append(counts)
        return counts

    def result(self) -> Counts:
        """Return the counts of the last run, or raise its error; that of a broken promise in any case."""
        for end in self.ended:
            if isinstance(end, Broken):
                raise end
        last = self.ended[-1]
        if isinstance(last, BaseException):
            raise last
        return last

    def _commit(self, stop: threading.Event) -> None:
        self._commits += 1
        for after, steps in self.step.during:
            if after == self._commits:
                self._play.meanwhile(self.step, steps)
        if self._commits == self.step.cut:
            if self.step.dies:
                self._die()
            stop.set()

    def _die(self) -> NoReturn:
        self._play._ground.ran["killed"] += 1
        raise Killed


def shrink(ground: Ground, history: History, broken: Broken) -> History:
    """Leave out lives and steps for as long as the same promise is broken."""
    until = time.monotonic() + SHRINKING_FOR

    def still_breaks(smaller: History) -> bool:
        found = ground.live(smaller)
        return found is not None and found.promise == broken.promise

    is_smaller = True
    while is_smaller and time.monotonic() < until:
        is_smaller = False
        for smaller in history.smaller():
            if time.monotonic() > until:
                break
            if still_breaks(smaller):
                history, is_smaller = smaller, True
                break
    return history


def known_seeds() -> list[int]:
    """Seeds that failed at some time."""
    lines = SEEDS.read_text().splitlines() if SEEDS.exists() else []
    return [int(line.split()[0]) for line in lines if line and not line.startswith("#")]


def keep_seed(seed: int, broken: Broken) -> None:
    """Have the tests try this seed from now on."""
    if seed not in known_seeds():
        with SEEDS.open("a") as file:
            file.write(f"{seed}  # {broken.promise}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--engine", choices=("local", "procrastinate"), default="local", help="as RECONCILER_ENGINE")
    parser.add_argument("--keep", action="store_true", help="write seeds that fail to seeds.txt")
    args = parser.parse_args()
    began, failed = time.monotonic(), Counter[str]()
    with database() as url, Ground.on(url, by_fleet=args.engine == "procrastinate") as ground:
        for number, seed in enumerate(range(args.seed, args.seed + args.histories), 1):
            history = draw(seed)
            broken = ground.live(history)
            if broken is not None:
                failed[broken.promise] += 1
                print(f"seed {seed}: {broken}", flush=True)
                if failed[broken.promise] == 1:
                    print(pformat(shrink(ground, history, broken), width=118), flush=True)
                if args.keep:
                    keep_seed(seed, broken)
            if number % 100 == 0 or number == args.histories:
                seconds = time.monotonic() - began
                print(f"{number} histories, {failed.total()} failed, {seconds / number:.3f} s each", flush=True)
    print(", ".join(f"{what} {times}" for what, times in ground.ran.most_common()))
    print("broken:", dict(failed) or "nothing")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

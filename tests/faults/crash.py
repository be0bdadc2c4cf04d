"""Deaths at every boundary: `python -m tests.faults.crash --every 1`, and at any moment: `--random 200`.

SIGKILL ends a real process at one of these moments:
- before a statement reaches PostgreSQL;
- while the server is at work on it;
- when the server has answered a COMMIT and the process has not heard of it;
- while an answer of Twilio is under way.

proxy.py counts the statements, and the simulated Twilio the requests; the program itself has no code for this. The same
command is started again until it succeeds. Rows, events, inbox, cursors and proofs must then be those of an undisturbed
run.
`--at-once 3` lets a backfill read three slices at once and merge on three connections.
With `--engine procrastinate` the process is a daemon of a fleet that knows one job, or the workers of a backfill
(`slices`), or its command (`backfill`). After its death another daemon takes up the task.
Uses the server named by TEST_DATABASE_URL, or an embedded one.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

from procrastinate.jobs import Job, Status
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb

from reconciler.database import connection as db
from reconciler.database import engine_schema
from reconciler.database.migrate import migrate
from reconciler.database.store import Store
from reconciler.database.transaction import Origin, Rules
from reconciler.errors import ExitCode
from reconciler.jobs.registry import KINDS
from reconciler.model import JobName
from reconciler.service import daemon, workers
from reconciler.service.engine_tables import Manager
from reconciler.simulator import Callbacks, Clock, Fault, SimulatedAccount, SimulatedTwilio, Switches, viewer
from reconciler.simulator.filters import Span
from reconciler.simulator.messages import Request
from reconciler.simulator.webhooks import Channel, webhooks
from reconciler.twilio.records import read_record
from tests.bench.servers import server
from tests.faults.machines import hurried
from tests.faults.proxy import FORKS, PATIENCE, Moment, Proxy
from tests.harness.databases import new_database
from tests.harness.equality import differences, doubled_events, records_of
from tests.harness.names import ACCOUNT, TOKEN

PAGE_SIZE = 5
CALLS = 24
MAY_TAKE = 3  # runs of the same command until it comes to its end
DAY = timedelta(days=1)
GOOD = (ExitCode.DONE, ExitCode.UNRECONCILED)
JOBS = ("hot", "warm", "cold", "freeze", "inbox", "recordings")

# Without what is another one in each run: numbers, and times of our own clock.
_ROWS = """
SELECT (to_jsonb(m) - '{id,created_at,updated_at,observed_at,gone_at}'::text[])
    || jsonb_build_object('gone', gone_at IS NOT NULL)
FROM messages AS m
WHERE twilio_sid = ANY (%(calls)s) OR %(calls)s IS NULL
"""
_EVENTS = """
SELECT jsonb_build_array(call_sid, event_type, event_status, source, payload,
    CASE WHEN event_type NOT IN ('call.frozen', 'call.enriched', 'call.frozen_drift', 'call.gone', 'recording.deleted')
        THEN event_time END)
FROM call_events
WHERE call_sid = ANY (%(calls)s) OR %(calls)s IS NULL
"""
_INBOX = """
SELECT jsonb_build_array(dedupe_key, processing_status, error, retry_count) FROM twilio_webhook_inbox
"""
# The differences are those that the proving sweep found. If a day was begun twice, the second sweep finds fewer.
_DAYS = "SELECT to_jsonb(d) - '{verified_at,differences}'::text[] FROM account_days AS d"
_JOBS = """
SELECT jsonb_build_array(
    job_name,
    cursor
        - '{read_until,ended_until,looked_at,settled_until,swept_at,begun_at,since,until,done,asked,found_at}'::text[],
    last_success_at IS NOT NULL)
FROM sync_state
WHERE job_name <> 'daemon'
"""
_FINISHED = "SELECT FROM sync_state WHERE cursor @> '{\"finished\": true}' AND job_name NOT LIKE '%.%'"  # no slice
_SILENCE = "UPDATE reconciler_engine.procrastinate_workers SET last_heartbeat = last_heartbeat - interval '1 hour'"
_UNFROZEN = "SELECT twilio_sid FROM messages WHERE is_final AND sync_state <> 'frozen'"
_PARTS = {"rows": _ROWS, "events": _EVENTS, "inbox": _INBOX, "days": _DAYS, "jobs": _JOBS}

State = Mapping[str, Counter[str]]


class Boundary(NamedTuple):
    """Where a process dies: the `at`-th time that it sends `text` or, with moment `asked`, any request to Twilio."""

    command: str
    at: int
    moment: Moment | str
    text: str

    def __str__(self) -> str:
        return f"{self.command} {self.moment} {self.at} {' '.join(self.text.split()[:9])}"


@dataclass
class Account:
    """A simulated Twilio by the machine's clock, and databases that are behind it."""

    server_url: str
    template: str
    twilio: SimulatedTwilio
    account: SimulatedAccount
    now: datetime
    unfrozen: list[str]  # calls that ended, and that warm asks about
    at_once: int = 1  # slices that are read, and connections that merge
    by_fleet: bool = False
    ends: dict[str, State] = field(default_factory=dict)
    boundaries: list[Boundary] = field(default_factory=list)

    @classmethod
    @contextmanager
    def behind(cls, server_url: str, migrated: str, *, at_once: int = 1, by_fleet: bool = False) -> Iterator[Account]:
        """Open it. During the next hour Twilio answers a question always alike."""
        account = SimulatedAccount(ACCOUNT, TOKEN, seed=5)
        now = datetime.now(UTC).replace(microsecond=0)
        _make_calls(account, now)
        with (
            SimulatedTwilio([account], clock=Clock.running(), switches=Switches(largest_page=PAGE_SIZE)) as twilio,
            new_database(server_url, migrated) as url,
        ):
            _make_rows(url, account, now)
            with closing(db.connect(url, purpose="test")) as conn:
                unfrozen = [call_sid for (call_sid,) in conn.execute(_UNFROZEN)]
                if by_fleet:
                    engine_schema.migrate(conn)
            name = str(conninfo_to_dict(url)["dbname"])
            yield cls(server_url, name, twilio, account, now, unfrozen, at_once, by_fleet)

    @property
    def commands(self) -> dict[str, list[str]]:
        """Return the commands that are killed, by name."""
        window = ["--since", (self.now - 2 * DAY).isoformat(), "--until", self.now.isoformat()]
        if self.by_fleet:
            return {"backfill": [*window, "--fleet"], **{name: ["run"] for name in (*JOBS, "slices")}}
        return {"backfill": window, **{kind: ["once", kind] for kind in JOBS}}

    def learn(self, *commands: str) -> None:
        """Run each command once, undisturbed, and remember how it ends and where it may die."""
        for command in commands or self.commands:
            with new_database(self.server_url, self.template) as url:
                self.twilio.requests.clear()
                proxy = Proxy(url)
                with self._beside(command, url) as other:
                    code = self._run(command, proxy, other)
                    assert code in GOOD, code
                    self.ends[command] = self._state_after(command, url)
            times = Counter[str]()
            for text in proxy.statements:
                times[text] += 1
                moments: list[Moment] = ["before", "behind"]
                if _is_written(text):
                    moments.append("answered")
                self.boundaries += [Boundary(command, times[text], moment, text) for moment in moments]
            self.boundaries += [Boundary(command, at, "asked", "GET") for at, _ in enumerate(self.twilio.requests, 1)]

    def start(self, command: str, url: str) -> BaseProcess:
        """`reconcile` in a process of its own."""
        env = {
            "DATABASE_URL": url, "TWILIO_BASE_URL": self.twilio.base_url, "TWILIO_ACCOUNT_SID": ACCOUNT,
            "TWILIO_AUTH_TOKEN": TOKEN, "RECONCILER_MAX_CONCURRENCY": str(self.at_once),
        }  # fmt: skip
        if self.by_fleet:
            env |= {"RECONCILER_ENGINE": "procrastinate", "RECONCILER_WORKERS": "3"}  # one slice at a time
        kinds = [command] if command in JOBS else []
        args = (self.commands[command], env, self.at_once, kinds if self.by_fleet else None)
        process = FORKS.Process(target=_reconcile, args=args, daemon=True)
        process.start()
        return process

    def die(self, boundary: Boundary) -> list[str] | None:
        """Kill the command there, run it again to its end, and say what is not as it should be.

        None: it came to its end before that. How often some statements are sent is a matter of time.
        """
        command = boundary.command
        with new_database(self.server_url, self.template) as url, self._beside(command, url) as other:
            self.twilio.requests.clear()
            code = self._killed(boundary, url, other)
            if code in GOOD:
                return None
            if code != -signal.SIGKILL:
                return [f"{boundary}: it ended with {code} and was not killed"]
            was_done, asked = _is_finished(url), [self._pages_asked_for()]
            for _ in range(MAY_TAKE):
                if self.by_fleet and command != "backfill":
                    _be_silent(url)
                code = self._run(command, Proxy(url), other)
                asked.append(self._pages_asked_for())
                if code in GOOD:
                    break
            else:
                return [f"{boundary}: the next runs ended with {code}"]
            found, end = self._state_after(command, url), self.ends[command]
            problems = [
                f"{boundary}: {part} differ: lost {list(end[part] - found[part])}, more {list(found[part] - end[part])}"
                for part in _PARTS
                if found[part] != end[part]
            ]
            with closing(db.connect(url, purpose="test")) as conn:
                problems += [f"{boundary}: doubled {doubled}" for doubled in doubled_events(conn)]
            again = sum(map(len, asked)) - len(frozenset().union(*asked))
            if command in ("backfill", "slices") and not was_done and again > self._may_ask_again:
                problems.append(f"{boundary}: {again} pages were asked for again")
            return problems

    def run(self, command: str, url: str, *, dies_after: float | None = None) -> int:
        """Run a command to its end, or kill it after so many seconds; return its exit code."""
        if self.by_fleet:
            _be_silent(url)
        with self._beside(command, url) as other:
            proxy = Proxy(url)
            timer = threading.Timer(dies_after or PATIENCE, proxy.kill)
            timer.start()
            try:
                return self._run(command, proxy, other)
            finally:
                timer.cancel()

    def _pages_asked_for(self) -> frozenset[tuple[Any, ...]]:
        """Return the pages of listings that were asked for since the last time."""
        # To tell whether an empty page is an end, or whether the credentials are good, one call is asked for: no page.
        requests = list(self.twilio.requests)
        self.twilio.requests.clear()
        return frozenset(
            (request.path, *request.params)
            for request in requests
            if request.path.endswith(("/Calls.json", "/Recordings.json")) and request.param("PageSize") != "1"
        )

    @property
    def _may_ask_again(self) -> int:
        """Return how many pages may be asked for again after a kill: one of each slice under way.

        With several at once as many pages of recordings may wait for the calls. A day is read by its hours, and each
        process proves anew that it may.
        """
        return 1 if self.at_once == 1 else 2 * self.at_once + 1

    def _state_after(self, command: str, url: str) -> State:
        """Return the state of the database; after warm, of the calls that warm asks about.

        It may ask by listing their day, and merges whatever else is listed. Killed before that page, with fewer left to
        ask about, it need not list the day again.
        """
        return state(url, self.unfrozen if command == "warm" else None)

    @contextmanager
    def _beside(self, command: str, url: str) -> Iterator[BaseProcess | None]:
        """Start the process that a backfill by the fleet needs beside one of its two parts, and end it."""
        other = {"backfill": "slices", "slices": "backfill"}.get(command) if self.by_fleet else None
        if other is None:
            yield None
            return
        process = self.start(other, url)
        yield process
        code = _stop(process) if other == "slices" else _finish(process)
        assert code in GOOD, code

    def _run(self, command: str, proxy: Proxy, other: BaseProcess | None) -> int:
        """Run a command to its end, its death, or that of the backfill that it works for; return its exit code."""
        process = proxy.victim = self.start(command, proxy.url)
        proxy.victim_known.set()
        try:
            if command == "slices" and other is not None:
                wait([process.sentinel, other.sentinel], PATIENCE)
                return _stop(process)
            return _finish(process)
        finally:
            proxy.close()  # by then the server has let go of the locks of a dead process

    def _killed(self, boundary: Boundary, url: str, other: BaseProcess | None) -> int:
        if boundary.moment != "asked":
            moment: Any = boundary.moment
            proxy = Proxy(url, at=boundary.at, moment=moment, counts=boundary.text.__eq__)
            return self._run(boundary.command, proxy, other)
        proxy, left = Proxy(url), [boundary.at]

        def is_the_one(_: Request) -> bool:
            left[0] -= 1
            if left[0] == 0:
                proxy.kill()
            return left[0] == 0

        self.twilio.faults.when(is_the_one, Fault.reset())
        try:
            return self._run(boundary.command, proxy, other)
        finally:
            self.twilio.faults.clear()


def _reconcile(arguments: list[str], env: dict[str, str], mergers: int, kinds: list[str] | None) -> None:
    """Run the command in this process."""
    from reconciler.cli import backfill
    from reconciler.cli.main import main

    backfill.count_mergers = lambda: mergers
    if kinds is not None:
        _know_only(kinds)
    os.environ.update(env)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    with nullcontext() if kinds is None else hurried():
        os._exit(main(arguments))


def _know_only(kinds: list[str]) -> None:
    """Let the daemon of a fleet know no other jobs, and stop when a task of one is worked and deleted."""
    finish = Manager.finish_job
    is_told = False

    async def finish_and_stop(self: Manager, job: Job, status: Status, delete_job: bool) -> None:
        nonlocal is_told
        await finish(self, job, status, delete_job)
        if JobName.parse(str(job.queueing_lock)).kind in kinds and not is_told:
            is_told = True
            os.kill(os.getpid(), signal.SIGTERM)

    Manager.finish_job = finish_and_stop  # type: ignore[method-assign]
    patch.object(workers, "KINDS", {kind: KINDS[kind] for kind in kinds}).start()
    patch.object(daemon, "TICK", 0.05).start()


def _finish(process: BaseProcess) -> int:
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("it hangs")
    return process.exitcode


def _stop(process: BaseProcess) -> int:
    """Tell a daemon to stop; return its exit code. One that was told before it could hear has nothing to stop."""
    process.terminate()
    code = _finish(process)
    return int(ExitCode.DONE) if code == -signal.SIGTERM else code


def _be_silent(url: str) -> None:
    """Let the dead workers of a fleet be silent for long."""
    with closing(db.connect(url, purpose="test")) as conn:
        conn.execute(_SILENCE)


def _is_finished(url: str) -> bool:
    """Whether a backfill was read to its end: the same command then begins another one."""
    with closing(db.connect(url, purpose="test")) as conn:
        return bool(conn.execute(_FINISHED).fetchall())


def _is_written(text: str) -> bool:
    return text.startswith("COMMIT") or "INTO sync_state" in text or "procrastinate_" in text


def state(url: str, calls: list[str] | None = None) -> State:
    """Return the state of a database, or the part of it that is about these calls."""
    with closing(db.connect(url, purpose="test")) as conn:
        return {
            part: Counter(str(row[0]) for row in conn.execute(query.encode(), {"calls": calls}))
            for part, query in _PARTS.items()
        }


def _make_calls(account: SimulatedAccount, now: datetime) -> None:
    """Of all kinds, with all that is to come of them long come, or never."""
    rng = Random(3)
    for number in range(CALLS):
        created = now - timedelta(minutes=rng.randrange(100, 170 if number % 2 else 2700))
        status = rng.choice(("completed", "completed", "completed", "busy", "no-answer", "failed", "canceled"))
        direction = rng.choice(("outbound-api", "inbound", "trunking-terminating"))
        account.call(
            created, status=status, direction=direction, rings_for=number % 7, talks_for=5 + number, priced_after=20,
            never_dialled=status == "canceled" and direction == "outbound-api",
            answered_by="human" if status == "completed" and number % 3 == 0 else None,
        )  # fmt: skip
    for number in range(5):
        account.call(now - timedelta(minutes=100 + number), rings_for=None if number % 2 else 4, talks_for=None)
    for hours in (5, 30, 34, 44):  # their price never comes
        account.call(now - timedelta(hours=hours), priced_after=None, talks_for=10)


def _make_rows(url: str, account: SimulatedAccount, now: datetime) -> None:
    """Fill the database.

    - A third of the calls is unknown. Another third is as REST or the Viewer saw it half a minute after its creation.
    - The inbox holds webhooks that nobody has worked off, and one that cannot be read.
    - Twilio does not have one of the calls any more.
    """
    forgotten = account.call(now - timedelta(hours=3), rings_for=4, talks_for=None)
    calls = account.calls_at(now)
    with Store(url, rules=Rules()) as store:
        for call in calls[::3]:
            seen_at = datetime.fromtimestamp(call.created, UTC) + timedelta(seconds=30)
            if (record := account.record(call.sid, seen_at)) is not None:
                said = read_record(record, observed_at=seen_at)
                store.commit_page([said], origin=Origin("reconcile_hot", "before"), now=seen_at)
        said = read_record(account.record(forgotten.sid, now), observed_at=now - timedelta(hours=3))
        store.commit_page([said], origin=Origin("reconcile_hot", "before"), now=now - timedelta(hours=3))
    account.delete(forgotten.sid, now - timedelta(hours=1))
    with closing(db.connect(url, purpose="test")) as conn:
        account.callbacks = Callbacks(recorded=0.5)
        sent = webhooks(account, now - 2 * DAY, now - timedelta(minutes=30), child_callbacks=True)
        arrived = Channel(seed=1, loss=0.3, duplicate=0.2, reorder=0.3).deliver(sent)
        viewer.receive(conn, arrived[::4])
        viewer.work(conn, viewer.Habits(regress_statuses=True, seal_wrongly=True), now=now)
        viewer.receive(conn, arrived[1::4])
        viewer.work(conn, viewer.Habits(never_release=True), now=now)
        viewer.receive(conn, arrived[2::4])
        conn.execute(
            "INSERT INTO twilio_webhook_inbox (source, event_type, call_sid, dedupe_key, payload, received_at)"
            " VALUES ('twilio_voice', 'call-status', 'CA1', 'broken', %s, %s)",
            (Jsonb({"CallSid": "CA1", "CallStatus": "lost"}), now - timedelta(hours=1)),
        )
        cursors = {
            "hot": {"account": ACCOUNT, "read_until": (now - timedelta(minutes=150)).isoformat(), "usual": 9},
            "cold": {"account": ACCOUNT, "swept_at": (now - DAY).isoformat(), "deep_at": (now - DAY).isoformat()},
        }
        for job, cursor in cursors.items():
            conn.execute("INSERT INTO sync_state (job_name, cursor) VALUES (%s, %s)", (job, Jsonb(cursor)))


def at_random(account: Account, kills: int, seed: int) -> tuple[int, list[str]]:
    """Kill commands at any moment, any of them after any other. Return the number of kills, and the faults found."""
    rng, killed = Random(seed), 0
    with new_database(account.server_url, account.template) as url:
        # Before its first run nobody waits for warm: freeze would seal what is past its deadline without its price.
        account.run("warm", url)
        # Without its workers the command of a fleet's backfill would wait for others.
        commands = [command for command in account.commands if command != "slices"]
        while killed < kills:
            killed += account.run(rng.choice(commands), url, dies_after=rng.random() * 0.5) not in GOOD
            if rng.random() < 0.1:  # there is always something to do
                since = account.now - timedelta(minutes=rng.randrange(100, 2600))
                account.account.call(since, talks_for=rng.randrange(60))
        for command in ("inbox", "hot", "warm", "cold", "freeze", "backfill"):
            code = account.run(command, url)
            if code not in GOOD:
                return killed, [f"{command} ended with {code}"]
        with closing(db.connect(url, purpose="test")) as conn:
            problems = differences(conn, records_of(account.account, datetime.now(UTC)))
            problems = [p for p in problems if not p.endswith(("duration: 0, not None", "has no such call"))]
            problems += [f"doubled: {doubled}" for doubled in doubled_events(conn)]
            problems += lost_recordings(conn, account.account)
            problems += [
                f"unsettled: {row}"
                for row in conn.execute(
                    "SELECT id, processing_status FROM twilio_webhook_inbox"
                    " WHERE processing_status NOT IN ('completed', 'dead_letter')"
                )
            ]
        return killed, problems


def lost_recordings(conn: db.Connection, account: SimulatedAccount) -> list[str]:
    """Return the recordings of the account that are not told exactly once."""
    told = Counter(
        sid
        for (sid,) in conn.execute(
            "SELECT payload ->> 'recording_sid' FROM call_events WHERE event_type = 'recording.ready'"
        )
    )
    made = {recording.sid for recording in account.recordings_between(Span())}
    return [f"{sid} is told {told[sid]} times" for sid in made | told.keys() if told[sid] != 1 or sid not in made]


@contextmanager
def ready(at_once: int, *, by_fleet: bool) -> Iterator[Account]:
    """A server, and an account on it."""
    with server() as server_url, new_database(server_url) as url:
        with closing(db.connect(url, purpose="template")) as conn:
            migrate(conn)
            name = conn.info.dbname
        with Account.behind(server_url, name, at_once=at_once, by_fleet=by_fleet) as account:
            yield account


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, nargs="?", const=1, help="die at every n-th boundary")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first boundary of these")
    parser.add_argument("--random", type=int, default=0, metavar="KILLS", help="die so many times at any moment")
    parser.add_argument("--commands", nargs="*", default=[], help="only at these: backfill, hot, …")
    parser.add_argument("--at-once", type=int, default=1, help="slices read, and connections that merge")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("local", "procrastinate"), default="local", help="as RECONCILER_ENGINE")
    args = parser.parse_args()
    died, missed, problems = Counter[str](), 0, []
    with ready(args.at_once, by_fleet=args.engine == "procrastinate") as account:
        if args.every:
            account.learn(*args.commands)
            boundaries = account.boundaries[args.first :: args.every]
            for number, boundary in enumerate(boundaries, 1):
                found = account.die(boundary)
                if found is None:
                    missed += 1
                    continue
                died[f"{boundary.command} {boundary.moment}"] += 1
                problems += found
                print(*(problem[:1000] for problem in found), sep="\n", end="\n" if found else "", flush=True)
                if number % 100 == 0 or number == len(boundaries):
                    print(f"{number} of {len(boundaries)} deaths, {len(problems)} problems", flush=True)
        if args.random:
            died["at any moment"], found = at_random(account, args.random, args.seed)
            problems += found
            print(*found, sep="\n", end="\n" if found else "", flush=True)
    print(f"{missed} came to their end before that;" if missed else "", end=" ")
    print(f"{died.total()} deaths:", ", ".join(f"{what} {times}" for what, times in died.items()))
    print(f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

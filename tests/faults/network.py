"""Backfills over a bad network: `python -m tests.faults.network [--runs 200] [--first 0]` tries many seeds.

A seed draws faults that come together: a fifth of the answers is 429, and concurrency has a ceiling. Other answers are
5xx in JSON or HTML, hang, are cut short, or end in a reset. Filters are ignored, page tokens die, and a burst of 401
comes. Our clock jumps, and some answers have no Date. Each seed has two backfills: calls that are open during the first
have ended before the second.
With `--engine procrastinate` two machines of a fleet (machines.py) read the slices.
Uses the server named by TEST_DATABASE_URL, or an embedded one.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qsl, urlsplit

import msgspec

from reconciler import logs, retry
from reconciler.database import connection as db
from reconciler.database.migrate import migrate
from reconciler.database.store import Store
from reconciler.database.transaction import Rules
from reconciler.errors import ExitCode, Unavailable
from reconciler.jobs.backfill import Watcher, Window
from reconciler.service.backfill_queue import BackfillQueue
from reconciler.service.fleet_backfill import FLEET, backfill_by_fleet
from reconciler.service.runner import Setup
from reconciler.settings import Credentials
from reconciler.simulator import Clock, Fault, SimulatedAccount, SimulatedTwilio, Switches
from reconciler.simulator.listing import list_calls
from reconciler.simulator.messages import Answer, Request
from reconciler.twilio.accounts import Accounts
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.concurrency import Gate, Pacer, Ticket
from reconciler.twilio.transport import Transport
from tests.bench.servers import server
from tests.faults.machines import Machines
from tests.harness.contexts import SETTINGS, make_context, run_backfill
from tests.harness.databases import new_database
from tests.harness.equality import differences, doubled_events, records_of
from tests.harness.names import ACCOUNT, NOW, TOKEN

DAYS = 7
CALLS = 3_000
PAGE_SIZE = 50  # some ten pages a day
CONCURRENCY = 6
MERGERS = 3  # connections of a backfill
SLOTS = 5  # of a machine of the fleet: three slices at once
HANGING_FOR = 0.3  # seconds until we give up on a hanging answer
MAY_TAKE = 5  # runs of the same command until all of it is read


@dataclass
class Outcome:
    """The outcome of one seed. `problems` is empty if no call was lost or doubled and the limits were kept."""

    seed: int
    runs: int = 0
    requests: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class _Sent:
    """The requests that were let go: by path, when, and the concurrency in force at that time."""

    def __init__(self) -> None:
        self.by_path: dict[str, list[tuple[float, int]]] = {}
        self.above: list[tuple[int, int]] = []
        self.granted = threading.local()


class _WatchedGate(Gate):
    """A gate that notes at each grant how many run and how many may."""

    def __init__(self, ceiling: int, sent: _Sent) -> None:
        super().__init__(ceiling, account_sid=ACCOUNT)
        self._sent = sent

    @contextmanager
    def slot(self, *, is_bulk: bool = False) -> Iterator[Ticket]:
        with ExitStack() as stack:
            with self._changed:  # nobody lowers the limit between the grant and our look
                ticket = stack.enter_context(super().slot(is_bulk=is_bulk))
                if self._running > self._share.most:
                    self._sent.above.append((self._running, self._share.most))
                self._sent.granted.limit = self._share.most
            yield ticket


class _WatchedPacer(Pacer):
    """A pacer with a watched gate; there is one account."""

    def __init__(self, limit: int, sent: _Sent) -> None:
        super().__init__(limit)
        self._gate = _WatchedGate(limit, sent)

    def gate(self, account_sid: str) -> Gate:
        return self._gate


class _WatchedTransport(Transport):
    """A transport that notes each request and the limit at that moment. It waits for no answer that hangs."""

    def __init__(self, twilio: SimulatedTwilio, sent: _Sent) -> None:
        super().__init__(twilio.base_url, connections=CONCURRENCY, read_timeout=HANGING_FOR)
        self._twilio = twilio
        self._sent = sent

    def request(self, method: str, uri: str, *args: Any, **options: Any) -> Any:
        path = uri.partition("/2010-04-01")[2]
        self._sent.by_path.setdefault(path, []).append((time.monotonic(), self._sent.granted.limit))
        try:
            return super().request(method, uri, *args, **options)
        except Unavailable:
            self._twilio.faults.release()  # what we gave up on counts at Twilio no longer than its own time limit
            raise


def make_account() -> SimulatedAccount:
    """Some thousand calls of a week, and some that live at its end."""
    account = SimulatedAccount(ACCOUNT, TOKEN, seed=7)
    account.generate(CALLS, NOW - timedelta(days=DAYS), NOW)
    for minute in range(1, 40):
        begun = NOW - timedelta(minutes=minute)
        account.call(
            begun, direction="outbound-api", rings_for=90 * minute, talks_for=600, price="-0.0130", priced_after=40
        )
    return account


def disturb(twilio: SimulatedTwilio, account: SimulatedAccount, rng: random.Random) -> None:
    """Plan what goes wrong."""
    plan = twilio.faults
    plan.seed = rng.randrange(1 << 30)
    plan.max_concurrent = rng.choice([None, 2, 3])
    plan.rates({
        Fault.too_many_requests(): 0.15, Fault.too_many_requests(0): 0.05,
        Fault.server_error(500): 0.02, Fault.server_error(502, html=True): 0.01, Fault.server_error(503): 0.01,
        Fault.server_error(504, html=True): 0.01, Fault.reset(): 0.02, Fault.reset_mid_body(): 0.01,
        Fault.closed_early(): 0.01, Fault.truncated_json(): 0.02, Fault.html_with_200(): 0.01, Fault.empty_body(): 0.01,
        Fault.array(): 0.01, Fault.hang(): 0.01, _ignored_filter(twilio, account): 0.005,
    })  # fmt: skip
    twilio.switches = replace(twilio.switches, date_header=rng.random() < 0.7, gzip=rng.random() < 0.5)

    burst = rng.randrange(10, 60)
    burst_length = rng.randrange(1, 4)
    numbers = count()

    def in_the_burst(_: Request) -> bool:
        return burst <= next(numbers) < burst + burst_length

    plan.when(in_the_burst, Fault.unauthorized())
    if twilio.clock.now() == NOW:  # once: a day begun anew is up to ten pages read again
        tokens = count(rng.randrange(-8, 0))

        def token_died(request: Request) -> bool:
            return request.param("PageToken") is not None and next(tokens) == 0

        plan.when(token_died, Fault.error(400, 20001, "Invalid PageToken"))


def ignored_once(twilio: SimulatedTwilio, account: SimulatedAccount, _: random.Random) -> None:
    """Plan that Twilio ignores the filter of one day's first page."""
    twilio.faults.when(
        lambda request: (request.param("StartTime>") or "").startswith("2026-06-08") and not request.param("PageToken"),
        _ignored_filter(twilio, account), times=1,
    )  # fmt: skip


def _ignored_filter(twilio: SimulatedTwilio, account: SimulatedAccount) -> Fault:
    listed = list_calls(account, [("PageSize", "1000")], twilio.clock.now(), Switches())
    return Fault("ignored filter", instead=Answer(body=msgspec.json.encode(listed)))


def jumping(clock: Clock, rng: random.Random) -> Callable[[], datetime]:
    """Our clock: Twilio's, and up to some hours wrong, otherwise each time it is looked at."""
    lock = threading.Lock()

    def now() -> datetime:
        with lock:
            return clock.now() + timedelta(hours=rng.choice([0, 0, 0, -5, -1, 1, 5]))

    return now


@dataclass
class Process:
    """A process that backfills with `client`, or that has `machines` of a fleet do it."""

    database_url: str
    client: TwilioClient
    clock: Callable[[], datetime]
    machines: Machines | None = None

    @classmethod
    @contextmanager
    def started(
        cls,
        twilio: SimulatedTwilio,
        database_url: str,
        sent: _Sent,
        our_clock: Callable[[], datetime],
        *,
        by_fleet: bool,
    ) -> Iterator[Process]:
        """Start it, with the fleet if it has one."""
        credentials = Credentials(ACCOUNT, ACCOUNT, TOKEN, base_url=twilio.base_url)
        client = TwilioClient(
            credentials, pacer=_WatchedPacer(CONCURRENCY, sent), transport=_WatchedTransport(twilio, sent),
            clock=our_clock, page_size=PAGE_SIZE,
        )  # fmt: skip
        process = cls(database_url, client, our_clock)
        with closing(client):
            if not by_fleet:
                yield process
                return
            setup = Setup(SETTINGS, database_url, client, Accounts(ACCOUNT, (ACCOUNT,)))
            with Machines.on(database_url, setup, at=(0, 0), slots=SLOTS) as process.machines:
                process.machines.use(setup, lambda work, context, _: work(replace(context, clock=our_clock)))
                yield process

    def backfill(self, now: datetime) -> ExitCode:
        """`reconcile --since 7d` of the simulated present."""
        stop = threading.Event()
        window = Window(now - timedelta(days=DAYS + 1), now, {"since": "8d", "until": None})
        with Store(self.database_url, rules=Rules()) as store:
            common: dict[str, Any] = {"stop": stop, "clock": self.clock}
            if self.machines is None:
                session = self.client.session(stop)
                return run_backfill(ACCOUNT, window, session=session, store=store, mergers=MERGERS, **common).exit_code
            with closing(BackfillQueue(self.database_url)) as queue:
                context = make_context(FLEET, store, **common)
                return backfill_by_fleet(context, [ACCOUNT], window, queue, Watcher()).exit_code


def try_seed(
    seed: int | None, database_url: str, *, undisturbed: int | None = None, by_fleet: bool = False,
    planned: Callable[[SimulatedTwilio, SimulatedAccount, random.Random], None] | None = None,
) -> Outcome:  # fmt: skip
    """Two backfills under the faults of `seed`, those `planned`, or none, and the differences after them."""
    plan = disturb if seed is not None else planned
    rng = random.Random(seed)
    outcome = Outcome(-1 if seed is None else seed)
    account, clock = make_account(), Clock(NOW)
    sent = _Sent()
    with SimulatedTwilio([account], clock=clock) as twilio, db.connect(database_url, purpose="test") as conn:
        for phase in ("while calls live", "when they are over"):
            twilio.faults.clear()
            if plan is not None:
                plan(twilio, account, rng)
            our_clock = clock.now if seed is None else jumping(clock, rng)
            for _ in range(MAY_TAKE):
                outcome.runs += 1
                with Process.started(twilio, database_url, sent, our_clock, by_fleet=by_fleet) as process:
                    code = process.backfill(clock.now())
                if code is not ExitCode.TRY_AGAIN:
                    break
            if code is not ExitCode.DONE:
                outcome.problems.append(f"{phase}: ended with {code!r}")
            records = records_of(account, clock.now())
            outcome.problems += [f"{phase}: {line}" for line in differences(conn, records)]
            clock.advance(timedelta(hours=3))
        outcome.problems += [f"doubled: {event}" for event in doubled_events(conn)]
        created = conn.execute("SELECT count(*) FROM call_events WHERE event_type = 'call.created'").fetchone()
        if created != (len(records),):
            outcome.problems.append(f"{created} calls created, not {len(records)}")
        _count(twilio, outcome, undisturbed)
        outcome.problems += _too_many_at_once(twilio, sent)
    return outcome


def _count(twilio: SimulatedTwilio, outcome: Outcome, undisturbed: int | None) -> None:
    failed = [entry for entry in twilio.requests if entry.fault or entry.status != 200]
    outcome.requests = len(twilio.requests)
    outcome.faults.update(entry.fault or str(entry.status) for entry in failed)
    if undisturbed is not None and outcome.requests > 1.1 * undisturbed + len(failed):
        needed = f"{undisturbed} needed and {len(failed)} failed"
        outcome.problems.append(f"{outcome.requests} requests, where {needed}")


def _too_many_at_once(twilio: SimulatedTwilio, sent: _Sent) -> list[str]:
    """Moments at which Twilio saw more requests of ours than the pacer allowed when the newest of them was let go."""
    problems = [f"{running} let go at once under a limit of {limit}" for running, limit in sent.above]
    # The client gives a hanging request up long before the simulator releases it.
    entries = [entry for entry in twilio.requests if entry.fault != "hang"]
    for entry in entries:
        assert entry.finished is not None
        path = entry.path.removeprefix("/2010-04-01")
        lets = [lets for said, lets in sent.by_path.items() if _is(said, path, entry.params)]
        limit = [limit for at, limit in lets[0] if at <= entry.started][-1]
        together = sum(e.started <= entry.started < (e.finished or e.started) for e in entries)
        if together > limit:
            problems.append(f"{together} requests at once under a limit of {limit}")
    return problems


def _is(said: str, path: str, params: list[tuple[str, str]]) -> bool:
    parts = urlsplit(said)
    return parts.path == path and parse_qsl(parts.query, keep_blank_values=True) == params


@contextmanager
def in_a_hurry() -> Iterator[None]:
    """Waits between repeats a hundred times shorter, and small pages."""
    logs.configure(form="json", level="critical", pii="masked")
    with (
        patch.object(retry, "FIRST_WAIT", 0.005),
        patch.object(retry, "LONGEST_WAIT", 0.05),
    ):
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--engine", choices=("local", "procrastinate"), default="local", help="as RECONCILER_ENGINE")
    args = parser.parse_args()
    by_fleet = args.engine == "procrastinate"
    failing, requests, faults = [], 0, Counter[str]()
    with server() as server_url, in_a_hurry(), ExitStack() as stack:
        template = stack.enter_context(new_database(server_url))
        with db.connect(template, purpose="template") as conn:
            migrate(conn)
            name = conn.info.dbname
        with new_database(server_url, name) as url:
            undisturbed = try_seed(None, url, by_fleet=by_fleet)
        assert not undisturbed.problems, undisturbed.problems
        for number, seed in enumerate(range(args.first, args.first + args.runs), 1):
            with new_database(server_url, name) as url:
                outcome = try_seed(seed, url, undisturbed=undisturbed.requests, by_fleet=by_fleet)
            requests += outcome.requests
            faults += outcome.faults
            if outcome.problems:
                failing.append(seed)
                print(f"seed {seed}: {len(outcome.problems)} problems", *outcome.problems[:5], sep="\n    ", flush=True)
            if number % 5 == 0 or number == args.runs:
                print(f"{number} of {args.runs} runs, {len(failing)} failed", flush=True)
    print(f"{args.runs} runs, {requests} requests ({undisturbed.requests} a run without faults)")
    print("injected:", ", ".join(f"{name} {number}" for name, number in faults.most_common()))
    print("failing seeds:", failing or "none")
    return 1 if failing else 0


if __name__ == "__main__":
    raise SystemExit(main())

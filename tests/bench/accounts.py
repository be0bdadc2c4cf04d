"""Many accounts, each with open calls, in the hot minute of one daemon: `python -m tests.bench.accounts`.

In every account one call ends at the same moment; each must be final in the database an interval later, with no run
missed. Prints what that took. The simulated Twilio has a process of its own (`--serve`), as the daemon has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg

from reconciler.service.workers import POOLS
from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio
from reconciler.simulator.__main__ import ACCOUNT_SID, AUTH_TOKEN
from tests.bench.processes import RECONCILE, Environment, serving
from tests.bench.servers import database

ENDED_SINCE = 60  # calls of each account, younger than its open ones: the listing of new calls shows only these
SPREAD = 6  # seconds: a run starts up to 5 s late on purpose, and one just before the end takes its time

_COUNT = "SELECT count(*) FROM messages WHERE is_final"


class Minute(NamedTuple):
    """The measurements of one interval of the hot job."""

    accounts: int
    open_calls: int
    seconds: float  # until the call that ended was final in every account
    runs: int
    missed: int
    requests: float
    median_run: float
    slowest_run: float
    connections: int  # to PostgreSQL, at most


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.accounts", description=__doc__)
    add = parser.add_argument
    add("--accounts", type=int, default=1000)
    add("--open", type=int, default=50, help="calls that live, in each account")
    add("--delay", type=int, default=0, help="milliseconds that Twilio takes for an answer")
    add("--interval", type=int, default=60, help="seconds, of the hot job")
    add("--concurrency", type=int, default=8, help="requests at once")
    add("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.accounts, args.open, timedelta(milliseconds=args.delay))
        return
    minute = measure(args.accounts, args.open, delay=args.delay, interval=args.interval, concurrency=args.concurrency)
    print(json.dumps(minute._asdict(), indent=2))
    pools = sum(POOLS.values()) + 1  # and the lead
    if minute.seconds > args.interval + SPREAD or minute.missed or minute.connections > pools:
        raise SystemExit(f"not within one interval, without a missed run, by {pools} connections")


def serve(accounts: int, open_calls: int, delay: timedelta) -> None:
    """A Twilio with so many accounts; each line on stdin ends one more call of each, and is answered by a line."""
    now = datetime.now(UTC)
    main_account = SimulatedAccount(ACCOUNT_SID, AUTH_TOKEN)
    everyone = [main_account]
    everyone += [main_account.add_subaccount(f"AC{number:032x}", "subaccount") for number in range(1, accounts)]
    sids = {}
    for account in everyone:
        account.generate(ENDED_SINCE, now - timedelta(minutes=14), now - timedelta(minutes=11))
        began = [now - timedelta(minutes=15, seconds=30 * n) for n in range(open_calls)]
        sids[account.sid] = [account.call(at, direction="inbound", talks_for=None).sid for at in began]
    clock = Clock.running()
    with SimulatedTwilio([main_account], clock=clock, page_delay=delay) as twilio:
        print(f"TWILIO_BASE_URL={twilio.base_url}")
        print(f"TWILIO_ACCOUNT_SID={ACCOUNT_SID}")
        print(f"TWILIO_AUTH_TOKEN={AUTH_TOKEN}", flush=True)
        for _ in sys.stdin:
            for account in everyone:
                account.hang_up(sids[account.sid].pop(), clock.now())
            print("ended", flush=True)


def measure(accounts: int, open_calls: int, *, delay: int, interval: int, concurrency: int) -> Minute:
    """One interval, once each account has had its first runs."""
    command = [sys.executable, "-m", "tests.bench.accounts", "--serve"]
    command += ["--accounts", str(accounts), "--open", str(open_calls), "--delay", str(delay)]
    with database() as url, serving(command) as (twilio, simulator), psycopg.connect(url, autocommit=True) as conn:
        assert simulator.stdin is not None and simulator.stdout is not None
        # Quiet but for hot.
        others = {f"RECONCILER_{job}_INTERVAL": "4w" for job in ("WARM", "COLD", "FREEZE", "INBOX")}
        daemon = _Daemon({
            **twilio, **others, "DATABASE_URL": url, "RECONCILER_ACCOUNTS": "all",
            "RECONCILER_HOT_INTERVAL": f"{interval}s", "RECONCILER_MAX_CONCURRENCY": str(concurrency),
            "RECONCILER_HTTP_LISTEN": "127.0.0.1:0", "RECONCILER_WEBHOOK_GRACE": "0s",
        })  # fmt: skip
        try:
            began = time.monotonic()
            while (
                len(done := daemon.said("job.finished")) < 2 * accounts or len({d["account"] for d in done}) < accounts
            ):
                _wait(began, 600)
            began = time.monotonic()
            mark, asked = len(daemon.said("job.finished")), daemon.requests()
            missed = len(daemon.said("job.missed"))
            simulator.stdin.write("end\n")
            simulator.stdin.flush()
            simulator.stdout.readline()
            ((before,),) = conn.execute(_COUNT).fetchall()
            final, connections = before, 0
            ended = None
            while time.monotonic() - began < interval or final < before + accounts:
                ((final,),) = conn.execute(_COUNT).fetchall()
                ((busy,),) = conn.execute(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name LIKE 'reconciler%%'"
                ).fetchall()
                connections = max(connections, busy)
                if final >= before + accounts and ended is None:
                    ended = time.monotonic() - began
                _wait(began, 300)
            runs = daemon.said("job.finished")[mark:]
            seconds = [line["duration_seconds"] for line in runs]
            return Minute(
                accounts, open_calls, round(ended or time.monotonic() - began, 1), len(runs),
                len(daemon.said("job.missed")) - missed, daemon.requests() - asked, statistics.median(seconds),
                max(seconds), connections,
            )  # fmt: skip
        finally:
            daemon.close()


def _wait(began: float, at_most: float) -> None:
    if time.monotonic() - began > at_most:
        raise SystemExit(f"not done after {at_most} s")
    time.sleep(0.25)


class _Daemon:
    """`reconcile run`, and what it logs of its hot jobs."""

    def __init__(self, environment: Environment) -> None:
        self._process = subprocess.Popen((*RECONCILE, "run"), env=dict(environment), stderr=subprocess.PIPE, text=True)
        self._lines: list[dict[str, Any]] = []
        self._port = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def said(self, event: str) -> list[dict[str, Any]]:
        """The lines of that event so far, of hot jobs."""
        return [line for line in list(self._lines) if line["event"] == event and line.get("job") == "hot"]

    def requests(self) -> float:
        """How many it has sent to Twilio so far."""
        assert self._port.wait(30)
        port = next(line["http_port"] for line in self._lines if line["event"] == "daemon.started")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        lines = [line for line in text.splitlines() if line.startswith("reconciler_requests_total{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)
        self._reader.join(5)

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                if line.startswith("{"):
                    said = json.loads(line)
                    if said["event"] in ("daemon.started", "job.finished", "job.missed", "job.failed"):
                        self._lines.append(said)
                    if said["event"] == "daemon.started":
                        self._port.set()
                    if said["event"] in ("job.failed", "daemon.failed", "program.failed"):
                        print(line, file=sys.stderr, end="")


if __name__ == "__main__":
    main()

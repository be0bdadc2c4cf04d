"""Accounts that allow few requests at once or many, hot beside a backfill, and an account where nothing happens."""

from __future__ import annotations

import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from math import ceil
from typing import Any, NamedTuple

from tests.bench.processes import RECONCILE, Environment, ask_simulator, run, simulated_twilio
from tests.bench.servers import database_on

CEILING = 16  # the default of RECONCILER_MAX_CONCURRENCY
_RUNS_IN_TURN = 5  # of hot, alone and beside a backfill
QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


class Limited(NamedTuple):
    """A backfill of an account that allows so many requests at once; `floor` is what that limit allows, in seconds."""

    allows: int
    seconds: float
    floor: float
    requests: int
    refused: int


class Beside(NamedTuple):
    """Runs of hot alone, and beside a backfill in another process; seconds, and the most requests at once."""

    alone: list[float]
    beside: list[float]
    most_at_once: int


def allowing(server: str, limit: int, *, calls: int, days: int, delay: float) -> Limited:
    """A backfill where Twilio answers 429 to more than `limit` requests at once."""
    options = ["--max-concurrent", str(limit)]
    with simulated_twilio(calls, days, f"{delay}s", options=options) as twilio, database_on(server) as url:
        ran = run((*RECONCILE, "--since", f"{days + 1}d", "--json"), {**twilio, "DATABASE_URL": url})
        by_outcome = ask_simulator(twilio)["by_outcome"]
        requests = sum(by_outcome.values())
        refused = by_outcome.get("429", 0)
    floor = (requests - refused) * delay / min(limit, CEILING)
    return Limited(limit, ran.seconds, floor, requests, refused)


def hot_beside_backfill(server: str, *, calls: int, days: int, runs: int) -> Beside:
    """`once hot`, by turns alone and while backfills of all calls follow one another in another process.

    Each asks a simulated Twilio of its own, with the same account. A single one makes its answers one after another:
    hot would wait until those for the backfill are made.
    """
    now = datetime.now(UTC)
    with (
        simulated_twilio(calls, days, "250ms", now=now) as hots,
        simulated_twilio(calls, days, "250ms", now=now) as backfills,
        database_on(server) as url,
    ):
        both = [{**twilio, "DATABASE_URL": url} for twilio in (hots, backfills)]
        result = Beside([], [], 0)
        _run_hot(both[0], 1)
        for _ in range(ceil(runs / _RUNS_IN_TURN)):
            result.alone.extend(_run_hot(both[0], _RUNS_IN_TURN))
            with _backfilling(both[1], days):
                _most_at_once(both)
                result.beside.extend(_run_hot(both[0], _RUNS_IN_TURN))
                result = result._replace(most_at_once=max(result.most_at_once, _most_at_once(both)))
    return result


def _run_hot(environment: Environment, times: int) -> list[float]:
    """The seconds of each run."""
    hot = (*RECONCILE, "once", "hot", "--json")
    return [run(hot, environment).result["duration_seconds"] for _ in range(times)]


def _most_at_once(environments: Sequence[Environment]) -> int:
    """The most requests at once since the last question, if all had them at the same moment."""
    return sum(ask_simulator(environment)["max_in_flight"] for environment in environments)


@contextmanager
def _backfilling(environment: Environment, days: int) -> Iterator[None]:
    """Backfills one after another, in a process each."""
    ends, begun = threading.Event(), threading.Event()

    def work() -> None:
        while not ends.is_set():
            command = (*RECONCILE, "--since", f"{days}d", "--json")
            with subprocess.Popen(command, env=dict(environment), **QUIET) as process:
                begun.set()
                while process.poll() is None and not ends.wait(0.1):
                    pass
                process.terminate()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        begun.wait()
        yield
    finally:
        ends.set()
        thread.join()


def idle_requests(server: str, *, minutes: int) -> float:
    """Requests a minute of a daemon whose account has no calls, after its first minute."""
    with (
        simulated_twilio(0, 1, "0ms", options=["--clock", "real"]) as twilio,
        database_on(server) as url,
        subprocess.Popen((*RECONCILE, "run"), env={**twilio, "DATABASE_URL": url}, **QUIET) as daemon,
    ):
        time.sleep(60)
        ask_simulator(twilio)
        time.sleep(60 * minutes)
        found = ask_simulator(twilio)["requests"]
        daemon.terminate()
    return float(found) / minutes


def first_request(server: str, *, runs: int) -> float:
    """Seconds from the start of a backfill to its first connection to Twilio; the median."""
    times = []
    with database_on(server) as url:
        for _ in range(runs):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                environment = {
                    "DATABASE_URL": url, "TWILIO_BASE_URL": f"http://127.0.0.1:{listener.getsockname()[1]}",
                    "TWILIO_ACCOUNT_SID": "AC" + 32 * "0", "TWILIO_AUTH_TOKEN": "token",
                }  # fmt: skip
                started = time.perf_counter()
                with subprocess.Popen((*RECONCILE, "--since", "1d"), env=environment, **QUIET) as process:
                    client, _ = listener.accept()
                    times.append(time.perf_counter() - started)
                    process.kill()
                    client.close()
    return statistics.median(times)

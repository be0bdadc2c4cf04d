"""How fast it is, beside a plain script and beside what cannot be undercut: `python -m tests.bench`.

Everything runs on one machine against one simulated account and one PostgreSQL, so the ratios say more than the
seconds. Prints tables and writes benchmarks.md and benchmarks.svg. Uses the server that TEST_DATABASE_URL
names (`python -m tests.servers BIN_DIR` starts one), or an embedded one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tests.bench import hot, limits, paper, sweeps
from tests.bench.processes import RECONCILE, run
from tests.bench.servers import database_on, server
from tests.bench.sweeps import Case

T = TypeVar("T")

MONTH, YEAR = 30, 365
PARTS = ("sweeps", "memory", "limits", "beside", "idle", "hot", "merge", "start")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    add = parser.add_argument
    add("--scale", type=float, default=1.0, help="of the numbers of calls in sweeps and memory; 0.1 for a short look")
    add("--runs", type=int, default=3, help="of each program; medians count")
    add("--pages", type=int, default=20, help="of each kind, merged into a table")
    add("--large", action="store_true", help="also a merge into ten million rows (an hour, 20 GB)")
    add("--tls", action="store_true", help="over HTTPS, with a certificate made for it (needs openssl)")
    add("--only", choices=PARTS, nargs="+", default=PARTS, help="measure these alone")
    add("--out", type=Path, default=Path(__file__).parents[2] / "docs", help="folder of what is written")
    args = parser.parse_args()
    with server() as url:

        def part(name: str, measure: Callable[[str, argparse.Namespace], Iterable[T]]) -> list[T]:
            return [*measure(url, args)] if name in args.only else []

        measured = paper.Measured(
            paper.conditions(url, sys.argv[1:]),
            part("sweeps", _sweeps),
            dict(part("memory", _memory)),
            part("limits", _limits),
            part("beside", _beside),
            part("idle", _idle),
            part("hot", _hot),
            dict(part("merge", _merge)),
            dict(part("start", _start)),
        )
    text = paper.as_markdown(measured)
    print(text)
    (args.out / "benchmarks.md").write_text(text)
    (args.out / "benchmarks.svg").write_text(paper.as_svg(measured.sweeps))


def _sweeps(url: str, args: argparse.Namespace) -> Iterator[sweeps.Sweep]:
    cases = (Case(100_000, MONTH, "0ms"), Case(60_000, MONTH, "250ms"), Case(60_000, MONTH, "1s"))
    for case in (*cases, Case(40_000, 1, "250ms")):
        scaled = case._replace(calls=int(case.calls * args.scale))
        _say(f"{scaled.calls:,} calls in {case.days} days, {case.delay} a page")
        is_fast = case.delay == "0ms"
        for sweep in sweeps.measure(url, scaled, runs=args.runs, tls=args.tls, more=is_fast):
            _say(f"{sweep.name}: {sweep.seconds}")
            yield sweep


def _memory(url: str, args: argparse.Namespace) -> Iterator[tuple[int, float]]:
    for calls in (int(100_000 * args.scale), int(1_000_000 * args.scale)):
        _say(f"memory of {calls:,} calls")
        yield calls, sweeps.peak_of_ours(url, calls, MONTH)


def _limits(url: str, args: argparse.Namespace) -> Iterator[limits.Limited]:
    for limit in (6, 40):
        _say(f"an account that allows {limit} requests at once")
        yield limits.allowing(url, limit, calls=int(60_000 * args.scale), days=MONTH, delay=1)


def _beside(url: str, args: argparse.Namespace) -> Iterator[limits.Beside]:
    _say("hot beside a backfill")
    yield limits.hot_beside_backfill(url, calls=int(365_000 * args.scale), days=YEAR, runs=10 * args.runs)


def _idle(url: str, _: argparse.Namespace) -> Iterator[float]:
    _say("an idle account, for six minutes")
    yield limits.idle_requests(url, minutes=5)


def _hot(url: str, args: argparse.Namespace) -> Iterator[hot.Hot]:
    for open_calls in (10, 1_000, 10_000):
        _say(f"{open_calls:,} open calls")
        yield hot.measure(url, open_calls=open_calls, runs=args.runs)


def _merge(url: str, args: argparse.Namespace) -> Iterator[tuple[int, paper.Merges]]:
    for power in range(4, 8 if args.large else 7):
        _say(f"a page into 10^{power} rows")
        with database_on(url) as database:
            command = [sys.executable, "-m", "tests.bench.merge", database, str(10**power), str(args.pages)]
            yield 10**power, run(command, {}).result


def _start(url: str, args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    for option in ("--version", "--help"):
        _say(option)
        yield option, statistics.median(run((*RECONCILE, option), {}).seconds for _ in range(15))
    _say("--since")
    yield "--since", limits.first_request(url, runs=5 * args.runs)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

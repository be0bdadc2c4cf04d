"""How fast it is, beside a plain script and beside what cannot be undercut: `python -m tests.bench`.

Everything runs on one machine against one simulated account and one PostgreSQL, so the ratios say more than the
seconds. Prints tables and writes benchmarks.md and benchmarks.svg. Uses the server that TEST_DATABASE_URL
names (`python -m tests.servers BIN_DIR` starts one), or an embedded one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench import hot, paper, sweeps
from tests.bench.processes import RECONCILE, run
from tests.bench.servers import database_on, server

DAYS = 30  # that the calls are spread over
PARTS = ("sweeps", "hot", "merge", "start")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    add = parser.add_argument
    add("--calls", type=int, default=100_000, help="of a backfill; half of them where a page takes a second")
    add("--runs", type=int, default=3, help="of each program; medians count")
    add("--pages", type=int, default=20, help="of each kind, merged into a table")
    add("--large", action="store_true", help="also a million calls, and ten million rows (an hour, 20 GB)")
    add("--tls", action="store_true", help="over HTTPS, with a certificate made for it (needs openssl)")
    add("--only", choices=PARTS, nargs="+", default=PARTS, help="measure these alone")
    add("--out", type=Path, default=Path(__file__).parents[2] / "docs", help="folder of what is written")
    args = parser.parse_args()
    with server() as url:
        measured = paper.Measured(
            paper.conditions(url, sys.argv[1:]),
            [*(_sweeps(url, args) if "sweeps" in args.only else ())],
            [*(_hot(url, args) if "hot" in args.only else ())],
            dict(_merge(url, args) if "merge" in args.only else ()),
            dict(_start() if "start" in args.only else ()),
        )
    text = paper.as_markdown(measured)
    print(text)
    (args.out / "benchmarks.md").write_text(text)
    (args.out / "benchmarks.svg").write_text(paper.as_svg(measured.sweeps))


def _sweeps(url: str, args: argparse.Namespace) -> Iterator[sweeps.Sweep]:
    plans = [(args.calls, "0ms"), (args.calls, "50ms"), (args.calls, "250ms"), (args.calls // 2, "1s")]
    if args.large:
        plans += [(1_000_000, "0ms"), (1_000_000, "50ms")]
    for calls, delay in plans:
        days = max(1, DAYS * calls // args.calls) if calls <= args.calls else DAYS
        runs = args.runs if calls <= args.calls else 1
        _say(f"{calls:,} calls, {delay} a page")
        is_fast = delay == "0ms" and calls == args.calls
        for sweep in sweeps.measure(url, calls=calls, days=days, delay=delay, runs=runs, tls=args.tls, more=is_fast):
            _say(f"{sweep.name}: {sweep.seconds}")
            yield sweep


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


def _start() -> Iterator[tuple[str, float]]:
    for option in ("--version", "--help"):
        _say(option)
        yield option, statistics.median(run((*RECONCILE, option), {}).seconds for _ in range(15))


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

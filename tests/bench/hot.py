"""One run of the hot job with many open calls, of which one in a hundred has ended since the run before."""

from __future__ import annotations

import statistics
import sys
from typing import NamedTuple

from tests.bench.processes import RECONCILE, run, serving
from tests.bench.servers import database_on

HOT = (*RECONCILE, "once", "hot", "--json")


class Hot(NamedTuple):
    """The cost of one run; seconds without the start of the program, as in the daemon."""

    open_calls: int
    ended: int
    requests: int
    seconds: float
    peak_mib: float


def measure(server: str, *, open_calls: int, runs: int) -> Hot:
    """The median of `runs` runs, each of which finds other calls ended."""
    ended = max(1, open_calls // 100)
    command = [sys.executable, "-m", "tests.bench.living", str(open_calls), str(ended)]
    with serving(command) as (twilio, process), database_on(server) as url:
        assert process.stdin is not None and process.stdout is not None
        environment = {**twilio, "DATABASE_URL": url}
        for _ in range(2):  # the first reads the day; the second knows how much is usual
            run(HOT, environment)
        all_runs = []
        for _ in range(runs):
            process.stdin.write("end\n")
            process.stdin.flush()
            process.stdout.readline()
            ran = run(HOT, environment)
            if ran.result["updated"] != ended:
                raise SystemExit(f"{ended} calls ended, and {ran.result['updated']} rows changed")
            all_runs.append(ran)
    return Hot(
        open_calls,
        ended,
        max(ran.result["requests"] for ran in all_runs),
        statistics.median(ran.result["duration_seconds"] for ran in all_runs),
        max(ran.peak_mib for ran in all_runs),
    )

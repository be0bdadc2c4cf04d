"""The measurements as Markdown, with their targets, and as a chart."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import psycopg

from reconciler import __version__
from tests.bench.hot import Hot
from tests.bench.limits import CEILING, Beside, Limited
from tests.bench.merge import KINDS, SCATTERED
from tests.bench.sweeps import AGAIN, BACKFILL, OURS, PLAIN, RAW, ROWS, Sweep
from tests.harness.present import present

Merges = Mapping[str, Sequence[float]]  # by statistics: seconds for a page of each kind of `merge.KINDS`
CONTENDERS = (OURS, PLAIN, ROWS, RAW)
BESIDE = (OURS, PLAIN)  # whose bytes and CPU are compared

# How many times as fast as the plain script: new, and again.
FASTER = {(30, "0ms"): (1.2, 2.5), (30, "250ms"): (5, 5), (30, "1s"): (8, 8), (1, "250ms"): (4, None)}


LIMITS = """\
## Limits

- A new call is two rows, the call and its event, with their indexes; the plain script writes one. That work of
  PostgreSQL is most of a backfill whose pages come at once. *floor: rows* does the same work and nothing else.
- Several connections merge at once, one for each core. Here database, program and simulated Twilio share the cores, so
  the second connection helps only where the others wait.
- Of a slice one page is under way, so that a killed run reads at most that one again. Where a page takes a second, the
  last pages of the last slices are waited for with few requests under way.
- The number of requests at once is found from below: it begins at 8 and is 16 when each place has been used once.
- A recording goes into the row of its call. So the first pages of recordings come while the last days are read, and the
  others after that.
- A busy day costs two turns before its parts are read: its first page, and the proof that Twilio counts the time.
- A second backfill decodes and compares each call, and writes none. The simulated Twilio then takes about as long as
  we do.
"""


class Measured(NamedTuple):
    """All figures, empty where not measured. `memory` MiB by calls, `merges` by rows, `start` seconds by command."""

    conditions: list[str]
    sweeps: list[Sweep]
    memory: dict[int, float]
    limits: list[Limited]
    beside: list[Beside]
    idle: list[float]
    hot: list[Hot]
    merges: dict[int, Merges]
    start: dict[str, float]


class Target(NamedTuple):
    """One target: the promise, the measurement, and whether it holds."""

    promise: str
    measured: str
    is_met: bool


def conditions(url: str, arguments: Sequence[str]) -> list[str]:
    """Return the conditions that the numbers depend on, without anything that names the machine."""
    with psycopg.connect(url) as conn:
        version = conn.info.parameter_status("server_version")
        names = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
        settings = ", ".join(
            f"{name} = {present(conn.execute(f'SHOW {name}'.encode()).fetchone())[0]}" for name in names
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    # A path says where and not what.
    command = " ".join(["python -m tests.bench", *(a for a in arguments if "/" not in a and a != "--out")])
    return [
        f"{datetime.now(UTC):%Y-%m-%d}, `{command}`",
        f"reconciler {__version__}, Python {platform.python_version()}, PostgreSQL {version} ({settings})",
        f"{os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB; database, simulated Twilio and program share them",
    ]


def targets(measured: Measured) -> Iterator[Target]:
    """The promises that these measurements can judge."""
    for sweep in measured.sweeps:
        yield from _sweep_targets(sweep)
    if len(measured.memory) > 1:
        few, many = measured.memory[min(measured.memory)], measured.memory[max(measured.memory)]
        what = f"{min(measured.memory):,} and {max(measured.memory):,} calls"
        yield Target(f"memory, {what}: ≤ 130 MiB", f"{few:.0f} and {many:.0f} MiB", max(few, many) <= 130)
        yield Target(f"memory, {what}: the same", f"{many / few:.2f} ×", many <= 1.1 * few)
    for limited in measured.limits:
        what = f"an account that allows {limited.allows} requests at once"
        ratio, refused = limited.seconds / limited.floor, limited.refused / limited.requests
        yield Target(f"{what}: ≤ 1.5 × what {min(limited.allows, CEILING)} allow", f"{ratio:.2f} ×", ratio <= 1.5)
        yield Target(f"{what}: ≤ 3 % refused", f"{refused:.1%}", refused <= 0.03)
    for beside in measured.beside:
        ratio = _p99(beside.beside) / _p99(beside.alone)
        yield Target("hot's p99 beside a backfill of a year: ≤ 1.1 × alone", f"{ratio:.2f} ×", ratio <= 1.1)
        yield Target(
            f"both together: ≤ {CEILING} requests at once", f"{beside.most_at_once}", beside.most_at_once <= CEILING
        )
    for idle in measured.idle:
        yield Target("an idle account: ≤ 4 requests a minute", f"{idle:.1f}", idle <= 4)
    for hot in measured.hot:
        if hot.open_calls == 10_000:
            promise = f"hot, 10,000 open calls of which {hot.ended} ended: ≤ 120 requests"
            yield Target(promise, str(hot.requests), hot.requests <= 120)
    if len(measured.merges) > 1:
        yield from _merge_targets(measured.merges)
    for option, most in (("--version", 0.150), ("--help", 0.200), ("--since", 0.400)):
        if option in measured.start:
            took = measured.start[option]
            what = "`--since` to its first request" if option == "--since" else f"`{option}`"
            yield Target(f"{what}: ≤ {most * 1000:.0f} ms", f"{took * 1000:.0f} ms", took <= most)


def _sweep_targets(sweep: Sweep) -> Iterator[Target]:
    seconds = sweep.seconds
    faster = seconds[PLAIN] / seconds[OURS]
    days = f"{sweep.case.days} days" if sweep.case.days > 1 else "one day"
    what = f"{sweep.name}, {sweep.calls:,} calls in {days}, {sweep.delay} a page"
    new, again = FASTER.get((sweep.case.days, sweep.delay), (None, None))
    wanted = {BACKFILL: new, AGAIN: again}.get(sweep.name)
    if wanted is not None:
        yield Target(f"{what}: ≥ {wanted} × the plain script", f"{faster:.1f} ×", faster >= wanted)
    if ROWS in seconds:
        ratio = seconds[OURS] / seconds[ROWS]
        yield Target(f"{what}: ≤ 1.5 × the floor that writes the same rows", f"{ratio:.2f} ×", ratio <= 1.5)
    if sweep.name == BACKFILL and ROWS in seconds:
        wal, disk = sweep.a_call(sweep.wal, OURS), sweep.disk[OURS] / sweep.calls
        yield Target(f"{what}: ≤ 1,500 bytes of WAL a call", f"{wal:,.0f}", wal <= 1500)
        yield Target(f"{what}: ≤ 1.2 kB on disk a call", f"{disk:,.0f} bytes", disk <= 1200)
    if sweep.name == AGAIN:
        wal = sweep.a_call(sweep.wal, OURS)
        promise = f"{what}: writes no row, and ≤ 10 bytes of WAL a call"
        yield Target(promise, f"{sweep.written} rows, {wal:.1f} bytes", not sweep.written and wal <= 10)


def _p99(times: Sequence[float]) -> float:
    return sorted(times)[-1 - len(times) // 100]


def _merge_targets(merges: Mapping[int, Merges]) -> Iterator[Target]:
    small, large = merges[min(merges)], merges[max(merges)]
    for known in large:
        # The same statistics on both sides: this is about the table's size.
        times = zip(KINDS, small[known], large[known], strict=True)
        ratio = max(b / a for kind, a, b in times if kind != SCATTERED)
        yield Target(
            f"1,000 calls into {max(merges):,} rows, statistics {known}: ≤ 1.3 × of {min(merges):,}",
            f"{ratio:.2f} ×", ratio <= 1.3,
        )  # fmt: skip


def as_markdown(measured: Measured) -> str:
    """The whole page."""
    lines = ["# Benchmarks", "", *(f"- {line}" for line in measured.conditions), ""]
    lines += [
        "Everything runs against the same simulated account, into the same server, in one run; seconds are medians,",
        "from start to end of a program. *plain script*: the SDK's `client.calls.stream` with an upsert of every",
        "call (`tests/bench/plain.py`). *floor: rows*: eight connections, and COPY of the same rows and events into",
        "tables with the same indexes, without any rule or lookup. *floor: raw*: COPY into one table without index.",
        "",
        "![calls a second](benchmarks.svg)",
        "",
    ]
    if measured.sweeps:
        lines += ["## Sweeps", ""]
        header = ("", "calls", "days", "a page takes", *(f"{who}, s" for who in CONTENDERS))
        lines += _table(
            [*header, "plain / ours", "ours / rows", "requests", "peak MiB"], [_sweep_row(s) for s in measured.sweeps]
        )
        lines += [
            "## The cost of a call",
            "",
            "The CPU of PostgreSQL is that of all its processes, checkpoints included.",
            "",
        ]
        header = ("", "calls", "a page takes", *(f"{what}, {who}" for what in _COSTS for who in BESIDE))
        lines += _table(header, [_cost_row(s) for s in measured.sweeps])
    if measured.memory:
        lines += ["## Memory", ""]
        lines += _table(["calls", "peak MiB"], [[f"{n:,}", f"{mib:.0f}"] for n, mib in measured.memory.items()])
    if measured.limits:
        lines += [
            "## Accounts that allow so many requests at once",
            "",
            "60,000 calls in 30 days; a page takes a second, so that Twilio's limit and not the CPU is what counts.",
            "",
        ]
        rows = [
            [str(m.allows), f"{m.seconds:.1f}", f"{m.floor:.1f}", str(m.requests), str(m.refused)]
            for m in measured.limits
        ]
        lines += _table(["allows", "seconds", "what that allows, s", "requests", "refused"], rows)
    for beside in measured.beside:
        lines += [
            "## Hot beside a backfill of a year",
            "",
            f"Runs of `once hot`, {len(beside.alone)} of each, by turns, 250 ms a page. Hot and backfill ask a",
            "simulated Twilio each: a single one would make their answers one after another.",
            "",
        ]
        rows = [
            [name, f"{statistics.median(times):.2f}", f"{_p99(times):.2f}"]
            for name, times in (("alone", beside.alone), ("beside", beside.beside))
        ]
        lines += _table(["", "median, s", "p99, s"], rows)
        lines += [f"Both together had {beside.most_at_once} requests under way at once at most.", ""]
    for idle in measured.idle:
        lines += ["## An account without calls", "", f"The daemon sent {idle:.1f} requests a minute.", ""]
    if measured.hot:
        lines += ["## Hot", "", "Of the open calls one in a hundred ended since the run before.", ""]
        rows = [[f"{h.open_calls:,}", str(h.ended), str(h.requests), f"{h.seconds:.2f}"] for h in measured.hot]
        lines += _table(["open calls", "ended", "requests", "seconds"], rows)
    if measured.merges:
        lines += [
            "## The merge of 1,000 calls", "",
            "Milliseconds for a page, its commit included. Its calls follow one another in time, as Twilio lists them.",
            "Those of a scattered page are any calls of the table. It has no target.", "",
        ]  # fmt: skip
        lines += _table(
            ["rows in the table", "statistics", *KINDS],
            [
                [f"{rows:,}", known, *(f"{time * 1000:.1f}" for time in times)]
                for rows, merges in measured.merges.items()
                for known, times in merges.items()
            ],
        )
    if measured.start:
        lines += ["## Start", ""]
        lines += _table(["command", "ms"], [[f"`{o}`", f"{took * 1000:.0f}"] for o, took in measured.start.items()])
    rows = [[t.promise, t.measured, "yes" if t.is_met else "**no**"] for t in targets(measured)]
    lines += ["## Targets", "", *_table(["target", "measured", "met"], rows), LIMITS]
    return "\n".join(lines).rstrip() + "\n"


def _sweep_row(sweep: Sweep) -> list[str]:
    seconds = sweep.seconds
    return [
        sweep.name, f"{sweep.calls:,}", str(sweep.case.days), _delay(sweep),
        *(f"{seconds[who]:.1f}" if who in seconds else "" for who in CONTENDERS),
        f"{seconds[PLAIN] / seconds[OURS]:.1f}", f"{seconds[OURS] / seconds[ROWS]:.2f}" if ROWS in seconds else "",
        str(sweep.requests), f"{sweep.peak_mib[OURS]:.0f}",
    ]  # fmt: skip


_COSTS = ("WAL bytes", "disk bytes", "CPU µs", "CPU µs of PostgreSQL")


def _cost_row(sweep: Sweep) -> list[str]:
    return [
        sweep.name, f"{sweep.calls:,}", _delay(sweep),
        *(f"{sweep.a_call(sweep.wal, who):,.0f}" for who in BESIDE),
        *(f"{sweep.disk[who] / sweep.calls:,.0f}" for who in BESIDE),
        *(f"{sweep.a_call(sweep.cpu, who) * 1e6:,.0f}" for who in BESIDE),
        *(f"{sweep.a_call(sweep.server_cpu, who) * 1e6:,.0f}" for who in BESIDE),
    ]  # fmt: skip


def _delay(sweep: Sweep) -> str:
    return sweep.delay.replace("ms", " ms").replace("1s", "1 s")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)] + [""]


_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 }
.few { fill: #57606a }
.c0 { fill: #1a7f37 } .c1 { fill: #bc4c00 } .c2 { fill: #6e7781 } .c3 { fill: #afb8c1 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .few { fill: #9198a1 }
  .c0 { fill: #3fb950 } .c1 { fill: #f0883e } .c2 { fill: #8b949e } .c3 { fill: #484f58 }
}
"""


def as_svg(sweeps: Sequence[Sweep]) -> str:
    """Calls a second of each contender in each sweep, as bars on one scale."""
    left, width, bar, gap, top = 250, 420, 16, 26, 64
    most = max((s.calls / t for s in sweeps for t in s.seconds.values()), default=1.0)
    parts: list[str] = ['<text x="10" y="24" class="title">Calls a second, more is better</text>']
    for number, who in enumerate(CONTENDERS):
        x = 10 + 150 * number
        parts.append(
            f'<rect class="c{number}" x="{x}" y="36" width="12" height="12"/><text x="{x + 18}" y="47">{who}</text>'
        )
    y = top
    for sweep in sweeps:
        parts.append(f'<text x="10" y="{y + 13}">{escape(sweep.name)}</text>')
        detail = f"{sweep.calls:,} calls, {sweep.delay} a page"
        parts.append(f'<text x="10" y="{y + 30}" class="few">{detail}</text>')
        for number, who in enumerate(CONTENDERS):
            if who in sweep.seconds:
                rate = sweep.calls / sweep.seconds[who]
                length = max(1, round(width * rate / most))
                parts.append(f'<rect class="c{number}" x="{left}" y="{y}" width="{length}" height="{bar - 3}"/>')
                parts.append(f'<text x="{left + length + 6}" y="{y + 11}" class="few">{rate:,.0f}</text>')
                y += bar
        y += gap
    size = f'width="{left + width + 80}" height="{y}" viewBox="0 0 {left + width + 80} {y}"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{_STYLE}</style>\n{body}\n</svg>\n'


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

"""The output of the demonstration. It fits 80 columns, needs no colours, and suits light and dark terminals.

Results go to stdout, progress to stderr. Colour only repeats what shapes and words say.
"""

from __future__ import annotations

import io
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reconciler.demo.compare import Compared, Comparison, Road, Row, State
from reconciler.errors import ExitCode
from reconciler.jobs.backfill import BackfillCounts
from reconciler.masking import mask
from reconciler.model import Gap
from reconciler.terminal import console

WIDTH: Final = 80

# The shapes of a bar, in the order in which it shows them.
_SHAPES: Final = {State.RIGHT: "█", State.INCOMPLETE: "▓", State.WRONG: "░", State.MISSING: "·"}
_PLAIN_SHAPES: Final = {State.RIGHT: "#", State.INCOMPLETE: "+", State.WRONG: "-", State.MISSING: "."}
_STYLES: Final = {State.RIGHT: "green", State.INCOMPLETE: "cyan", State.WRONG: "magenta", State.MISSING: "red"}
_MEANINGS: Final = {
    State.MISSING: "missing: no row at all",
    State.WRONG: "wrong: a status left behind",
    State.INCOMPLETE: "incomplete: no end, no price",
    State.RIGHT: "right in every field",
}
# The fields of an example, in this order; only fields that differ are shown.
_TELLING: Final = ("status", "duration", "price", "end_time")
_NEXT: Final = (
    ("export DATABASE_URL=… TWILIO_ACCOUNT_SID=… TWILIO_AUTH_TOKEN=…", ""),
    ("reconcile check", "# settings, database, Twilio, clock"),
    ("reconcile migrate", "# adds to the schema what is missing"),
    ("reconcile --since 7d --dry-run", "# what would change; writes nothing"),
    ("reconcile --since 7d", "# brings it back"),
)


class Signs(NamedTuple):
    """Signs for success, for failure, and for a line across."""

    tick: str
    cross: str
    rule: str


_SIGNS: Final = Signs("✓", "✗", "─")
_PLAIN_SIGNS: Final = Signs("*", "x", "-")


@dataclass(slots=True)
class Step:
    """One step of the demonstration; `result` is the text shown when it is done."""

    result: str = ""


class Show:
    """Prints each part of the demonstration. `out` is 80 columns wide at most; `signs` fit its encoding."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # an old locale must cost a character, not the demonstration
        self.out = Console(highlight=False)
        self.out.width = min(self.out.width, WIDTH)
        is_plain = console.is_plain(self.out)
        self._shapes = _PLAIN_SHAPES if is_plain else _SHAPES
        self.signs = _PLAIN_SIGNS if is_plain else _SIGNS

    def opening(self) -> None:
        """Say what the demonstration is."""
        self.out.print(
            Text.assemble(
                ("reconcile demo", "bold"), ": a week of calls, lost webhooks, and everything brought back.\n",
                ("Nothing of yours is touched: Twilio is simulated, the database is temporary.\n", "dim"),
            )
        )  # fmt: skip

    def opening_live(self) -> None:
        """Say what the live demonstration is."""
        self.out.print(
            Text.assemble(
                ("reconcile demo --live", "bold"), ": a living account, lost webhooks, and the daemon.\n",
                ("Nothing of yours is touched: Twilio is simulated, the database is temporary.\n", "dim"),
            )
        )  # fmt: skip

    def closing_live(self, code: ExitCode) -> None:
        """Say that everything is gone again, and what to type next."""
        if code is not ExitCode.DONE:
            self.out.print("The daemon has ended by itself: its last lines say why.", style="bold red")
            return
        self.out.print("The daemon, the simulated account and the database are gone again.\n")
        self.out.print(Text("Now with your own calls:", "bold"))
        self._next()

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show that a step is under way, then its result and how long it took."""
        step, started = Step(), time.monotonic()
        with console.err.status(f"{title} …"):
            yield step
        self._done(step.result, time.monotonic() - started)

    def before(self, road: Road, comparison: Comparison) -> None:
        """Show the rows as the webhooks left them."""
        self.out.print(
            f"    {road.lost:,} lost · {road.doubled:,} doubled · {road.late:,} late by minutes · "
            f"{road.overtaken:,} in the wrong order",
            style="dim",
        )
        self._headline("What the webhooks left behind")
        self.out.print("  They carry no price and no true times; child legs and SIP trunks send none.\n", style="dim")
        self.out.print(self._states([comparison]))
        self.out.print()
        self.out.print(self._days([comparison]))
        self.out.print(self._legend())
        self._headline("For example")
        self.out.print(_examples(comparison))

    def command(self, line: str) -> None:
        """Show the command that a user would type for the next step."""
        self.out.print(Text.assemble("\n", ("$ ", "dim"), (line, "bold")))

    def backfilled(self, summary: BackfillCounts) -> None:
        """Show the result of the backfill."""
        self._done(
            f"{summary.inserted:,} calls brought back, {summary.updated:,} put right, {summary.requests:,} requests",
            summary.seconds,
        )

    def after(
        self,
        before: Comparison,
        after: Comparison,
        *,
        gaps: Mapping[Gap, int],
        events: Mapping[str, int],
        frozen: int,
    ) -> None:
        """Show the rows before and after the backfill, and the proof."""
        self._headline("Before and after")
        self.out.print(self._states([before, after]))
        self.out.print()
        self.out.print(self._days([before, after]))
        self._headline("Proof")
        waiting = len(after.calls) - frozen
        facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=True)
        facts.add_column(style="dim", no_wrap=True)
        facts.add_column()
        for name, fact in (
            ("compared", Text.assemble(
                f"{len(after.calls):,} calls × {len(Row._fields)} fields = {after.compared:,} values: ",  # noqa: RUF001 -- times
                (f"{after.differences:,} differences", "bold red" if after.differences else "bold green"),
            )),
            ("gaps", " · ".join(f"{gaps.get(gap, 0):,} {gap.value}" for gap in Gap)),
            ("", "younger than a minute is no gap yet: the webhook may be on its way"),
            ("events", " · ".join(
                f"{events.get(f'call.{kind}', 0):,} {kind}" for kind in ("created", "status_changed", "enriched")
            )),
            ("frozen", f"{frozen:,} calls are settled for good; {waiting:,} may still change at Twilio"),
            ("money", f"{_money(before.charged)} known before, {_money(after.charged)} now"),
        ):  # fmt: skip
            facts.add_row(f"  {name}", fact)
        self.out.print(facts)

    def closing(self, *, is_right: bool, seconds: float) -> None:
        """Say how the demonstration ended, and what to type next."""
        if not is_right:
            self.out.print("\nNot every row is equal to Twilio's record: a bug, please report it.", style="bold red")
            return
        self.out.print(
            Text.assemble(
                "\n", ("Every row equals Twilio's record", "bold green"), f", after {seconds:.0f} seconds in all.\n\n",
                ("Now with your own calls:", "bold"),
            )
        )  # fmt: skip
        self._next()

    def _next(self) -> None:
        for line, remark in _NEXT:
            self.out.print(Text.assemble(f"  {line:<{34 if remark else 0}}", (remark, "dim")))

    def _done(self, result: str, seconds: float) -> None:
        row = Table.grid(expand=True, padding=(0, 1))
        row.add_column(ratio=1)
        row.add_column(justify="right", style="dim", no_wrap=True)
        row.add_row(Text.assemble((f"  {self.signs.tick} ", "green"), result), f"{seconds:.1f} s")
        self.out.print(row)

    def _headline(self, text: str) -> None:
        self.out.print(Text(f"\n{text}", "bold"))

    def _states(self, comparisons: Sequence[Comparison]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=len(comparisons) > 1, header_style="dim")
        table.add_column("", no_wrap=True, min_width=34)
        for name in ("before", "after")[: len(comparisons)]:
            table.add_column(name, justify="right", no_wrap=True, min_width=14)
        table.add_row("  calls at Twilio", *(f"{len(c.calls):,}" for c in comparisons))
        table.add_row("  rows we hold", *(f"{c.held:,}" for c in comparisons))
        for state, meaning in _MEANINGS.items():
            counts = [c.states[state] for c in comparisons]
            style = "bold green" if state is State.RIGHT else "bold"
            table.add_row(
                Text.assemble("    ", (self._shapes[state], _STYLES[state]), f" {meaning}"),
                *(Text(f"{count:,}", style if count else "dim") for count in counts),
            )
        table.add_row("  charges we know of", *(_money(c.charged) for c in comparisons))
        return table

    def _days(self, comparisons: Sequence[Comparison]) -> Table:
        """Return a table with a bar for each day and comparison, and the share of right rows in the last one."""
        table = Table(box=None, padding=(0, 1, 0, 0), show_header=False)
        for day, last in comparisons[-1].days.items():
            cells: list[Text | str] = [f"  {day:%a %d %b} "]
            for comparison in comparisons:
                cells += [self._bar(comparison.days[day], 44 // len(comparisons)), "→"]
            # The share is rounded down: 100 % means every row.
            cells[-1] = f" {last[State.RIGHT] * 100 // last.total():>3} % right"
            table.add_row(*cells)
        return table

    def _bar(self, states: Counter[State], width: int) -> Text:
        """Return a bar of `width` characters, divided in proportion to the states."""
        bar, start, counted = Text(), 0, 0
        for state in _SHAPES:
            counted += states[state]
            end = round(counted * width / states.total())
            bar.append(self._shapes[state] * (end - start), _STYLES[state])
            start = end
        return bar

    def _legend(self) -> Text:
        return Text.assemble(" " * 14, *((f"{self._shapes[s]} {s.value}   ", _STYLES[s]) for s in _SHAPES))


def _examples(comparison: Comparison) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for name in ("", "call", "", "we hold", "Twilio says"):
        table.add_column(name, no_wrap=True)
    for state in (State.MISSING, State.WRONG, State.INCOMPLETE):
        call = next((c for c in comparison.calls if c.state is state and c.theirs.price), None)
        for line in () if call is None else _example(call):
            table.add_row(*line)
    return table


def _example(call: Compared) -> Iterator[tuple[str | Text, ...]]:
    theirs = call.theirs
    people = f"{mask(theirs.from_number or '')} → {mask(theirs.to_number or '')}"
    heads = [(f"  {call.state.value}", f"{theirs.call_sid[:6]}…{theirs.call_sid[-4:]}"), ("", people), ("", "")]
    fields = [name for name in _TELLING if name in call.differing]
    for (state, title), name in zip(heads, fields, strict=False):
        ours = Text("no row" if call.ours is None else _shown(call.ours, name), "magenta")
        yield state, title, Text(name.removesuffix("_time"), "dim"), ours, Text(_shown(theirs, name), "green")


def _shown(row: Row, name: str) -> str:
    match getattr(row, name):
        case None:
            return "nothing"
        case datetime() as at:
            return f"{at:%d %b %H:%M:%S}"
        case Decimal() as price:
            return f"{price} {row.price_unit}"
        case value:
            return f"{value} s" if name == "duration" else str(value)


def _money(amount: Decimal) -> str:
    return f"{amount:,.5f} USD"

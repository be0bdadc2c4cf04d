"""The screen of the live demonstration: lines that scroll, and below them what is broken, and which key mends it.

Without a terminal the lines alone are printed, and the numbers every ten seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from rich.console import Group
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from structlog import DropEvent

from reconciler.demo.show import Show
from reconciler.demo.world import Behind
from reconciler.simulator.losses import Loss
from reconciler.terminal.log_lines import LogLines
from reconciler.wording import counted, rough, short_sids

_NUMBERS_EVERY: Final = 10.0  # seconds, where nothing can be shown in place

# By the cause in the simulator's journal.
_LOST: Final = {
    "trunk": "no webhook for {what}: a SIP trunk sends none",
    "child_leg": "no webhook for {what}: a child leg sends none",
    "chance": "webhook lost on its way: {what}",
    "alert": "webhook lost, as the Viewer has no database: {what}",
}


class Numbers(NamedTuple):
    """The numbers below the lines."""

    behind: Behind | None
    webhooks_arrived: int
    webhooks_lost: int
    gaps_filled: int


class Switch(NamedTuple):
    """One thing that can break: its present state, and the effect of its key. `turn` does it."""

    state: str
    is_broken: bool
    effect: str
    turn: Callable[[], None]


class Screen:
    """A context manager: it draws while it is open. `show` has the parts that both demonstrations share."""

    def __init__(self, show: Show) -> None:
        self._out = show.out
        self._signs = show.signs
        in_place = self._out.is_terminal and not self._out.is_dumb_terminal
        self._live = Live(console=self._out, auto_refresh=False, transient=True) if in_place else None
        self._lines = LogLines(width=lambda: self._out.width, colours=self._out.is_terminal and not self._out.no_color)
        self._printed_at = time.monotonic()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def log(self, event: Mapping[str, Any]) -> None:
        """Print an event of the daemon, as `reconcile run` does on a terminal."""
        try:
            self._out.print(Text.from_ansi(self._lines(None, "", event)))
        except DropEvent:
            return

    def lost(self, loss: Loss) -> None:
        """Print a webhook that did not arrive."""
        what = f"{'end' if loss.is_final else 'step'} of {short_sids(loss.call_sid or 'a recording')}"
        self._say(f"{self._signs.cross} {_LOST[loss.cause].format(what=what)}", "magenta")

    def turned(self, what: str) -> None:
        """Print what a key has done."""
        self._say(what, "bold")

    def draw(self, url: str, switches: Mapping[str, Switch], numbers: Numbers, *, has_keys: bool) -> None:
        """Draw what stands below the lines; without a terminal print the numbers now and then."""
        sentences = _in_words(numbers)
        if self._live is not None:
            self._live.update(self._below(url, switches, sentences, has_keys=has_keys), refresh=True)
        elif time.monotonic() - self._printed_at >= _NUMBERS_EVERY:
            self._printed_at = time.monotonic()
            for sentence in sentences:
                self._say(sentence, "")

    def _below(self, url: str, switches: Mapping[str, Switch], sentences: list[str], *, has_keys: bool) -> Group:
        grid = Table.grid(padding=(0, 2, 0, 0))
        for key, switch in switches.items():
            sign, style = (self._signs.cross, "bold red") if switch.is_broken else (self._signs.tick, "green")
            keys = [Text.assemble((f" {key} ", "reverse"), f" {switch.effect}")] if has_keys else []
            grid.add_row(Text(f"{sign} {switch.state}", style), *keys)
        end = Text.assemble(("Ctrl-C", "bold"), " ends it and leaves nothing behind")
        page = Text.assemble("Status page ", (url, "bold cyan"))
        return Group(Rule(style="dim", characters=self._signs.rule), page, *map(Text, sentences), grid, end)

    def _say(self, text: str, style: str) -> None:
        self._out.print(Text.assemble((f"{datetime.now(UTC):%H:%M:%S}", "dim"), " ", (text, style)))


def _in_words(numbers: Numbers) -> list[str]:
    behind = numbers.behind
    if behind is None:
        first = "The database does not answer."
    elif behind.missing or behind.ended_unnoticed:
        first = (
            f"{counted(behind.calls, 'call')}: {behind.missing:,} without a row, "
            f"{behind.ended_unnoticed:,} ended unnoticed, for {rough(behind.oldest_seconds)} at most"
        )
    else:
        first = f"{counted(behind.calls, 'call')} since the start; the database knows all of them"
    filled = counted(numbers.gaps_filled, "gap")
    second = f"Webhooks: {numbers.webhooks_arrived:,} arrived, {numbers.webhooks_lost:,} did not; {filled} filled"
    return [first, second]

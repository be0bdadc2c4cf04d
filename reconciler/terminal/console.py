"""The consoles for stdout and stderr, and the printing of figures."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Without a terminal a line is not wrapped, however long it is.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 1_000)


err = Console(stderr=True, highlight=False)


def is_plain(console: Console) -> bool:
    """Whether the console's encoding lacks blocks and arrows."""
    return not console.encoding.startswith("utf")


def print_figures(figures: Mapping[str, float], troubles: Mapping[str, float]) -> None:
    """Print each figure in a line, seconds to a tenth; `troubles` that are not 0 are highlighted."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, value in figures.items():
        table.add_row(name, Text(f"{value:,.1f}" if isinstance(value, float) else f"{value:,}", "" if value else "dim"))
    for name, value in troubles.items():
        style = "bold yellow" if value else "dim"
        table.add_row(Text(name, style), Text(f"{value:,}", style))
    out.print(table)

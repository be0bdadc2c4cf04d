"""The sections of what `status` and `report` print: headlines, sentences and tables."""

from __future__ import annotations

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reconciler.masking import mask
from reconciler.terminal import console
from reconciler.terminal.printing import harmless


def new_table(*names: str, right: int = 0) -> Table:
    """Return a table with headings; after the first column, `right` columns hold numbers."""
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    for place, name in enumerate(names):
        table.add_column(name, justify="right" if 1 <= place <= right else "left", overflow="fold")
    return table


def headline(text: str) -> None:
    """Print the headline of a section."""
    console.out.print(Text(f"\n{text}", "bold"))


def say(text: str) -> None:
    """Print an indented sentence."""
    console.out.print(Padding(Text(text), (0, 0, 0, 2), expand=False))


def plain(text: str | None) -> str:
    """Return foreign text without phone numbers and escape sequences."""
    return harmless(mask(text or ""), markup=False)

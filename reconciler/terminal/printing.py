"""Results on stdout, and errors on stderr.

`cli` imports this module before it knows the command. Large packages are imported only when something is printed.
"""

from __future__ import annotations

import codecs
import io
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


_REPLACED: Final = "reconciler.replace"
_IN_ASCII: Final[Mapping[str, str]] = {"→": "->", "…": "...", "—": "-", "✓": "+", "✗": "x"}
_SHORT: Final = len("2026-06-01 12:00:00")


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table with the names of the first row as headings; numbers are right-aligned, times never wrapped."""
    from rich.table import Table

    from reconciler.terminal.console import out

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, value in rows[0].items() if rows else ():
        is_short = all(len(str(row[name])) <= _SHORT for row in rows)
        side: Literal["right", "left"] = "right" if isinstance(value, int | float) else "left"
        table.add_column(name, justify=side, overflow="fold", no_wrap=is_short)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    out.print(table)


def print_headed(head: Text, text: Text, console: Console) -> None:
    """Print `text` after `head`; wrapped lines are aligned below each other."""
    from rich.table import Table

    table = Table.grid()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(head, text)
    console.print(table)


def print_json(value: object) -> None:
    """Print one JSON document; times in ISO form, money as text."""
    json.dump(
        value, sys.stdout, indent=2, default=lambda item: item.isoformat() if isinstance(item, date) else str(item)
    )
    sys.stdout.write("\n")


def harmless(value: object, *, markup: bool = True) -> str:
    """Return foreign text that is safe for a terminal: no escape sequences, and no markup for tables."""
    from rich.markup import escape

    text = "" if value is None else "".join(char if char.isprintable() else "�" for char in str(value))
    return escape(text) if markup else text


def accept_any_encoding() -> None:
    """Make stdout and stderr replace characters that their encoding lacks, instead of failing in the middle."""
    codecs.register_error(_REPLACED, _replacement)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_REPLACED)


def _replacement(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_IN_ASCII.get(char, "?") for char in error.object[error.start : error.end]), error.end


def complain(message: str, hint: str | None) -> None:
    """Print on stderr the error and what to do, without secrets and phone numbers."""
    from reconciler.masking import mask, printable, redact

    # Secrets first: a secret that is partly masked would not be found.
    lines = [("reconcile: ", "bold red", printable(mask(redact(line)))) for line in message.splitlines()]
    if hint:
        lines.append(("  → ", "cyan", printable(mask(redact(hint)))))
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        for head, style, text in lines:
            print_headed(Text(head, style), Text(text), Console(stderr=True, highlight=False))
    else:
        for head, _, text in lines:
            print(f"{head}{text}", file=sys.stderr)

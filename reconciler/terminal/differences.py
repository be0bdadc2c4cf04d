"""The differences that a dry run finds: summed up for a person, one line a field for grep, or one JSON object."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reconciler.database.decisions import Decision
from reconciler.jobs.backfill import BackfillCounts, Watcher
from reconciler.masking import mask_field

EXAMPLES: Final = 5  # of each action

_FIRST: Final = ("status", "from_number", "to_number", "start_time", "end_time", "duration", "price", "price_unit")
# By the merge's action: the mark of a line, its style, and the heading for its calls.
_ACTIONS: Final = {
    "insert": ("+", "green", "missing calls"), "update": ("~", "yellow", "calls that differ"),
    "late": ("·", "dim", "late events"), "drift": ("=", "magenta", "frozen calls that differ, and stay"),
}  # fmt: skip


class Difference(NamedTuple):
    """One field as text: our value and Twilio's. None means no value."""

    field: str
    ours: str | None
    theirs: str | None


def differences(decision: Decision, *, masked: bool) -> Iterator[Difference]:
    """Yield each field of a call that differs, the most important first; `masked` hides phone numbers."""

    def shown(field: str, value: Any) -> str | None:
        if value is None:
            return None
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
        return mask_field(field, text) if masked else text

    found = decision.fields
    for field in (*(f for f in _FIRST if f in found), *sorted(found.keys() - set(_FIRST))):
        ours, theirs = found[field]
        yield Difference(field, shown(field, ours), shown(field, theirs))


class DifferencesSummed(Watcher):
    """The form for a terminal: at the end, the number of differing calls by field, and a few examples."""

    def __init__(self, out: Console, *, masked: bool) -> None:
        self._out = out
        self._masked = masked
        self._calls: Counter[str] = Counter()
        self._fields: dict[str, Counter[str]] = defaultdict(Counter)
        self._examples: dict[str, list[Decision]] = defaultdict(list)

    def merged(self, summary: BackfillCounts, decisions: Sequence[Decision]) -> None:
        """Count what a page would change, and keep the first examples."""
        for decision in decisions:
            self._calls[decision.action] += 1
            if len(self._examples[decision.action]) < EXAMPLES:
                self._examples[decision.action].append(decision)
            for difference in differences(decision, masked=self._masked):
                self._fields[difference.field][decision.action] += 1

    def finished(self, summary: BackfillCounts) -> None:
        """Print the table and the examples; nothing if nothing differs."""
        if not self._calls:
            return
        actions = [action for action in _ACTIONS if self._calls[action]]
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("")
        for action in actions:
            table.add_column(_ACTIONS[action][2], justify="right")
        table.add_row(Text("calls", "bold"), *(Text(f"{self._calls[action]:,}", "bold") for action in actions))
        for field in (*(f for f in _FIRST if f in self._fields), *sorted(self._fields.keys() - {*_FIRST})):
            table.add_row(field, *(f"{self._fields[field][action]:,}" for action in actions))
        self._out.print(Text("Changes that a run would make; nothing was written", "bold"))
        self._out.print(table)
        for action in actions:
            self._show_examples(action)
        hidden = sum(self._calls.values()) - sum(map(len, self._examples.values()))
        if hidden:
            self._out.print(
                f"\n… {hidden:,} more: `--dry-run --all` lists each field, `--dry-run --json > diff.json` keeps them.",
                soft_wrap=False,
            )
        self._out.print()

    def _show_examples(self, action: str) -> None:
        examples, total = self._examples[action], self._calls[action]
        which = "" if total == len(examples) else f", {len(examples)} of {total:,}"
        self._out.print(Text(f"\n{_ACTIONS[action][2].capitalize()}{which}", "bold"))
        for decision in examples:
            self._out.print(self._line(decision), no_wrap=True, overflow="ellipsis")

    def _line(self, decision: Decision) -> Text:
        """Return a call in one line: its values if we have no row, else the fields that differ."""
        mark, style, _ = _ACTIONS[decision.action]
        found = list(differences(decision, masked=self._masked))
        head = Text.assemble((f"{mark} ", style), (decision.call_sid, "cyan"), "  ")
        if decision.action == "insert":
            values = {difference.field: difference.theirs or "" for difference in found}
            numbers = f"{values.get('from_number', '')} → {values.get('to_number', '')}"
            return head.append(
                f"{decision.to_status:<11}  {numbers}  {_to_the_minute(values.get('start_time'))}".rstrip()
            )
        return head.append(", ".join(f"{d.field} {d.ours or '(empty)'} → {d.theirs or '(empty)'}" for d in found))


class DifferencesListed(Watcher):
    """The form with one line for each field, printed as the differences are found.

    On a terminal the SID is in a line above its fields. Otherwise each line begins with it, for grep.
    """

    def __init__(self, out: Console, *, masked: bool) -> None:
        self._out = out
        self._masked = masked

    def merged(self, summary: BackfillCounts, decisions: Sequence[Decision]) -> None:
        """Print what a page would change."""
        if not decisions:
            return
        lines = [line for decision in decisions for line in self._lines(decision)]
        if self._out.is_terminal:
            self._out.print(Text("\n").join(lines), soft_wrap=True)
        else:  # laying many lines out takes longer than reading the calls
            self._out.file.write("".join(f"{line.plain}\n" for line in lines))

    def _lines(self, decision: Decision) -> Iterator[Text]:
        absent = "(empty)" if decision.ours else "(no row)"
        stays = "  frozen, stays" if decision.action == "drift" else ""
        head = Text(decision.call_sid, "cyan")
        if self._out.is_terminal:
            yield head
            head = Text()
        for field, ours, theirs in differences(decision, masked=self._masked):
            yield Text.assemble(
                head, f"  {field:<16}", (ours or absent, "red"), " → ", (theirs or absent, "green"), stays
            )


class JsonResult(Watcher):
    """The form for programs: one JSON object. Differences are written when found, so memory does not grow."""

    def __init__(self, *, dry_run: bool, masked: bool) -> None:
        self._dry_run = dry_run
        self._masked = masked
        self._separator = '{"differences": [\n'

    def merged(self, summary: BackfillCounts, decisions: Sequence[Decision]) -> None:
        """Write what a page would change, as members of `differences`."""
        if not self._dry_run:
            return
        for decision in decisions:
            fields = {f: {"ours": o, "twilio": t} for f, o, t in differences(decision, masked=self._masked)}
            sys.stdout.write(self._separator)
            json.dump({"call_sid": decision.call_sid, "action": decision.action, "fields": fields}, sys.stdout)
            self._separator = ",\n"

    def finished(self, summary: BackfillCounts) -> None:
        """Write the counts, and end the object."""
        if self._dry_run:
            if self._separator != ",\n":
                sys.stdout.write(self._separator)
            sys.stdout.write("],\n")
            sys.stdout.write(json.dumps(summary.as_dict(), indent=2).removeprefix("{\n"))
        else:
            json.dump(summary.as_dict(), sys.stdout, indent=2)
        sys.stdout.write("\n")


def _to_the_minute(moment: str | None) -> str:
    if not moment:
        return ""
    try:
        return f"{datetime.fromisoformat(moment):%d %b %H:%M}"
    except ValueError:
        return moment

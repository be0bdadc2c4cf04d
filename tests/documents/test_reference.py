"""docs/reference.md lists exactly what the code has."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

from reconciler.cli.main import get_parser
from reconciler.errors import ExitCode
from reconciler.jobs.registry import KINDS
from reconciler.logs import EVENTS
from reconciler.settings import Settings

REFERENCE = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")


def _table(heading: str) -> list[list[str]]:
    """The rows of the table whose first column is called `heading`."""
    after = REFERENCE.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in after.splitlines()[2:]]


def test_the_settings_table_is_the_code():
    """Every setting, its default and its meaning."""
    assert _table("setting") == [
        [f"`{f.metadata['name']}`", f.metadata["default"] or "", f.metadata["meaning"]]
        for f in dataclasses.fields(Settings)
    ]


def test_the_event_list_is_the_code():
    """Every event and its fields."""
    assert _table("event") == [[f"`{name}`", ", ".join(fields)] for name, fields in EVENTS.items()]


def test_the_exit_codes_are_the_code():
    """Every exit code is explained."""
    assert [int(code) for code, _ in _table("code")] == [int(code) for code in ExitCode]


def test_the_jobs_are_the_code():
    """Every job, once."""
    assert [job for job, _, _ in _table("job")] == [f"`{name}`" for name in KINDS]


def test_every_command_is_in_the_table_and_has_help():
    """The table has the commands of the parser."""
    (commands,) = [a for a in get_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    listed = {match[1] for row in _table("command") if (match := re.match(r"`reconcile (\w+)", row[0]))}
    assert listed == set(commands.choices)
    assert all(parser.description for parser in commands.choices.values())

"""`reconcile check`: print what was looked at, how it is, and what to do."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Final

from rich.text import Text

from reconciler.cli.wiring import database_url, read_settings
from reconciler.errors import ConfigError, ExitCode
from reconciler.status.check import check, exit_code
from reconciler.status.check_line import Check, Severity, fail
from reconciler.terminal import console
from reconciler.terminal.printing import harmless, print_headed, print_json

_STYLES: Final = {Severity.OK: "green", Severity.WARN: "bold yellow", Severity.FAIL: "bold red"}


def print_checks(args: argparse.Namespace) -> int:
    """Print each check as soon as it is made; with --json all of them at the end."""
    checks: list[Check] = []
    for item in _checks():
        checks.append(item)
        if not args.json:
            _print(item)
    if args.json:
        print_json([{key: value for key, value in c._asdict().items() if key != "exit_code"} for c in checks])
    return int(exit_code(checks))


def _print(item: Check) -> None:
    head = Text(f"{item.severity.value:<4} ", _STYLES[item.severity])
    said = Text.assemble((item.name, "bold"), f": {harmless(item.detail, markup=False)}")
    print_headed(head, said, console.out)
    if item.hint:
        print_headed(Text("     → ", "cyan"), Text(item.hint), console.out)


def _checks() -> Iterator[Check]:
    try:
        settings = read_settings()
    except ConfigError as exc:
        for line in str(exc).splitlines():
            yield fail("settings", line, exc.hint, ExitCode.CONFIG)
    else:
        yield from check(settings, database_url=lambda: database_url(settings), environ=os.environ)

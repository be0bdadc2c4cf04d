"""`reconcile check`: prints the result of each check, and what to do."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from typing import Final

from rich.text import Text

from reconciler.cli.wiring import database_url, read_settings
from reconciler.errors import ConfigError, ExitCode
from reconciler.status.check import check, exit_code
from reconciler.status.check_line import Check, Severity, fail
from reconciler.terminal import console
from reconciler.terminal.printing import harmless, print_headed, print_json
from reconciler.wording import counted

_STYLES: Final = {Severity.OK: "green", Severity.WARN: "bold yellow", Severity.FAIL: "bold red"}


def print_checks(args: argparse.Namespace) -> int:
    """Print each result as soon as it is there; with --json all of them at the end, with --nagios one line."""
    checks: list[Check] = []
    if args.nagios:
        checks = list(_checks())
        print(nagios_line(checks))
        return nagios_code(checks)
    for item in _checks():
        checks.append(item)
        if not args.json:
            _print(item)
    if args.json:
        print_json([{key: value for key, value in c._asdict().items() if key != "exit_code"} for c in checks])
    return int(exit_code(checks))


def nagios_code(checks: Sequence[Check]) -> int:
    """Return 0 OK, 1 WARNING, 2 CRITICAL, or 3 UNKNOWN if the settings cannot be read.

    (https://nagios-plugins.org/doc/guidelines.html#AEN78)
    """
    if any(item.severity is Severity.FAIL and item.name == "settings" for item in checks):
        return 3
    severities = {item.severity for item in checks}
    return 2 if Severity.FAIL in severities else 1 if Severity.WARN in severities else 0


def nagios_line(checks: Sequence[Check]) -> str:
    """Return the problems in one line, failures first; without problems the number of checks."""
    word = ("OK", "WARNING", "CRITICAL", "UNKNOWN")[nagios_code(checks)]
    wrong = sorted((c for c in checks if c.severity is not Severity.OK), key=lambda c: c.severity is not Severity.FAIL)
    summary = "; ".join(f"{c.name}: {c.detail}" for c in wrong) or counted(len(checks), "check")
    return harmless(f"RECONCILER {word} - {summary}", markup=False).replace("|", "/")  # a | begins the performance data


def _print(item: Check) -> None:
    head = Text(f"{item.severity.value:<4} ", _STYLES[item.severity])
    line = Text.assemble((item.name, "bold"), f": {harmless(item.detail, markup=False)}")
    print_headed(head, line, console.out)
    if item.hint:
        print_headed(Text("     → ", "cyan"), Text(item.hint), console.out)


def _checks() -> Iterator[Check]:
    try:
        settings = read_settings(quietest="error")  # a repeated request shows in the result of its check
    except ConfigError as exc:
        for line in str(exc).splitlines():
            yield fail("settings", line, exc.hint, ExitCode.CONFIG)
    else:
        yield from check(settings, database_url=lambda: database_url(settings), environ=os.environ)

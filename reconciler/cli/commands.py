"""Every command of `reconcile`: its name, its arguments, its summary, and the function that runs it.

Each function here imports its command when it runs, so that `--version` and `--help` answer at once.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable
from typing import Any, Final, NamedTuple


class Argument(NamedTuple):
    """One argument for `ArgumentParser.add_argument`. Arguments of the same `group` exclude each other."""

    names: tuple[str, ...]
    settings: dict[str, Any]
    group: str | None = None

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Add the argument to a parser."""
        parser.add_argument(*self.names, **self.settings)


class Command(NamedTuple):
    """A command, or a group of `commands`. `run` returns the exit code."""

    name: str
    run: Callable[[Namespace], int]
    summary: str
    arguments: tuple[Argument, ...] = ()
    commands: tuple[Command, ...] = ()


def argument(*names: str, group: str | None = None, **settings: Any) -> Argument:
    """Return an argument, written as for `ArgumentParser.add_argument`."""
    return Argument(names, settings, group)


def backfill(args: Namespace) -> int:
    """Read every call of a window."""
    from reconciler.cli.backfill import backfill_window

    return backfill_window(args)


def advise(args: Namespace) -> int:
    """Print what to do next."""
    from reconciler.cli.advice import advise

    return advise(args)


def _migrate(args: Namespace) -> int:
    from reconciler.cli.schema import migrate

    return migrate(args)


def _rollback(args: Namespace) -> int:
    from reconciler.cli.schema import rollback

    return rollback(args)


def _verify(args: Namespace) -> int:
    from reconciler.cli.schema import verify

    return verify(args)


def _check(args: Namespace) -> int:
    from reconciler.cli.check import print_checks

    return print_checks(args)


def run_daemon(args: Namespace) -> int:
    """Run the daemon until a signal stops it."""
    from reconciler.cli.jobs import run

    return run(args)


def _once(args: Namespace) -> int:
    from reconciler.cli.jobs import once

    return once(args)


def _inbox_list(args: Namespace) -> int:
    from reconciler.cli.inbox import list_letters

    return list_letters(args)


def _inbox_show(args: Namespace) -> int:
    from reconciler.cli.inbox import show

    return show(args)


def _inbox_replay(args: Namespace) -> int:
    from reconciler.cli.inbox import replay

    return replay(args)


def _status(args: Namespace) -> int:
    from reconciler.cli.status import print_status

    return print_status(args)


def _report(args: Namespace) -> int:
    from reconciler.cli.report import print_report

    return print_report(args)


def _why(args: Namespace) -> int:
    from reconciler.cli.why import print_why

    return print_why(args)


def _call(args: Namespace) -> int:
    from reconciler.cli.call import show

    return show(args)


def _demo(args: Namespace) -> int:
    from reconciler.cli.demo import show

    return show(args)


def _files(args: Namespace) -> int:
    from reconciler.cli.files import write_files

    return write_files(args)


def _completion(args: Namespace) -> int:
    from reconciler.cli.reference import print_completion

    return print_completion(args)


def _man(args: Namespace) -> int:
    from reconciler.cli.reference import print_man

    return print_man(args)


def _row_number(text: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= 19 and int(text) < 2**63:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not the number of a row")


_JOBS: Final = {
    "hot": "new calls, and open ones that ended",
    "warm": "fields that Twilio fills after a call's end, above all the price",
    "cold": "every call of the last days, and the proof of it",
    "freeze": "ended calls past their deadline, which then freeze",
    "inbox": "webhooks that the Viewer's worker left",
    "housekeeping": "sizes, and inbox rows and events past their retention",
    "recordings": "recordings whose callbacks were lost",
    "webhooks": "causes of lost webhooks: Twilio's alerts, and where numbers send them",
}
_JSON: Final = argument("--json", action="store_true", help="print the result as JSON")
_ACCOUNT: Final = argument("--account", metavar="AC…", help="only this account (default: RECONCILER_ACCOUNTS)")

# The options without a command.
BACKFILL: Final = (
    argument(
        "--since", metavar="WHEN", help="read every call since then: 90m, 24h, 7d, 2w, a date or an ISO time (UTC)"
    ),
    argument("--until", metavar="WHEN", help="and before this moment, in the same forms (default: now)"),
    _ACCOUNT,
    argument("--dry-run", action="store_true", help="print the changes, field by field, and write nothing"),
    argument("--all", action="store_true", help="with --dry-run: list every field, also on a terminal"),
    argument(
        "--fleet", action="store_true", help="let the daemons of the fleet read (RECONCILER_ENGINE=procrastinate)"
    ),
    _JSON,
)

COMMANDS: Final = (
    Command("migrate", _migrate, "bring the database's schema up to this version", (
        argument("--dry-run", action="store_true", help="show the migrations to apply, and the locks they take"),
        _JSON,
    )),
    Command("rollback", _rollback, "undo migrations, newest first", (
        argument("--to", type=int, metavar="N", help="undo all after migration N; -1: all (default: the newest one)"),
        argument("--drop-data", action="store_true", help="also drop tables that hold rows"),
        argument("--engine", action="store_true", help="drop the engine's schema instead; no run is lost"),
    )),
    Command("verify", _verify, "compare the schema itself, not the ledger, with the schema of this version", (
        argument("--explain", action="store_true", help="also ask the planner whether our queries use their indexes"),
        _JSON,
    )),
    Command(
        "check", _check,
        "check settings, database, schema, privileges, clocks, Twilio credentials, and the state of the work",
        (
            argument("--json", group="form", action="store_true", help="print the result as JSON"),
            argument(
                "--nagios", group="form", action="store_true",
                help="print one line, and exit 0 (OK), 1 (WARNING), 2 (CRITICAL) or 3 (UNKNOWN)",
            ),
        ),
    ),
    Command(
        "run", run_daemon,
        "run the daemon: it applies migrations, then runs every job by its schedule",
    ),
    Command("once", _once, "run one job once, now", (
        argument("job", choices=_JOBS, metavar="JOB", help="the job; see below"),
        _ACCOUNT,
        argument("--from", dest="from_", metavar="WHEN", help="hot, warm: read from then on, and ignore the cursor"),
        _JSON,
    )),
    Command("inbox", _inbox_list, "list, show or replay webhooks and records that could not be read", commands=(
        Command("list", _inbox_list, "list the dead letters, newest first, with their reasons", (_JSON,)),
        Command("show", _inbox_show, "show one row of the inbox; RECONCILER_LOG_PII=plain shows phone numbers", (
            argument("id", type=_row_number, metavar="ID", help="the row's number, as `list` shows it"),
            _JSON,
        )),
        Command("replay", _inbox_replay, "read dead letters again with today's code; exit 1 if one stays", (
            argument("ids", type=_row_number, metavar="ID", nargs="*", help="the numbers of dead letters"),
            argument("--all", action="store_true", help="all dead letters"),
            _JSON,
        )),
    )),
    Command(
        "status", _status,
        "show leader, jobs, lag, calls, inbox, proven days, recordings and sizes; `check` judges them",
        (
            argument("--json", group="form", action="store_true", help="print the result as JSON"),
            argument(
                "--watch", group="form", metavar="EVERY", nargs="?", const="5s",
                help="show it again every 5s, or at the given interval, until Ctrl-C",
            ),
        ),
    ),
    Command("report", _report, "show completeness and cost per account and day, and the gaps that webhooks left", (
        argument("--since", metavar="WHEN", default="30d", help="from the UTC day of then on (default: 30d)"),
        argument("--json", group="form", action="store_true", help="print the result as JSON"),
        argument(
            "--html", group="form", metavar="FILE",
            help="write the status page to FILE (without --since); -: to stdout",
        ),
    )),
    Command("why", _why, "show why webhooks lost calls: by cause, each with the next step", (
        argument("--since", metavar="WHEN", default="24h", help="gaps that jobs found since then (default: 24h)"),
        argument("--account", metavar="AC…", help="only this account (default: all)"),
        _JSON,
    )),
    Command("call", _call, "show one call: our row, Twilio's record, its events; exit 1 if row and record differ", (
        argument("call_sid", metavar="CA…", help="the call's SID"),
        argument("--repair", action="store_true", help="make the row equal to Twilio's record; print what changed"),
        argument(
            "--thaw", action="store_true", help="let Twilio's record win over a frozen row"
        ),
        argument("--account", metavar="AC…", help="ask this account (default: the row's, else TWILIO_ACCOUNT_SID)"),
        _JSON,
    )),
    Command("demo", _demo, "see everything at once: an embedded database and a simulated Twilio that loses webhooks", (
        argument("--live", action="store_true", help="until Ctrl-C: show the daemon, its page, keys that break things"),
    )),
    Command("files", _files, "write units, environment, grants, alert rules, dashboard and runbook into a folder", (
        argument("folder", metavar="DIR", help="the folder; a file in it that differs stays as it is"),
    )),
    Command("completion", _completion, "print a script that completes commands in a shell", (
        argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish"),
    )),
    Command("man", _man, "print the man page: reconcile man > m.1 && man -l m.1"),
)  # fmt: skip

"""The command line: arguments to one command of `commands`, and what it raises to an exit code.

Results go to stdout, logs and progress to stderr. A command is imported when it runs, so that `--version` and `--help`
answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from textwrap import fill
from typing import Any, Final, NoReturn

from reconciler import __version__
from reconciler.errors import EXIT_MEANINGS, ExitCode, ReconcilerError, UsageError
from reconciler.terminal.printing import accept_any_encoding, complain

Command = Callable[[argparse.Namespace], int]

_BACKFILL: Final = "backfill.backfill_window"
_DAEMON: Final = "jobs.run"
_ADVICE: Final = "advice.advise"

_JOBS = {
    "hot": "new calls, and open ones that ended",
    "warm": "what comes after a call's end, its price above all",
    "cold": "every call of the last days, and the proof of it",
    "freeze": "calls that nothing more is expected of",
    "inbox": "webhooks that the Viewer's worker left",
    "housekeeping": "sizes, and inbox rows past their retention",
}


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        # An abbreviation that works today would end with the next option that begins alike.
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(ExitCode.USAGE, f"{self.prog}: {message}\n")


def _options() -> argparse.ArgumentParser:
    """What may be said without a command."""
    parser = _Parser(prog="reconcile", add_help=False)
    parser.add_argument("--version", action="version", version=f"reconciler {__version__}")
    backfill = parser.add_argument_group("one-off backfill")
    backfill.add_argument(
        "--since", metavar="WHEN", help="read every call since: 90m, 24h, 7d, 2w, a date or an ISO time (UTC)"
    )
    backfill.add_argument("--until", metavar="WHEN", help="and before: as above (default: now)")
    backfill.add_argument("--account", metavar="AC…", help="of this account (default: RECONCILER_ACCOUNTS)")
    backfill.add_argument(
        "--dry-run", action="store_true", help="print what would change, field by field, and write nothing"
    )
    backfill.add_argument("--all", action="store_true", help="with --dry-run: list every field, also on a terminal")
    backfill.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=_BACKFILL)
    return parser


def _epilog() -> str:
    codes = (
        fill(meaning, 78, initial_indent=f"{int(code):>5}  ", subsequent_indent=" " * 7)
        for code, meaning in EXIT_MEANINGS.items()
    )
    return "\n".join((
        "exit codes:", *codes, "",
        "Settings are read from the environment; docs/reference.md and `reconcile man` list",
        "them. Without arguments it says what to do next. To see it work with nothing",
        "set: reconcile demo",
    ))  # fmt: skip


def get_parser() -> argparse.ArgumentParser:
    """The whole command line; pure."""
    parser = _Parser(
        prog="reconcile",
        description="Makes the Twilio Call Viewer's database equal to what Twilio says.",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_options()],
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run: str, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(run=run)
        return sub

    migrate = command("migrate", "schema.migrate", "bring the database's schema up to this version")
    migrate.add_argument("--dry-run", action="store_true", help="show what would be applied, and which locks it takes")
    migrate.add_argument("--json", action="store_true", help="print the result as JSON")
    rollback = command("rollback", "schema.rollback", "undo migrations, newest first")
    rollback.add_argument(
        "--to", type=int, metavar="N", help="undo all after migration N; -1: all (default: undo the newest one)"
    )
    rollback.add_argument("--drop-data", action="store_true", help="also drop tables that hold rows")
    verify = command("verify", "schema.verify", "compare the schema itself with what this version needs")
    verify.add_argument(
        "--explain", action="store_true", help="also ask the planner whether our queries use their indexes"
    )
    verify.add_argument("--json", action="store_true", help="print the result as JSON")
    check = command(
        "check",
        "check.print_checks",
        "check settings, database, schema, privileges, clocks, Twilio credentials, and how the work goes",
    )
    check.add_argument("--json", action="store_true", help="print the result as JSON")
    command("run", "jobs.run", "the daemon: apply migrations, then run every job by its schedule (what systemd starts)")
    once = command("once", "jobs.once", "run one job once, now")
    once.add_argument("job", choices=_JOBS, metavar="JOB", help=" · ".join(f"{j}: {t}" for j, t in _JOBS.items()))
    once.add_argument("--account", metavar="AC…", help="of this account (default: RECONCILER_ACCOUNTS)")
    once.add_argument(
        "--from", dest="from_", metavar="WHEN", help="hot, warm: read on from then, wherever the cursor is"
    )
    once.add_argument("--json", action="store_true", help="print the result as JSON")
    inbox = command("inbox", "inbox.list_letters", "webhooks and records that could not be read: list, show, replay")
    commands_of_inbox = inbox.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, run, summary in (
        ("list", "inbox.list_letters", "list the dead letters, newest first, with their reasons"),
        ("show", "inbox.show", "show one row of the inbox; numbers masked unless RECONCILER_LOG_PII=plain"),
        ("replay", "inbox.replay", "read dead letters again with today's code; exit 1 if one stays"),
    ):
        sub = commands_of_inbox.add_parser(name, help=summary, description=summary)
        sub.set_defaults(run=run)
        if name == "show":
            sub.add_argument("id", type=_row_number, metavar="ID", help="its number, as `list` shows it")
        if name == "replay":
            sub.add_argument("ids", type=_row_number, metavar="ID", nargs="*", help="their numbers")
            sub.add_argument("--all", action="store_true", help="all of them")
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
    status = command(
        "status", "status.print_status",
        "jobs, lag, open calls, inbox, proven days, table sizes; exit 0 whatever it shows (`check` judges)",
    )  # fmt: skip
    status.add_argument("--json", action="store_true", help="print the result as JSON")
    report = command(
        "report", "status.print_report", "completeness per account and day, gaps by kind: what webhooks lost"
    )
    report.add_argument("--since", metavar="WHEN", default="30d", help="from the UTC day of then on (default: 30d)")
    form = report.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the result as JSON")
    form.add_argument(
        "--html", metavar="FILE", help="write the status page, whatever --since says, to FILE; -: to stdout"
    )
    call = command(
        "call", "call.show", "one call: our row, Twilio's record, its events; exit 1 if row and record differ"
    )
    call.add_argument("call_sid", metavar="CA…", help="its SID")
    call.add_argument(
        "--thaw", action="store_true", help="if it is frozen, let Twilio's record win; it freezes again if complete"
    )
    call.add_argument("--json", action="store_true", help="print the result as JSON")
    command(
        "demo", "demo.show", "see everything at once: an embedded database and a simulated Twilio that loses webhooks"
    )
    completion = command(
        "completion", "reference.print_completion", "print a script that completes commands in a shell"
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")
    completion.set_defaults(parser=parser)
    man = command("man", "reference.print_man", "print the man page: reconcile man > m.1 && man -l m.1")
    man.set_defaults(parser=parser)
    return parser


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C came first: psycopg then cancels what runs, and what comes of that must not hide it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    accept_any_encoding()
    argv = sys.argv[1:] if argv is None else argv
    parser = get_parser()
    if argv and argv[0].startswith("-") and not {"-h", "--help"} & {*argv}:
        # Else argparse would take `--sinse 7d` for a command 7d, and roll back on `--dry-run rollback`.
        unknown = _options().parse_known_args(argv)[1]
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)} (options come after their command)")
    args = parser.parse_args(argv)
    try:
        if not argv:
            return load_command(_ADVICE)(args)
        if args.run == _BACKFILL and args.since is None:
            raise UsageError("neither a command nor --since was given", hint="`reconcile --help` lists both")
        return load_command(args.run)(args)
    except (ReconcilerError, KeyboardInterrupt) as exc:
        if isinstance(exc, ReconcilerError) and not _was_interrupted(exc):
            _report(exc, is_daemon=args.run == _DAEMON)
            return int(exc.exit_code)
        complain("interrupted", None)
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not complain while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.DONE)
    except Exception as exc:
        import structlog

        from reconciler import logs

        if not structlog.is_configured():
            logs.configure(form="auto", level="info", pii="masked")
        logs.get_logger(__name__).exception("program.failed", kind=type(exc).__name__)
        complain(f"a bug: {type(exc).__name__}", "please report it with the log line above")
        return int(ExitCode.BUG)


def _report(error: ReconcilerError, *, is_daemon: bool) -> None:
    """Say why the command failed: as a line of the log where that is JSON for a program, else to a person."""
    form = os.environ.get("RECONCILER_LOG_FORMAT", "").strip().lower()
    if form != "json" and (not is_daemon or form == "console" or sys.stderr.isatty()):
        complain(str(error), error.hint)
        return
    import structlog

    from reconciler import logs

    if not structlog.is_configured():  # the settings themselves are wrong
        logs.configure(form="json", level="info", pii="masked")
    log, why = logs.get_logger(__name__), {"error": str(error), "kind": type(error).__name__, "hint": error.hint}
    if is_daemon:
        log.error("daemon.failed", **why)
    else:
        log.error("command.failed", **why)


def load_command(name: str) -> Command:
    """Import the command that the parser calls `module.function`."""
    module, function = name.split(".")
    command: Command = getattr(import_module(f"reconciler.cli.{module}"), function)
    return command


def _row_number(text: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= 19 and int(text) < 2**63:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not the number of a row")

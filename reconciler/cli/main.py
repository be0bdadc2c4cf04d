"""The command line: arguments become a call of a command, and its errors become an exit code.

Results go to stdout, logs and progress to stderr.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from textwrap import fill
from typing import Any, NoReturn

from reconciler import __version__
from reconciler.cli.commands import BACKFILL, COMMANDS, Command, advise, backfill, run_daemon
from reconciler.cli.heap import share_one_heap
from reconciler.errors import EXIT_MEANINGS, ExitCode, ReconcilerError, UsageError
from reconciler.terminal.printing import accept_any_encoding, complain


class _Help(argparse.HelpFormatter):
    """Wraps the summary of a command, and leaves the list below its options as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        # An abbreviation that works today would fail with the next option that begins alike.
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self._refuse(message)

    def _refuse(self, message: str, step: str = "") -> NoReturn:
        columns = shutil.get_terminal_size().columns if sys.stderr.isatty() else 1_000
        said = fill(f"{self.prog}: {message}", columns, subsequent_indent="  ", break_on_hyphens=False)
        self.exit(ExitCode.USAGE, f"{said}\n{step}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is no choice. If one choice is similar, the error names it."""
        if action.choices is None or value in action.choices:
            return
        alike = get_close_matches(str(value), [str(choice) for choice in action.choices], n=1)
        what = "job" if action.metavar == "JOB" else "shell" if action.metavar == "SHELL" else "command"
        suggestion = f"; did you mean `{self.prog} {alike[0]}`?" if alike else ""
        self._refuse(f"{str(value)!r} is no {what}{suggestion}", f"  → all of them: `{self.prog} --help`\n")


def _options() -> argparse.ArgumentParser:
    """Return the parser of the options without a command."""
    parser = _Parser(prog="reconcile", add_help=False)
    parser.add_argument("--version", action="version", version=f"reconciler {__version__}")
    group = parser.add_argument_group("one-off backfill")
    for argument in BACKFILL:
        argument.add_to(group)
    parser.set_defaults(run=backfill)
    return parser


def _epilog() -> str:
    codes = (
        fill(meaning, 78, initial_indent=f"{int(code):>5}  ", subsequent_indent=" " * 7)
        for code, meaning in EXIT_MEANINGS.items()
    )
    return "\n".join((
        "exit codes:", *codes, "",
        "Settings come from the environment; docs/reference.md and `reconcile man` list",
        "them. `reconcile` alone says what to do next. To see it work without settings:",
        "reconcile demo",
    ))  # fmt: skip


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; pure."""
    parser = _Parser(
        prog="reconcile",
        description="Makes the Twilio Call Viewer's database equal to Twilio.",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_options()],
    )
    _add_commands(parser, parser, COMMANDS)
    return parser


def _add_commands(root: argparse.ArgumentParser, parser: argparse.ArgumentParser, commands: Sequence[Command]) -> None:
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=parser is not root)
    for command in commands:
        sub = subparsers.add_parser(
            command.name, help=command.summary, description=command.summary, epilog=_choices_of(command),
            formatter_class=_Help,
        )  # fmt: skip
        sub.set_defaults(run=command.run, parser=root)
        groups: dict[str, argparse._ActionsContainer] = {}
        for argument in command.arguments:
            if argument.group is not None and argument.group not in groups:
                groups[argument.group] = sub.add_mutually_exclusive_group()
            argument.add_to(sub if argument.group is None else groups[argument.group])
        if command.commands:
            _add_commands(root, sub, command.commands)


def _choices_of(command: Command) -> str | None:
    """Return the list of what an argument of the command may be, if each choice has a meaning of its own."""
    for argument in command.arguments:
        choices = argument.settings.get("choices")
        if isinstance(choices, Mapping):
            widest = max(map(len, choices)) + 4
            lines = (
                fill(meaning, 78, initial_indent=f"  {choice}".ljust(widest), subsequent_indent=" " * widest)
                for choice, meaning in choices.items()
            )
            return "\n".join((f"{argument.settings['metavar']} is one of:", *lines))
    return None


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C caused the error: psycopg then cancels the statement, and that error must not hide Ctrl-C."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    # A page is thousands of objects without cycles. By default they start a collection after every 700.
    gc.set_threshold(10_000)
    accept_any_encoding()
    argv = sys.argv[1:] if argv is None else argv
    parser = get_parser()
    if argv and argv[0].startswith("-") and not {"-h", "--help"} & {*argv}:
        # Otherwise argparse would take `--sinse 7d` for a command 7d, and would roll back on `--dry-run rollback`.
        unknown = _options().parse_known_args(argv)[1]
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)} (options come after their command)")
    args = parser.parse_args(argv)
    try:
        if not argv:
            return advise(args)
        if args.run is backfill and args.since is None:
            raise UsageError("neither a command nor --since was given", hint="`reconcile --help` lists both")
        share_one_heap()
        run: Callable[[argparse.Namespace], int] = args.run
        return run(args)
    except (ReconcilerError, KeyboardInterrupt) as exc:
        if isinstance(exc, ReconcilerError) and not _was_interrupted(exc):
            _report(exc, is_daemon=args.run is run_daemon)
            return int(exc.exit_code)
        complain("interrupted", None)
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has closed the pipe. The interpreter must not fail while flushing at exit.
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
    """Report why the command failed: in the log if that is JSON for a program, else on stderr for a person."""
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

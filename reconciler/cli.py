"""Arguments to one call of the modules that do the work, and its outcome to an exit code.

Results go to stdout, logs and progress to stderr. Nothing heavy is imported before a command needs it, so that
`--version` and `--help` answer at once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

from reconciler import __version__
from reconciler.errors import ConfigError, ExitCode, ReconcilerError, SchemaError, UsageError

if TYPE_CHECKING:
    from reconciler.backfill import Summary
    from reconciler.config import Settings
    from reconciler.db import Connection

_EPILOG = """\
exit codes: 0 done · 1 done, but something could not be reconciled (dead letters, drift; with --dry-run:
differences found) · 64 usage · 69 database or Twilio unavailable · 70 a bug · 75 try again (the job is held by
another process, slices failed) · 77 refused (credentials, privileges) · 78 configuration · 130 interrupted

Settings are read from the environment; README.md lists them. To see it work with nothing set: reconcile demo
"""


_LISTED = 50  # dead letters
_PLANNED = {"applied": "apply", "adopted": "adopt"}


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
    backfill.add_argument("--account", metavar="AC…", help="of this account (default: TWILIO_ACCOUNT_SID)")
    backfill.add_argument(
        "--dry-run", action="store_true", help="print what would change, field by field, and write nothing"
    )
    backfill.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=_backfill)
    return parser


def get_parser() -> argparse.ArgumentParser:
    """The whole command line; pure."""
    parser = _Parser(
        prog="reconcile",
        description="Makes the Twilio Call Viewer's database equal to what Twilio says.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_options()],
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(run=run)
        return sub

    migrate = command("migrate", _migrate, "bring the database's schema up to this version")
    migrate.add_argument("--dry-run", action="store_true", help="show what would be applied, and which locks it takes")
    migrate.add_argument("--json", action="store_true", help="print the result as JSON")
    rollback = command("rollback", _rollback, "undo migrations, newest first")
    rollback.add_argument(
        "--to", type=int, metavar="N", help="undo all after migration N; -1: all (default: undo the newest one)"
    )
    rollback.add_argument("--drop-data", action="store_true", help="also drop tables that hold rows")
    verify = command("verify", _verify, "compare the schema itself with what this version needs")
    verify.add_argument(
        "--explain", action="store_true", help="also ask the planner whether our queries use their indexes"
    )
    verify.add_argument("--json", action="store_true", help="print the result as JSON")
    check = command("check", _check, "check settings, database, privileges, schema, Twilio credentials and the clock")
    check.add_argument("--json", action="store_true", help="print the result as JSON")
    once = command("once", _once, "run one job once: inbox settles the webhooks that the Viewer's worker left")
    once.add_argument("job", choices=["inbox"], metavar="JOB", help="inbox")
    once.add_argument("--json", action="store_true", help="print the result as JSON")
    inbox = command("inbox", _inbox_list, "webhooks and records that could not be read: list, show, replay")
    commands_of_inbox = inbox.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, run, summary in (
        ("list", _inbox_list, "list the dead letters, newest first, with their reasons"),
        ("show", _inbox_show, "show one row of the inbox; numbers masked unless RECONCILER_LOG_PII=plain"),
        ("replay", _inbox_replay, "read dead letters again with today's code; exit 1 if one stays"),
    ):
        sub = commands_of_inbox.add_parser(name, help=summary, description=summary)
        sub.set_defaults(run=run)
        if name == "show":
            sub.add_argument("id", type=_row_number, metavar="ID", help="its number, as `list` shows it")
        if name == "replay":
            sub.add_argument("ids", type=_row_number, metavar="ID", nargs="*", help="their numbers")
            sub.add_argument("--all", action="store_true", help="all of them")
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
    command("demo", _demo, "see everything at once: an embedded database and a simulated Twilio that loses webhooks")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = get_parser()
    if argv and argv[0].startswith("-") and not {"-h", "--help"} & {*argv}:
        # Else argparse would take `--sinse 7d` for a command 7d, and roll back on `--dry-run rollback`.
        unknown = _options().parse_known_args(argv)[1]
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)} (options come after their command)")
    args = parser.parse_args(argv)
    try:
        run: Callable[[argparse.Namespace], int] = args.run
        return int(run(args))
    except ReconcilerError as exc:
        _complain(str(exc), exc.hint)
        return int(exc.exit_code)
    except KeyboardInterrupt:
        _complain("interrupted", None)
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
        _complain(f"a bug: {type(exc).__name__}", "please report it with the log line above")
        return int(ExitCode.BUG)


def _backfill(args: argparse.Namespace) -> int:
    if args.since is None:
        get_parser().print_help(sys.stderr)
        _complain("neither a command nor --since was given", None)
        return int(ExitCode.USAGE)
    asked_at = datetime.now(UTC)
    since, until = _moment(args.since, "--since", asked_at), asked_at
    if args.until is not None:
        until = _moment(args.until, "--until", asked_at)
    if until > asked_at:
        raise UsageError(f"--until {args.until} lies in the future", hint="leave --until out to read up to now")
    if since >= until:
        end = "now" if args.until is None else f"--until {args.until}"
        raise UsageError(f"--since {args.since} is not before {end}")
    settings = _settings()
    credentials = settings.credentials()

    from reconciler.backfill import Window, backfill, clamp, job_name
    from reconciler.pacing import Pacer
    from reconciler.source import Source
    from reconciler.store import Rules, Store
    from reconciler.terminal import watching
    from reconciler.wire import ACCOUNT_SID

    account = credentials.account_sid if args.account is None else args.account
    if not ACCOUNT_SID.fullmatch(account):
        raise UsageError("--account must be AC and 32 hexadecimal digits")
    since = clamp(since, now=asked_at)
    url = _database_url(settings)
    _prepare_schema(url, migrate=not args.dry_run)
    window = Window(account, since, until, {"since": args.since, "until": args.until})
    rules = Rules(settings.webhook_grace, settings.freeze_after)
    with _stop_on_signal() as stop:
        source = Source(credentials, pacer=Pacer(settings.max_concurrency), stop=stop)
        try:
            with (
                Store(url, job=job_name(account), rules=rules, lock=not args.dry_run) as store,
                watching(as_json=args.json, dry_run=args.dry_run, masked=settings.log_pii == "masked") as watcher,
            ):
                summary = backfill(
                    window, source=source, store=store, watcher=watcher, concurrency=settings.max_concurrency,
                    stop=stop, dry_run=args.dry_run,
                )  # fmt: skip
                watcher.finished(summary)
        finally:
            source.close()
    _last_words(summary, settings, dry_run=args.dry_run)
    if args.dry_run and summary.exit_code is ExitCode.DONE and (summary.inserted or summary.updated):
        return int(ExitCode.UNRECONCILED)
    return int(summary.exit_code)


def _last_words(summary: Summary, settings: Settings, *, dry_run: bool) -> None:
    """Say on stderr why a backfill did not come to its end, and what to do."""
    hint = None if dry_run else "the same command goes on where this one ended"
    if summary.interrupted:
        _complain(f"interrupted after {summary.slices_done} of {summary.slices} slices", hint)
    elif summary.failed:
        reasons = "; ".join(sorted({str(failure.error) for failure in summary.failed}))
        if summary.exit_code is ExitCode.UNAVAILABLE:
            hint = f"is TWILIO_BASE_URL right? {settings.twilio_base_url}" if settings.twilio_base_url else None
            _complain(f"Twilio is unavailable: {reasons}", hint or "check the network, and https://status.twilio.com")
        else:
            _complain(f"{len(summary.failed)} of {summary.slices} slices could not be read: {reasons}", hint)


def _migrate(args: argparse.Namespace) -> int:
    from reconciler import migrate

    with _database("migrate") as conn:
        if args.dry_run:
            steps = migrate.plan(conn)
            rows: list[dict[str, Any]] = [
                {"version": m.version, "name": m.name, "plan": _PLANNED[outcome], "lock": m.up.lock}
                for m, outcome in ((step.migration, step.outcome) for step in steps)
            ]
        else:
            applied = migrate.migrate(conn, on_applied=_log_applied)
            rows = [
                {"version": a.version, "name": a.name, "outcome": a.outcome, "seconds": round(seconds, 3)}
                for a, seconds in ((a, a.duration.total_seconds()) for a in applied)
            ]
    if args.json:
        _print_json(rows)
    elif rows:
        _print_rows(rows)
    else:
        print("The schema is up to date.")
    return int(ExitCode.DONE)


def _rollback(args: argparse.Namespace) -> int:
    from reconciler import migrate
    from reconciler.migrations import load_migrations

    with _database("rollback") as conn:
        newest = len(load_migrations()) - 1 - len(migrate.behind(conn))
        to = max(newest - 1, -1) if args.to is None else args.to
        undone = migrate.rollback(conn, to=to, drop_data=args.drop_data)
    if undone:
        _print_rows([{"version": u.version, "name": u.name, "outcome": u.outcome} for u in undone])
    else:
        print("There is nothing to undo.")
    return int(ExitCode.DONE)


def _verify(args: argparse.Namespace) -> int:
    from reconciler import migrate
    from reconciler.store import PLAN_CHECKS

    with _database("verify") as conn:
        behind = migrate.behind(conn)
        # The planner cannot be asked about tables that are not there.
        findings = migrate.verify(conn, PLAN_CHECKS if args.explain and not behind else ())
    if args.json:
        _print_json([{"subject": f.subject, "problem": f.problem} for f in findings])
    else:
        for finding in findings:
            print(f"{finding.subject} {finding.problem}")
        if not findings:
            print("The schema is as this version needs it.")
    if behind:
        _complain(f"{len(behind)} migrations are not applied yet", "run `reconcile migrate`")
    return int(ExitCode.CONFIG if findings else ExitCode.DONE)


def _check(args: argparse.Namespace) -> int:
    from reconciler.check import Check, Severity, check, exit_code

    checks: list[Check] = []

    def items() -> Iterator[Check]:
        try:
            settings = _settings()
        except ConfigError as exc:
            for line in str(exc).splitlines():
                yield Check("settings", Severity.FAIL, line, exc.hint, ExitCode.CONFIG)
        else:
            yield from check(settings, database_url=lambda: _database_url(settings))

    for item in items():
        checks.append(item)
        if not args.json:
            print(f"{item.severity.value:<4} {item.name}: {item.detail}", flush=True)
            if item.hint:
                print(f"     → {item.hint}", flush=True)
    if args.json:
        _print_json([{key: value for key, value in c._asdict().items() if key != "exit_code"} for c in checks])
    return int(exit_code(checks))


def _inbox_list(args: argparse.Namespace) -> int:
    from reconciler import inbox
    from reconciler.logs import mask

    settings = _settings()
    with _database("inbox", settings) as conn:
        letters, total = inbox.list_dead_letters(conn, limit=_LISTED)
    rows = [letter._asdict() for letter in letters]
    if settings.log_pii == "masked":
        rows = [{name: mask(v) if isinstance(v, str) else v for name, v in row.items()} for row in rows]
    if args.json:
        _print_json({"dead_letters": rows, "total": total})
    elif rows:
        _print_rows([{name: _harmless(value) for name, value in row.items()} for row in rows])
        if total > len(rows):
            print(f"These are the newest {len(rows)} of {total}.")
    else:
        print("There are no dead letters.")
    return int(ExitCode.DONE)


def _inbox_show(args: argparse.Namespace) -> int:
    from reconciler import inbox
    from reconciler.logs import mask

    settings = _settings()
    with _database("inbox", settings) as conn:
        row = inbox.find(conn, args.id)
    if row is None:
        raise UsageError(f"the inbox has no row {args.id}", hint="reconcile inbox list")
    payload = inbox.indented(row.pop("payload"), masked=settings.log_pii == "masked")
    if settings.log_pii == "masked":
        row = {name: mask(value) if isinstance(value, str) else value for name, value in row.items()}
    if args.json:
        # Put in as text: a payload may be nested deeper than `json` can go.
        sys.stdout.write(f'{json.dumps(row, indent=2)[:-2]},\n  "payload": {payload}\n}}\n')
    else:
        for name, value in row.items():
            print(f"{name}: {_harmless(value)}")
        print("payload:")
        for line in payload.splitlines():
            print(_harmless(line, markup=False))
    return int(ExitCode.DONE)


def _once(args: argparse.Namespace) -> int:
    settings = _settings()

    from reconciler import inbox
    from reconciler.store import Rules, Store

    url = _database_url(settings)
    _prepare_schema(url, migrate=True)
    rules = Rules(settings.webhook_grace, settings.freeze_after)
    with _stop_on_signal() as stop, Store(url, job=inbox.JOB, rules=rules) as store:
        worked = inbox.work_inbox(store, grace=settings.inbox_grace, stop=stop)
        interrupted = stop.is_set()
    result = {"rows": worked.rows, "completed": worked.completed, **worked.counts()}
    if args.json:
        _print_json(result)
    else:
        _print_rows([{"": name, " ": str(value)} for name, value in result.items()])
    return int(ExitCode.INTERRUPTED if interrupted else worked.exit_code)


def _inbox_replay(args: argparse.Namespace) -> int:
    if bool(args.ids) == args.all:
        raise UsageError("say which dead letters to replay, or --all", hint="reconcile inbox list")
    settings = _settings()

    from reconciler import db, inbox
    from reconciler.store import Rules, Store

    url = _database_url(settings)
    _prepare_schema(url, migrate=False)
    if args.ids:
        with db.connect(url, purpose="inbox") as conn:
            if unknown := inbox.not_dead(conn, args.ids):
                raise UsageError(f"no dead letters: {', '.join(map(str, unknown))}", hint="reconcile inbox list")
    rules = Rules(settings.webhook_grace, settings.freeze_after)
    with _stop_on_signal() as stop, Store(url, job=inbox.REPLAY_JOB, rules=rules) as store:
        worked = inbox.replay(store, ids=sorted(set(args.ids)) or None, stop=stop)
        interrupted = stop.is_set()
    if args.json:
        _print_json({"replayed": worked.rows, "completed": worked.completed, "dead_letters": worked.dead_letters})
    else:
        print(f"{worked.completed} completed, {worked.dead_letters} could still not be read.")
    return int(ExitCode.INTERRUPTED if interrupted else worked.exit_code)


def _row_number(text: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= 19 and int(text) < 2**63:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not the number of a row")


def _harmless(value: object, *, markup: bool = True) -> str:
    """What strangers wrote, for a terminal: no escape sequences, and nothing that a table takes for markup."""
    from rich.markup import escape

    text = "" if value is None else "".join(char if char.isprintable() else "�" for char in str(value))
    return escape(text) if markup else text


def _demo(_: argparse.Namespace) -> int:
    from reconciler.demo import run

    return int(run())


class _Stderr:
    """Whatever stderr is now: while a progress bar is shown, the bar, which keeps log lines apart from itself."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()


def _settings() -> Settings:
    """Read the settings and set logging up by them."""
    from reconciler import logs
    from reconciler.config import Settings

    settings = Settings.read(os.environ)
    for secret in settings.secrets():
        logs.protect(secret)
    stream = cast("TextIO", _Stderr())
    logs.configure(form=settings.log_format, level=settings.log_level, pii=settings.log_pii, stream=stream)
    return settings


def _database_url(settings: Settings) -> str:
    if settings.database_url:
        return settings.database_url
    from reconciler import embedded

    return embedded.start()


@contextmanager
def _database(purpose: str, settings: Settings | None = None) -> Iterator[Connection]:
    settings = settings or _settings()
    from reconciler import db

    conn = db.connect(_database_url(settings), purpose=purpose)
    try:
        yield conn
    finally:
        conn.close()


def _prepare_schema(url: str, *, migrate: bool) -> None:
    """Apply what is missing, or refuse to run on an old schema."""
    from reconciler import db
    from reconciler import migrate as runner

    with db.connect(url, purpose="migrate") as conn:
        if migrate:
            if runner.behind(conn):
                runner.migrate(conn, on_applied=_log_applied)
        elif behind := runner.behind(conn):
            raise SchemaError(f"{len(behind)} migrations are not applied yet", hint="run `reconcile migrate` first")


def _log_applied(applied: Any) -> None:
    from reconciler.logs import get_logger

    get_logger("reconciler.migrate").info(
        "migration.applied", version=applied.version, name=applied.name, adopted=applied.outcome == "adopted",
        duration_seconds=round(applied.duration.total_seconds(), 3),
    )  # fmt: skip


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set: the page in hand is finished. A second one ends the process at once."""
    stop = threading.Event()
    watched = sys.stderr.isatty()

    def say(text: str) -> None:
        # Not print: the signal may have come in the middle of one.
        if watched:
            os.write(2, text.encode())

    def handle(_number: int, _frame: object) -> None:
        if stop.is_set():
            say("\x1b[?25h\n")  # a progress bar hides the cursor
            os._exit(ExitCode.INTERRUPTED)
        stop.set()
        say("\nFinishing the page in hand; again to leave at once.\n")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _moment(text: str, option: str, now: datetime) -> datetime:
    from reconciler.times import parse_moment

    try:
        return parse_moment(text, now=now)
    except (ValueError, OverflowError) as exc:
        raise UsageError(f"{option} {text!r} cannot be read", hint=str(exc)) from None


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table

    from reconciler.terminal import out

    table = Table(*rows[0] if rows else (), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    out.print(table)


def _print_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def _complain(message: str, hint: str | None) -> None:
    from reconciler.logs import mask, redact

    for line in message.splitlines():
        print(f"reconcile: {redact(mask(line))}", file=sys.stderr)
    if hint:
        print(f"  → {redact(mask(hint))}", file=sys.stderr)

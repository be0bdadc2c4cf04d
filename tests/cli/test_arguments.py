"""The answers of the command that depend on its arguments alone."""

from __future__ import annotations

import sys

import pytest

from reconciler import __version__
from reconciler.cli.commands import COMMANDS
from reconciler.cli.main import main


def test_the_version(command):
    """The installed command and `python -m reconciler` are one program, and need no setting to say its version."""
    installed = command.run("--version")
    as_module = command.run("--version", argv=(sys.executable, "-m", "reconciler"))
    assert (installed.code, installed.out, installed.err) == (0, f"reconciler {__version__}\n", "")
    assert as_module == installed


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_answering_at_once(command, option):
    """`--version` and `--help` import none of the heavy libraries."""
    script = f"""
import sys
from reconciler.cli.main import main
try:
    main(["{option}"])
except SystemExit as exc:
    code = exc.code
heavy = {{"twilio", "requests", "psycopg", "rich", "structlog", "msgspec", "apscheduler"}} & set(sys.modules)
sys.exit(f"code {{code}}, imported {{sorted(heavy)}}" if code or heavy else 0)
"""
    done = command.run(argv=(sys.executable, "-c", script))
    assert (done.code, done.err) == (0, "")


def test_help_names_every_command_and_exit_code(command):
    """A newcomer finds every command here, also the demo."""
    done = command.run("--help")
    for word in ("migrate", "rollback", "verify", "check", "demo", "--since", "--dry-run"):
        assert f" {word} " in done.out
    for code in (0, 1, 64, 69, 70, 75, 77, 78, 130):
        assert f" {code} " in done.out


def test_no_help_is_wider_than_80_columns(capsys, monkeypatch):
    """That of each command: a terminal would break its lines inside words."""
    monkeypatch.setenv("COLUMNS", "80")
    places = [(), *((command.name,) for command in COMMANDS)]
    places += [(command.name, sub.name) for command in COMMANDS for sub in command.commands]
    for words in places:
        with pytest.raises(SystemExit):
            main([*words, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("usage: ") for line in lines) == len(places)
    assert not [line for line in lines if len(line) > 80]


def test_each_job_has_a_line_of_help(command):
    """What it does, and not all of them in one paragraph."""
    lines = command.run("once", "--help").out.splitlines()
    for job in ("hot", "warm", "cold", "freeze", "inbox", "housekeeping", "webhooks"):
        assert [line for line in lines if line.startswith(f"  {job} ")]


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((), "neither a database nor a Twilio account"),
        (("--dry-run",), "--since"),
        (("--since", "garbage"), "--since 'garbage'"),
        (("--since", "7 fortnights"), "--since '7 fortnights'"),
        (("--since", ""), "--since ''"),
        (("--since", "99999999w"), "--since '99999999w'"),
        (("--since", "7d", "--until", "soon"), "--until 'soon'"),
        (("--since", "7d", "--until", ""), "--until ''"),
        (("--since", "1d", "--until", "2d"), "--since 1d is not before --until 2d"),
        (("--since", "2100-01-01"), "--since 2100-01-01 is not before now"),
        (("--since", "1d", "--until", "2100-01-01"), "--until 2100-01-01 lies in the future"),
        (("--since",), "--since"),
        (("--since", "7d", "--accounts", "all"), "--accounts"),
        (("--sinc", "7d"), "--sinc"),
        (("reconcile",), "'reconcile'"),
        (("migrate", "--dry"), "--dry"),
        (("rollback", "--to", "yesterday"), "'yesterday'"),
        # It must not be taken for `reconcile rollback`.
        (("--dry-run", "rollback"), "arguments: rollback (options come after their command)"),
        (("--since", "7d", "migrate"), "arguments: migrate"),
    ],
)
def test_arguments_that_make_no_sense(here, args, named):
    """Exit code 64 and one line that names what is missing or wrong, and nothing on stdout."""
    done = here(*args, DATABASE_URL="", TWILIO_ACCOUNT_SID="", TWILIO_AUTH_TOKEN="", TWILIO_BASE_URL="")
    assert done.code == 64
    assert done.out == ""
    (line,) = [line for line in done.said if line.startswith("reconcile")]
    assert named in line


@pytest.mark.parametrize("args", [(), ("why",), ("report",)])
def test_a_begin_in_the_future(here, args):
    """The error says how to write a moment of the past."""
    done = here(*args, "--since", "2100-01-01")
    hint = "  → write how long ago, like 7d, or a date of the past"
    assert (done.code, done.said) == (64, ["reconcile: --since 2100-01-01 is not before now", hint])


@pytest.mark.parametrize("sid", ["", "AC12", "SK" + 32 * "1"])
def test_an_account_that_cannot_be_one(here, sid):
    """The command refuses it before it connects to anything."""
    done = here("--since", "1d", "--account", sid)
    assert (done.code, done.said) == (64, [f"reconcile: --account must be AC and 32 hexadecimal digits, not {sid!r}"])

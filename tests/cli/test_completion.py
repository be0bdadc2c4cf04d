"""Completion in the shells themselves, each as a person would meet it: the installed script, and a line half typed."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time

import pytest

from reconciler.cli.main import get_parser
from tests.harness.present import present

from .test_commands import _parsers

BASH, ZSH, FISH = (shutil.which(shell) for shell in ("bash", "zsh", "fish"))
PATIENCE = 30.0  # seconds, for a shell to start

needs_bash = pytest.mark.skipif(BASH is None, reason="bash is not installed")
needs_zsh = pytest.mark.skipif(ZSH is None, reason="zsh is not installed")
needs_fish = pytest.mark.skipif(FISH is None, reason="fish is not installed")

JOBS = ["hot", "warm", "cold", "freeze", "inbox", "housekeeping", "recordings", "webhooks"]
EXAMPLES = ["90m", "24h", "7d", "2w"]


@needs_bash
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["mi"], ["migrate"]),
        (["--"], ["--help", "--version", "--since", "--until", "--account", "--dry-run", "--all", "--fleet", "--json"]),
        (["--since", ""], EXAMPLES),
        (["--since", "="], EXAMPLES),  # as bash cuts --since=
        (["--since", "=", "7"], ["7d"]),
        (["--since", "7d", "--d"], ["--dry-run"]),
        (["--since", "7d", "mi"], []),  # options come after their command
        (["once", ""], JOBS),
        (["once", "c"], ["cold"]),
        (["once", "hot", "c"], []),
        (["once", "hot", ""], ["--help", "--account", "--from", "--json"]),
        (["once", "inbox", "--j"], ["--json"]),
        (["inbox", ""], ["list", "show", "replay"]),
        (["inbox", "replay", "--a"], ["--all"]),
        (["report", "--html", ""], []),  # bash offers files
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["nothing", ""], []),
    ],
)
def test_bash_completes(printed, typed, offered):
    """Commands, options, choices and examples of values, each at its place and nowhere else."""
    words = " ".join(f"'{word}'" for word in ["reconcile", *typed])
    ask = f"COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _reconcile; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(
        [present(BASH), "--norc", "-c", f"{printed('completion', 'bash')}\n{ask}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.split(), done.stderr) == (offered, "")


@needs_fish
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("reconcile mi", ["migrate"]),
        ("reconcile once ", sorted(JOBS)),
        ("reconcile once h", ["hot", "housekeeping"]),
        ("reconcile once hot ", []),
        ("reconcile once hot --", ["--account", "--from", "--help", "--json"]),
        ("reconcile --since ", EXAMPLES),
        ("reconcile --since=", [f"--since={example}" for example in EXAMPLES]),
        ("reconcile --since 7d mi", []),
        ("reconcile --since 7d --dr", ["--dry-run"]),
        ("reconcile inbox ", ["list", "replay", "show"]),
        ("reconcile inbox replay --a", ["--all"]),
        ("reconcile report --html pa", ["page.html"]),
        ("reconcile completion ", ["bash", "fish", "zsh"]),
        ("reconcile call ", []),  # no files: it is a SID
    ],
)
def test_fish_completes(printed, tmp_path, line, offered):
    """The same, with the meaning of each word. Files are offered only where one is to be named."""
    _install(tmp_path, printed("completion", "fish"), ".config/fish/completions/reconcile.fish")
    (tmp_path / "page.html").touch()
    done = subprocess.run(
        [present(FISH), "-c", f"complete -C '{line}'"],
        cwd=tmp_path, env=_environ(tmp_path), capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = [line.partition("\t")[0] for line in done.stdout.splitlines()]
    assert (words, done.stderr) == (offered, "")


@needs_fish
def test_fish_says_what_a_job_is(printed, tmp_path):
    """The script describes jobs, as it describes commands and options."""
    _install(tmp_path, printed("completion", "fish"), ".config/fish/completions/reconcile.fish")
    ask = [present(FISH), "-c", "complete -C 'reconcile once w'"]
    done = subprocess.run(ask, env=_environ(tmp_path), capture_output=True, text=True, check=True)
    assert done.stdout == "warm\twhat comes after a call's end, its price above all\n"


@needs_zsh
@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("reconcile mi", "reconcile migrate "),
        ("reconcile once w", "reconcile once warm "),
        ("reconcile once hot w", "reconcile once hot w"),
        ("reconcile once hot --j", "reconcile once hot --json "),
        ("reconcile --since 7", "reconcile --since 7d "),
        ("reconcile --since=7", "reconcile --since=7d "),
        ("reconcile --since 7d mi", "reconcile --since 7d mi"),
        ("reconcile --since 7d --dr", "reconcile --since 7d --dry-run "),
        ("reconcile inbox sh", "reconcile inbox show "),
        ("reconcile report --html pa", "reconcile report --html page.html "),
    ],
)
def test_zsh_completes(printed, tmp_path, typed, line):
    """The same, at the first press of the key."""
    script = _install(tmp_path, printed("completion", "zsh"), "functions/_reconcile")
    (tmp_path / "page.html").touch()
    set_up = f"fpath=({script.parent} $fpath); autoload -Uz compinit; compinit -D"
    assert _completed_by_zsh(tmp_path, set_up, typed) == line


@needs_zsh
def test_zsh_completes_by_a_sourced_script(printed, tmp_path):
    """The other road that the script's head names."""
    script = _install(tmp_path, printed("completion", "zsh"), "completion.zsh")
    set_up = f"autoload -Uz compinit; compinit -D; source {script}"
    assert _completed_by_zsh(tmp_path, set_up, "reconcile mi") == "reconcile migrate "


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_option_is_in_every_script(printed, shell):
    """So is every command. An installed shell finds no fault with its script."""
    script = printed("completion", shell)
    for parser in _parsers(get_parser()):
        assert parser.prog.split()[-1] in script
        for action in parser._actions:
            for option in action.option_strings[-1:]:
                assert (f"-l {option[2:]} " if shell == "fish" else option) in script
    if program := shutil.which(shell):
        done = subprocess.run([program, "-n"], input=script, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def _completed_by_zsh(home, set_up, typed):
    """Return the line after a press of the key, in a zsh on a terminal."""
    # ^X says what the line is by now.
    tell = 'tell() { print -rn -- "<<$BUFFER>>"; }; zle -N tell; bindkey "^X" tell'
    (home / ".zshrc").write_text(f"{set_up}\n{tell}\nPS1='ready> '\n", encoding="utf-8")
    terminal, theirs = pty.openpty()
    with subprocess.Popen(
        [present(ZSH), "-d", "-i"],
        cwd=home, env=_environ(home), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    ) as zsh:  # fmt: skip
        os.close(theirs)
        try:
            _read_until(terminal, r"ready> ")
            os.write(terminal, f"{typed}\t\x18".encode())
            return _read_until(terminal, r"<<(.*)>>")[1]
        finally:
            zsh.kill()
            os.close(terminal)


def _install(home, script, where):
    """Put the script where its shell looks, and a command of that name on the path."""
    path = home / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script, encoding="utf-8")
    command = home / "bin" / "reconcile"
    command.parent.mkdir()
    command.touch(mode=0o755)
    return path


def _environ(home):
    path = f"{home}/bin:/usr/bin:/bin"
    return {"HOME": str(home), "ZDOTDIR": str(home), "PATH": path, "TERM": "xterm", "LC_ALL": "C.UTF-8"}


def _read_until(terminal, pattern):
    """Read what the shell writes until it holds `pattern`; what it is drawn with is left out."""
    read, deadline = b"", time.monotonic() + PATIENCE
    while not (found := re.search(pattern, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", read.decode(errors="replace")))):
        left = deadline - time.monotonic()
        assert left > 0, read
        if select.select([terminal], [], [], left)[0]:
            read += os.read(terminal, 65536)
    return found

"""Completion scripts and the man page: what they say is what the parser knows."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import subprocess

import pytest

from reconciler.cli import get_parser, main
from reconciler.config import Settings
from reconciler.errors import EXIT_MEANINGS, ExitCode

from .test_commands import _parsers

BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="bash is not installed")


@pytest.fixture
def printed(capsys):
    """What a command prints."""

    def run(*words: str) -> str:
        assert main(words) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


@needs_bash
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["mi"], ["migrate"]),
        (["--"], ["--help", "--version", "--since", "--until", "--account", "--dry-run", "--json"]),
        (["--since", ""], ["90m", "24h", "7d", "2w"]),
        (["--since", "7d", "--d"], ["--dry-run"]),
        (["once", "c"], ["cold"]),
        (["once", "inbox", "--j"], ["--json"]),
        (["inbox", ""], ["list", "show", "replay", "--help"]),
        (["inbox", "replay", "--a"], ["--all"]),
        (["report", "--html", ""], []),  # bash offers files
        (["completion", ""], ["bash", "zsh", "fish", "--help"]),
        (["nothing", ""], []),
    ],
)
def test_bash_completes(printed, typed, offered):
    """Commands, options, choices and examples of values, each at its place."""
    words = " ".join(f"'{word}'" for word in ["reconcile", *typed])
    ask = f"COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _reconcile; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(
        [BASH, "--norc", "-c", f"{printed('completion', 'bash')}\n{ask}"], capture_output=True, text=True, check=True
    )
    assert (done.stdout.split(), done.stderr) == (offered, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_option_is_in_every_script(printed, shell):
    """And every command; a shell that is here finds no fault with its script."""
    script = printed("completion", shell)
    for parser in _parsers(get_parser()):
        assert parser.prog.split()[-1] in script
        for action in parser._actions:
            for option in action.option_strings[-1:]:
                assert (f"-l {option[2:]} " if shell == "fish" else option) in script
    if program := shutil.which(shell):
        done = subprocess.run([program, "-n"], input=script, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_man_page_names_everything(printed):
    """Commands, options with their meanings, settings with theirs, exit codes."""
    page = re.sub(r"\\\[u([0-9A-F]{4})\]", lambda code: chr(int(code[1], 16)), printed("man"))
    page = page.replace("\\-", "-").replace("\\&", "")
    for parser in _parsers(get_parser()):
        assert parser.description in page
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                assert action.help in page
    for field in dataclasses.fields(Settings):
        assert f".B {field.metadata['name']}\n{field.metadata['meaning']}" in page
    for code, meaning in EXIT_MEANINGS.items():
        assert f".B {int(code)}\n{meaning}" in page
    assert list(EXIT_MEANINGS) == list(ExitCode)


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_man_page_is_sound_roff(printed):
    """No warning of any kind; a line that begins with a dot of its own is text."""
    done = subprocess.run(
        ["groff", "-ww", "-man", "-Tutf8", "-P-cbou"], input=printed("man").encode(), capture_output=True, check=True
    )
    assert done.stderr == b""
    text = done.stdout.decode()
    for heading in ("NAME", "SYNOPSIS", "OPTIONS", "COMMANDS", "ENVIRONMENT", "EXIT STATUS"):
        assert f"\n{heading}\n" in text
    assert "AC…" in text


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
def test_man_shows_it(printed, tmp_path):
    """As a file that is not installed."""
    page = tmp_path / "reconcile.1"
    page.write_text(printed("man"), encoding="utf-8")
    done = subprocess.run(["man", "-l", str(page)], capture_output=True, text=True, check=True)
    assert "RECONCILE(1)" in done.stdout

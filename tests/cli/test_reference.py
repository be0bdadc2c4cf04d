"""The man page says what the parser knows; for completion see `test_completion`."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import subprocess

import pytest

from reconciler.cli.main import get_parser
from reconciler.errors import EXIT_MEANINGS, ExitCode
from reconciler.settings import Settings
from tests.harness.present import present

from .test_commands import _parsers


def test_the_man_page_names_everything(printed):
    """Commands, options with their meanings, settings with theirs, exit codes."""
    page = re.sub(r"\\\[u([0-9A-F]{4})\]", lambda code: chr(int(code[1], 16)), printed("man"))
    page = page.replace("\\-", "-").replace("\\&", "")
    for parser in _parsers(get_parser()):
        assert present(parser.description) in page
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                assert present(action.help) in page
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
    """`man` can show a file that is not installed."""
    page = tmp_path / "reconcile.1"
    page.write_text(printed("man"), encoding="utf-8")
    done = subprocess.run(["man", "-l", str(page)], capture_output=True, text=True, check=True)
    assert "RECONCILE(1)" in done.stdout

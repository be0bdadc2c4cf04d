"""The way from a command line to its command, and what a command says."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import psycopg
import pytest

from reconciler import masking
from reconciler.cli import schema
from reconciler.cli.main import get_parser, main
from reconciler.errors import Unavailable
from reconciler.terminal.printing import complain


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _parsers(sub)


def test_every_command_leads_to_a_function_of_its_own():
    """Every function that the parser names can be imported; `inbox` alone has only subcommands."""
    runs = [parser.get_default("run") for parser in _parsers(get_parser()) if parser.prog != "reconcile inbox"]
    assert len(set(runs)) == len(runs) >= 10


@pytest.mark.parametrize("secret", ["pass+49123456789word", "pass word 12025550100"])
@pytest.mark.parametrize(("message", "hint"), [("refused {}", None), ("refused", "is {} right?")])
def test_a_secret_that_looks_like_a_number_is_redacted_whole(capsys, secret, message, hint):
    """Masking first would leave what stands around the number, and its last digits."""
    masking.protect(secret)
    complain(message.format(secret), hint and hint.format(secret))
    printed = capsys.readouterr()
    said = f"reconcile: {message}\n" + (f"  → {hint}\n" if hint else "")
    assert (printed.out, printed.err) == ("", said.format("[secret]"))


def test_what_an_interruption_leads_to_does_not_hide_it(monkeypatch, capsys):
    """The server may report another error at the moment at which it cancels a statement."""

    def migrate(_: argparse.Namespace) -> int:
        try:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                raise psycopg.OperationalError("canceling statement due to lock timeout")  # noqa: B904 - as psycopg does
        except psycopg.Error as exc:
            raise Unavailable("the database did not answer") from exc

    monkeypatch.setattr(schema, "migrate", migrate)
    assert main(["migrate"]) == 130
    assert capsys.readouterr().err == "reconcile: interrupted\n"


def test_a_number_in_a_complaint_is_masked(capsys):
    """Each line of the error masks it, and so does the hint."""
    complain("no +12025550100\nnor sip:alice@example.com", "ask +12025550101")
    assert capsys.readouterr().err == "reconcile: no ***00\nreconcile: nor sip:***\n  → ask ***01\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stauts",), "reconcile: 'stauts' is no command; did you mean `reconcile status`?"),
        (("inbox", "lst"), "reconcile inbox: 'lst' is no command; did you mean `reconcile inbox list`?"),
        (("once", "hto"), "reconcile once: 'hto' is no job; did you mean `reconcile once hot`?"),
    ],
)
def test_a_slip_of_the_finger(capsys, words, said):
    """Is told the word that is alike, and not all of them."""
    with pytest.raises(SystemExit) as exc:
        main(words)
    assert exc.value.code == 64
    assert capsys.readouterr().err.splitlines()[0] == said


def test_files_are_written_once(tmp_path, capsys):
    """The first run writes units, grants, rules, dashboard and runbook. A second run overwrites no changed file."""
    assert main(("files", str(tmp_path))) == main(("files", str(tmp_path))) == 0
    for name in ("reconciler.service", "grants.sql", "prometheus/reconciler.rules.yml", "runbook.md"):
        assert (tmp_path / name).read_bytes()
    (tmp_path / "grants.sql").write_text("mine")
    assert main(("files", str(tmp_path))) == 64
    assert "grants.sql" in capsys.readouterr().err
    assert (tmp_path / "grants.sql").read_text() == "mine"

"""Moments that a person types are read at the time at which the command starts."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from freezegun import freeze_time

from reconciler.cli.main import main
from reconciler.errors import ExitCode

AT = "2026-06-10 12:00:00"
Typed = Callable[..., tuple[int, str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Runs `reconcile ARGS` without settings: a command that accepts its moments asks for them next, and ends in 78."""
    for name in [name for name in os.environ if name.startswith(("TWILIO_", "RECONCILER_", "DATABASE_"))]:
        monkeypatch.delenv(name)

    def run(*words: str) -> tuple[int, str]:
        return main(words), capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("until", "is_past"),
    [
        ("2026-06-10T12:00:00", True),
        ("2026-06-10T12:00:01", False),
        ("2026-06-10T14:00:00+02:00", True),
        ("2026-06-10T11:30:00-01:00", False),
        ("2026-06-10", True),
        ("2026-06-11", False),
        ("0s", True),
    ],
)
@freeze_time(AT)
def test_a_window_must_not_end_in_the_future(typed: Typed, until: str, is_past: bool) -> None:
    """The second at which the command starts is the last one that counts as past, in any zone."""
    code, said = typed("--since", "30d", "--until", until)
    assert code == (ExitCode.CONFIG if is_past else ExitCode.USAGE)
    assert (f"--until {until} lies in the future" in said) is not is_past


@pytest.mark.parametrize(
    ("since", "is_before"),
    [("2026-06-10T11:59:59", True), ("2026-06-10T12:00:00", False), ("1s", True), ("0s", False), ("2026-06-11", False)],
)
@freeze_time(AT)
def test_a_window_must_begin_before_now(typed: Typed, since: str, is_before: bool) -> None:
    """An empty window is a mistake in typing, not a run without calls."""
    code, said = typed("--since", since)
    assert code == (ExitCode.CONFIG if is_before else ExitCode.USAGE)
    assert (f"--since {since} is not before now" in said) is not is_before


@pytest.mark.parametrize(
    ("moment", "is_kept"),
    [
        ("400d", True),
        ("2025-05-06T12:00:00", True),
        ("2025-05-06T11:59:59", False),
        ("2026-06-10T11:59:59", True),
        ("2026-06-10T12:00:00", False),
    ],
)
@freeze_time(AT)
def test_hot_reads_on_from_a_moment_that_twilio_still_keeps(typed: Typed, moment: str, is_kept: bool) -> None:
    """Twilio keeps 400 days; the limit moves with the time of the command, to the second."""
    code, said = typed("once", "hot", "--from", moment)
    assert code == (ExitCode.CONFIG if is_kept else ExitCode.USAGE)
    assert (f"--from {moment} lies in the future, or before the 400 days" in said) is not is_kept


def test_the_same_words_mean_another_moment_a_second_later(typed: Typed) -> None:
    """The program reads no time while it loads."""
    with freeze_time(AT) as clock:
        assert typed("--since", "1d", "--until", "2026-06-10T12:00:01")[0] == ExitCode.USAGE
        clock.tick(1)
        assert typed("--since", "1d", "--until", "2026-06-10T12:00:01")[0] == ExitCode.CONFIG

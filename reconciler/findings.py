"""What a check found: one line of `reconcile check`."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from reconciler.errors import ExitCode, ReconcilerError


def counted(number: int, noun: str) -> str:
    """`1 dead letter`, `2 dead letters`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class Severity(StrEnum):
    """How a check ended."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


class Check(NamedTuple):
    """What was looked at, how it is, and what to do; `exit_code` says what kind of trouble it is."""

    name: str
    severity: Severity
    detail: str
    hint: str | None = None
    exit_code: ExitCode = ExitCode.DONE


def ok(name: str, detail: str) -> Check:
    """It is as it should be."""
    return Check(name, Severity.OK, detail)


def warn(name: str, detail: str, hint: str, exit_code: ExitCode = ExitCode.DONE) -> Check:
    """A run works all the same, but somebody should know."""
    return Check(name, Severity.WARN, detail, hint, exit_code)


def fail(name: str, detail: str, hint: str | None, exit_code: ExitCode) -> Check:
    """A run cannot work like this."""
    return Check(name, Severity.FAIL, detail, hint, exit_code)


def failed(name: str, error: ReconcilerError) -> Check:
    """What was looked for ended in `error`."""
    return fail(name, str(error), error.hint, ExitCode(error.exit_code))

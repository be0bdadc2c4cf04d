"""The result of a check: one line of `reconcile check`."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from reconciler.errors import ExitCode, ReconcilerError


class Severity(StrEnum):
    """The severity of a check's result."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


class Check(NamedTuple):
    """The result of one check: its name, severity and detail, a hint what to do, and an exit code."""

    name: str
    severity: Severity
    detail: str
    hint: str | None = None
    exit_code: ExitCode = ExitCode.DONE


def ok(name: str, detail: str) -> Check:
    """Return the line of a check without trouble."""
    return Check(name, Severity.OK, detail)


def warn(name: str, detail: str, hint: str, exit_code: ExitCode = ExitCode.DONE) -> Check:
    """Return the line of a check whose trouble does not stop a run."""
    return Check(name, Severity.WARN, detail, hint, exit_code)


def fail(name: str, detail: str, hint: str | None, exit_code: ExitCode) -> Check:
    """Return the line of a check whose trouble stops every run."""
    return Check(name, Severity.FAIL, detail, hint, exit_code)


def failed(name: str, error: ReconcilerError) -> Check:
    """Return the line of a check that ended in `error`."""
    return fail(name, "; ".join(str(error).splitlines()), error.hint, ExitCode(error.exit_code))


# Grace periods are a minute or longer. A larger difference between clocks would distort them.
SKEW_ALLOWED: Final = timedelta(seconds=15)


def compare_clocks(name: str, whose: str, ahead: timedelta, behind: timedelta) -> Check:
    """Return the line about our clock, which is at least `ahead` of or `behind` another."""
    skew = max(ahead, behind, timedelta(0))
    if skew <= SKEW_ALLOWED:
        return ok(name, f"this machine's clock agrees with {whose} ({skew.total_seconds():.1f} s apart)")
    which = "ahead of" if ahead > behind else "behind"
    detail = f"this machine's clock is {skew.total_seconds():.0f} s {which} {whose}"
    return warn(name, detail, "run an NTP client on this machine")

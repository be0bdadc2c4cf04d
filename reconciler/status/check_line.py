"""What a check found: one line of `reconcile check`."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from reconciler.errors import ExitCode, ReconcilerError


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


# Grace periods are a minute and more; a clock further off than this blurs them.
SKEW_ALLOWED: Final = timedelta(seconds=15)


def compare_clocks(name: str, whose: str, ahead: timedelta, behind: timedelta) -> Check:
    """How far our clock is `ahead` of or `behind` another, at least."""
    skew = max(ahead, behind, timedelta(0))
    if skew <= SKEW_ALLOWED:
        return ok(name, f"this machine's clock agrees with {whose} ({skew.total_seconds():.1f} s apart)")
    which = "ahead of" if ahead > behind else "behind"
    detail = f"this machine's clock is {skew.total_seconds():.0f} s {which} {whose}"
    return warn(name, detail, "run an NTP client on this machine")

"""The table of errors and exit codes, which scripts and systemd units read."""

from __future__ import annotations

import re

import pytest

from reconciler import errors
from reconciler.errors import ExitCode, ReconcilerError, Retriable

KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, ReconcilerError) and kind is not ReconcilerError
}

TABLE = re.findall(r"(?:├──|└──) (\w+) +(\d+)? ", errors.__doc__ or "")


def test_exit_codes_are_those_of_the_design():
    """Scripts, systemd and monitors stand on these numbers."""
    expected = {
        "DONE": 0, "UNRECONCILED": 1, "USAGE": 64, "UNAVAILABLE": 69, "BUG": 70, "TRY_AGAIN": 75, "REFUSED": 77,
        "CONFIG": 78, "INTERRUPTED": 130,
    }  # fmt: skip
    assert expected == {code.name: code.value for code in ExitCode}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ConfigError", 78), ("UsageError", 64), ("Refused", 77), ("Retriable", 75), ("RateLimited", 75),
        ("Unavailable", 69), ("ConnectionLost", 69), ("FilterIgnored", 75), ("CredentialsDoubted", 77),
        ("Contended", 75), ("OutsideRetention", 1), ("JobHeld", 75), ("SchemaError", 78), ("TwilioAnswerError", 75),
        ("BadObservation", 1), ("NotFound", 77), ("NotPermitted", 77), ("ReadOnlyDatabase", 69),
        ("LoginRefused", 77), ("Outpaced", 69),
    ],
)  # fmt: skip
def test_each_error_ends_in_its_exit_code(name, code):
    """Refusals are not retried by systemd, outages are."""
    assert code == KINDS[name].exit_code


def test_the_table_in_the_docstring_is_the_truth():
    """It names every error that is no special case of one, with the code it ends in."""
    special = ("ConnectionLost", "LoginRefused", "NotFound", "NotPermitted", "Outpaced", "ReadOnlyDatabase")
    assert {name: kind.exit_code for name, kind in KINDS.items() if name not in special} == {
        name: int(code) if code else KINDS[name].exit_code for name, code in TABLE
    }


@pytest.mark.parametrize(
    "name", ["RateLimited", "Unavailable", "ConnectionLost", "FilterIgnored", "CredentialsDoubted", "Contended"]
)
def test_what_heals_is_retriable(name):
    """Everything that a retry may heal; nothing else is."""
    assert issubclass(KINDS[name], Retriable)


@pytest.mark.parametrize(
    "name", ["Refused", "ConfigError", "SchemaError", "JobHeld", "TwilioAnswerError", "OutsideRetention"]
)
def test_what_does_not_heal_is_not_retriable(name):
    """Asking again would only hide it."""
    assert not issubclass(KINDS[name], Retriable)


def test_a_hint_belongs_to_the_one_error():
    """It is no attribute of the class that the next error would inherit."""
    assert "do this" == errors.Refused("no", hint="do this").hint
    assert None is errors.Refused("no").hint

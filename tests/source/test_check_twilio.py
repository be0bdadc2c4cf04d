"""The part of `reconcile check` that asks Twilio."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from reconciler import check as checks
from reconciler.check import Check, Severity, check, exit_code
from reconciler.config import Settings
from reconciler.errors import ExitCode, Unavailable
from reconciler.simulator import Clock, Fault, Switches


@pytest.fixture
def clock() -> Clock:
    """A clock that agrees with ours."""
    return Clock(datetime.now(UTC))


@pytest.fixture
def ask(account, twilio):
    """Runs the checks with the settings of the account and others, without a database."""

    def run(**environ: str) -> list[Check]:
        signed = {"TWILIO_ACCOUNT_SID": account.sid, "TWILIO_AUTH_TOKEN": account.auth_token}

        def no_database() -> str:
            raise Unavailable("no database in this test")

        settings = Settings.read({**signed, "TWILIO_BASE_URL": twilio.base_url, **environ})
        return list(check(settings, database_url=no_database))

    return run


def test_readable_calls_and_an_agreeing_clock_are_ok(ask, account, twilio):
    """One request for one call is enough, and the failure of another check stops nothing."""
    settings, database, calls, clock = ask()
    assert (Severity.OK, Severity.FAIL) == (settings.severity, database.severity)
    assert Check("Twilio", Severity.OK, f"the calls of {account.sid} can be read") == calls
    assert ("clock", Severity.OK) == clock[:2]
    assert [[("PageSize", "1")]] == [entry.params for entry in twilio.requests]


@pytest.mark.parametrize("seconds", [-60, 60])
def test_a_clock_that_is_off_is_a_warning(ask, clock, seconds):
    """In either direction; it blurs grace periods, but loses nothing."""
    clock.set(datetime.now(UTC) + timedelta(seconds=seconds))
    last = ask()[-1]
    assert ("clock", Severity.WARN) == last[:2]
    assert last.detail in ("59 s away from Twilio's", "60 s away from Twilio's")
    assert "NTP" in last.hint


def test_wrong_credentials_fail_with_the_name_of_the_setting(ask):
    """And with the exit code for what a person must change."""
    last = ask(TWILIO_AUTH_TOKEN="wrong")[-1]
    assert ("Twilio", Severity.FAIL, ExitCode.REFUSED) == (last.name, last.severity, last.exit_code)
    assert "TWILIO_AUTH_TOKEN" in last.hint


def test_missing_credentials_fail_as_configuration(ask):
    """Without asking anybody."""
    last = ask(TWILIO_AUTH_TOKEN="")[-1]
    assert ("Twilio", Severity.FAIL, ExitCode.CONFIG) == (last.name, last.severity, last.exit_code)


def test_a_passing_fault_is_no_finding(ask, plan):
    """It is asked again."""
    plan.next(Fault.server_error(503), Fault.reset())
    assert Severity.OK == ask()[-1].severity


def test_an_outage_is_found_soon(ask, plan, twilio, monkeypatch):
    """A run waits for minutes; a check says after some seconds that Twilio is away."""
    monkeypatch.setattr(checks, "PATIENCE", timedelta(0))
    plan.always(Fault.server_error(503))
    last = ask()[-1]
    assert ("Twilio", Severity.FAIL, ExitCode.UNAVAILABLE) == (last.name, last.severity, last.exit_code)
    assert len(twilio.requests) <= 2


def test_a_clock_that_nobody_tells_is_not_said_to_agree(ask, twilio):
    """Without a Date header there is nothing to compare with."""
    twilio.switches = Switches(date_header=False)
    assert "cannot be compared" in ask()[-1].detail


def test_the_first_failure_is_the_exit_code():
    """Warnings are none."""
    ok, warn = Check("a", Severity.OK, ""), Check("b", Severity.WARN, "")
    fails = [Check("c", Severity.FAIL, "", None, code) for code in (ExitCode.REFUSED, ExitCode.CONFIG)]
    assert ExitCode.REFUSED == exit_code([ok, warn, *fails])
    assert ExitCode.DONE == exit_code([ok, warn])

"""The part of `reconcile check` that asks Twilio."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from reconciler.errors import ExitCode, Unavailable
from reconciler.settings import Settings
from reconciler.simulator import Clock, Fault, Switches
from reconciler.simulator.endpoints import STATUS_CALLBACK
from reconciler.status import check_twilio as checks
from reconciler.status.check import check, exit_code
from reconciler.status.check_line import Check, Severity, fail, ok, warn
from tests.harness.names import ACCOUNT, NOW, SUBACCOUNT

KEY = f"SK{1:032x}"


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


@pytest.fixture
def found(ask):
    """The one line of a name."""

    def run(name: str, **environ: str) -> Check:
        (line,) = [line for line in ask(**environ) if line.name == name]
        return line

    return run


def test_all_is_well(ask, account, twilio):
    """A line each, from a few small requests; the failure of another check stops nothing."""
    settings, database, *lines = ask()
    assert (Severity.OK, Severity.FAIL) == (settings.severity, database.severity)
    names = ["usage records", "alerts", "webhooks", "volume", "clock"]
    assert [ok("Twilio", f"the calls of {account.sid} can be read"), *names] == [
        lines[0], *(line.name for line in lines[1:])
    ]  # fmt: skip
    assert {Severity.OK} == {line.severity for line in lines}
    assert ["Calls.json", "Daily.json", "Alerts", "IncomingPhoneNumbers.json", "Domains.json", "Applications.json"] == [
        entry.path.rpartition("/")[2] for entry in twilio.requests
    ]
    assert [("PageSize", "200")] == twilio.requests[0].params


@pytest.mark.parametrize(("seconds", "side"), [(-60, "ahead of"), (60, "behind")])
def test_a_clock_that_is_off_is_a_warning(found, clock, seconds, side):
    """It may be ahead or behind. It blurs grace periods, but loses no call."""
    clock.set(datetime.now(UTC) + timedelta(seconds=seconds))
    line = found("clock")
    assert Severity.WARN == line.severity
    assert line.detail in (f"this machine's clock is {seconds} s {side} Twilio's" for seconds in (59, 60))
    assert "NTP" in line.hint


def test_a_clock_that_nobody_tells_is_not_said_to_agree(found, twilio):
    """Without a Date header there is nothing to compare with."""
    twilio.switches = Switches(date_header=False)
    assert "cannot be compared" in found("clock").detail


# Several accounts


def test_subaccounts_that_the_main_token_reads(found, account):
    """Counted; a closed one is none."""
    account.add_subaccount(SUBACCOUNT, "its-own-token")
    account.add_subaccount(f"AC{3:032x}", "its-own-token", status="closed")
    every = found("accounts", RECONCILER_ACCOUNTS="all")
    assert ok("accounts", "2 accounts can be read: this one and its subaccounts") == every
    named = found("accounts", RECONCILER_ACCOUNTS=f"{account.sid},{SUBACCOUNT}")
    assert ok("accounts", "the 2 in RECONCILER_ACCOUNTS can be read") == named


@pytest.mark.parametrize("accounts", ["all", f"{ACCOUNT},{SUBACCOUNT}"])
def test_a_key_reads_its_own_account_alone(found, account, accounts):
    """The line names the key."""
    account.add_subaccount(SUBACCOUNT, "its-own-token")
    account.add_key(KEY, "its-secret", "main")
    line = found(
        "accounts",
        TWILIO_AUTH_TOKEN="",
        TWILIO_API_KEY=KEY,
        TWILIO_API_SECRET="its-secret",
        RECONCILER_ACCOUNTS=accounts,
    )
    assert (Severity.FAIL, ExitCode.REFUSED) == (line.severity, line.exit_code)
    assert "TWILIO_API_KEY" in line.detail
    assert "TWILIO_AUTH_TOKEN" in line.detail
    assert accounts == "all" or line.detail.startswith(f"{SUBACCOUNT}: ")


def test_an_account_that_is_not_ours(found, account):
    """Named, with what to look at; this one goes on being read."""
    line = found("accounts", RECONCILER_ACCOUNTS=f"{account.sid},{SUBACCOUNT}")
    assert Severity.FAIL == line.severity
    assert line.detail.startswith(f"{SUBACCOUNT}: ")


def test_a_key_that_may_not_read_usage_records(found, account):
    """A warning: days are proven without them."""
    account.add_key(KEY, "its-secret", "restricted", ["calls"])
    line = found("usage records", TWILIO_AUTH_TOKEN="", TWILIO_API_KEY=KEY, TWILIO_API_SECRET="its-secret")
    hint = "allow the key in TWILIO_API_KEY to read usage records"
    assert warn("usage records", "cannot be read: days are proven without them", hint) == line


@pytest.mark.parametrize(("name", "path"), [("usage records", "Usage"), ("alerts", "/v1/Alerts")])
def test_a_401_for_one_resource_alone_is_a_lacking_permission(found, twilio, quick_retries, name, path):
    """Calls can be read at the same time; where they cannot, the credentials are refused."""
    twilio.faults.when(lambda request: path in request.path, Fault.unauthorized())
    assert "cannot be read" in found(name).detail
    asked = count()
    twilio.faults.when(lambda request: "/Calls" in request.path and next(asked) > 0, Fault.unauthorized())
    assert found(name).exit_code is ExitCode.REFUSED


# Where webhooks go


def test_endpoints_without_a_status_callback_are_a_warning(found, account):
    """Numbers masked, with the host of those that differ; the first few by name."""
    for number in range(30):
        account.endpoints.add_number(f"+120255502{number:02}", status_callback="" if number < 12 else STATUS_CALLBACK)
    account.endpoints.add_number("+12025550300", status_callback="https://user:secret@old.example.net/status?x=secret")
    account.endpoints.add_sip_domain("quiet.sip.twilio.com", status_callback="")
    line = found("webhooks")
    assert line.severity is Severity.WARN
    assert line.detail.startswith("without a status callback: ***00, ***01, ")
    assert line.detail.endswith(" and 8 more; with one on another host than the rest: ***00 (old.example.net)")
    assert "secret" not in line.detail
    assert "`reconcile why`" in line.hint


def test_endpoints_that_are_well(found, account):
    """How many there are."""
    account.endpoints.add_number("+12025550200")
    account.endpoints.add_application("app")
    detail = "14 endpoints (numbers, SIP domains and TwiML apps), each with a status callback on one host"
    assert found("webhooks") == ok("webhooks", detail)


def test_a_key_that_may_read_neither_alerts_nor_endpoints(found, account):
    """The check does not fail: it says what is not known."""
    account.add_key(KEY, "its-secret", "restricted", ["calls", "usage"])
    key = {"TWILIO_AUTH_TOKEN": "", "TWILIO_API_KEY": KEY, "TWILIO_API_SECRET": "its-secret"}
    for name in ("alerts", "webhooks"):
        line = found(name, **key)
        assert line.severity is Severity.OK
        assert "cannot be read with these credentials" in line.detail


# How much there is


def test_an_account_without_calls(twilio, account, found):
    """There are no calls to count."""
    for call in account.calls_at(NOW):
        account.delete(call.sid, NOW)
    assert ok("volume", "no call yet") == found("volume")


@pytest.mark.parametrize(
    ("a_minute", "overlap", "pages", "severity"), [(30, "10m", "1 page", Severity.OK), (1_200, "4h", "", Severity.WARN)]
)
def test_the_volume_against_the_interval(account, found, clock, a_minute, overlap, pages, severity):
    """The newest calls' age tells it. More pages than hot can read in an interval are a warning."""
    for number in range(checks.SAMPLE):
        account.call(clock.now() - number * timedelta(minutes=1) / a_minute)
    line = found("volume", RECONCILER_OVERLAP=overlap)
    (rate,) = re.findall(r"about ([\d,.]+) calls a minute", line.detail)
    assert float(rate.replace(",", "")) == pytest.approx(a_minute, rel=0.4)  # the clock goes on meanwhile
    assert severity == line.severity
    assert f"hot reads {pages}" in line.detail
    assert severity is Severity.OK or "RECONCILER_OVERLAP" in line.hint


def test_wrong_credentials_fail_with_the_name_of_the_setting(ask):
    """The exit code is that for a person to act."""
    last = ask(TWILIO_AUTH_TOKEN="wrong")[-1]
    assert ("Twilio", Severity.FAIL, ExitCode.REFUSED) == (last.name, last.severity, last.exit_code)
    assert "TWILIO_AUTH_TOKEN" in last.hint


def test_missing_credentials_fail_as_configuration(ask):
    """`check` sends no request."""
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


def test_the_exit_code():
    """The first failure's; without one the first warning's that speaks of something not reconciled."""
    well, mild = ok("a", ""), warn("b", "", "")
    letters = warn("c", "", "", ExitCode.UNRECONCILED)
    fails = [fail("d", "", None, code) for code in (ExitCode.REFUSED, ExitCode.CONFIG)]
    assert ExitCode.REFUSED == exit_code([well, letters, mild, *fails])
    assert ExitCode.UNRECONCILED == exit_code([well, mild, letters])
    assert ExitCode.DONE == exit_code([well, mild])

"""The rights of credentials; accounts, usage and the other resources."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import requests

from reconciler.simulator import Switches
from reconciler.simulator.wire import seconds

NOON = datetime(2026, 6, 10, 12, tzinfo=UTC)
MAIN, SUB = f"AC{1:032x}", f"AC{2:032x}"
STRANGER = f"AC{9:032x}"
OK, UNKNOWN, FORBIDDEN, LACKING, MISSING = (200, None), (401, 20003), (403, 20403), (403, 70051), (404, 20404)

CREDENTIALS = {
    "main": (MAIN, "token"),
    "sub": (SUB, "sub-token"),
    "main key": ("SK1", "s"),
    "standard key": ("SK2", "s"),
    "restricted key": ("SK3", "s"),
    "sub key": ("SK4", "s"),
    "wrong token": (MAIN, "wrong"),
    "wrong secret": ("SK1", "wrong"),
    "nobody": (STRANGER, "token"),
}


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        ("main", [OK, OK, OK, OK]),
        ("sub", [MISSING, OK, OK, MISSING]),
        ("main key", [OK, UNKNOWN, OK, OK]),
        ("standard key", [OK, UNKNOWN, FORBIDDEN, OK]),
        ("restricted key", [OK, UNKNOWN, LACKING, LACKING]),
        ("sub key", [UNKNOWN, OK, OK, UNKNOWN]),
        ("wrong token", [UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]),
        ("wrong secret", [UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]),
        ("nobody", [UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]),
    ],
)
def test_who_may_read_what(serve, account, who, expected):
    """The table of credentials: main and subaccount, tokens and keys of every kind."""
    sub = account.add_subaccount(SUB, "sub-token")
    account.add_key("SK1", "s")
    account.add_key("SK2", "s", "standard")
    account.add_key("SK3", "s", "restricted", ["calls"])
    sub.add_key("SK4", "s")
    user, secret = CREDENTIALS[who]
    _, client = serve(user=user, secret=secret)
    answers = [
        client.get(path)
        for path in (
            f"/Accounts/{MAIN}/Calls.json",
            f"/Accounts/{SUB}/Calls.json",
            "/Accounts.json",
            f"/Accounts/{MAIN}/Usage/Records/Daily.json",
        )
    ]
    # The calls of the main account, of the subaccount, the accounts, the usage of the main account.
    assert expected == [(answer.status_code, answer.json().get("code")) for answer in answers]


@pytest.mark.parametrize("header", [None, "Bearer abc", "Basic !!!", "Basic YWJj"])
def test_broken_authorization_is_401_in_twilios_words(serve, account, header):
    """Without readable credentials the answer is Twilio's JSON, never a crash."""
    twilio, _ = serve()
    headers = {} if header is None else {"Authorization": header}
    answer = requests.get(f"{twilio.base_url}/2010-04-01/Accounts.json", headers=headers, timeout=10)
    assert answer.status_code == 401
    assert answer.json() == {
        "code": 20003,
        "message": "Authenticate",
        "more_info": "https://www.twilio.com/docs/errors/20003",
        "status": 401,
    }
    assert answer.headers["X-Twilio-Error-Code"] == "20003"


@pytest.mark.parametrize(
    ("status", "switches", "expected"),
    [
        ("suspended", Switches(), [FORBIDDEN, OK]),
        ("suspended", Switches(suspended_answer=401), [UNKNOWN, OK]),
        ("closed", Switches(), [UNKNOWN, MISSING]),
    ],
)
def test_inactive_subaccounts(serve, account, status, switches, expected):
    """A suspended account is refused and its parent still reads it; a closed one is gone but still listed."""
    account.add_subaccount(SUB, "sub-token", status=status)
    _, parent = serve(switches=switches)
    _, child = serve(user=SUB, secret="sub-token", switches=switches)
    answers = [client.get(f"/Accounts/{SUB}/Calls.json") for client in (child, parent)]
    assert [(answer.status_code, answer.json().get("code")) for answer in answers] == expected
    assert [each["sid"] for each in parent.get("/Accounts.json").json()["accounts"]] == [MAIN, SUB]


def test_accounts_are_listed_with_their_secret(serve, account):
    """The list holds the main account too, shows the parent, carries auth_token, and can be filtered and paged."""
    for number in range(2, 5):
        account.add_subaccount(f"AC{number:032x}", f"token-{number}", status="closed" if number == 4 else "active")
    _, client = serve()
    listed = client.get("/Accounts.json").json()["accounts"]
    assert [each["auth_token"] for each in listed] == ["token", "token-2", "token-3", "token-4"]
    assert {each["owner_account_sid"] for each in listed} == {MAIN}
    assert len(client.get("/Accounts.json?Status=active").json()["accounts"]) == 3
    first = client.get("/Accounts.json?PageSize=3").json()
    assert [listed[3]] == client.get(first["next_page_uri"]).json()["accounts"]
    assert listed[1] == client.get(f"/Accounts/{SUB}.json").json()


def test_a_list_never_includes_the_calls_of_subaccounts(serve, account):
    """Each account's list is its own."""
    own = account.call(NOON)
    theirs = account.add_subaccount(SUB, "t").call(NOON)
    _, client = serve()
    assert [own.sid] == client.sids()
    assert [theirs.sid] == [call["sid"] for call in client.page(SUB)["calls"]]
    assert client.get(f"/Accounts/{MAIN}/Calls/{theirs.sid}.json").status_code == 404


def test_fetch_of_an_unknown_call_is_20404(serve, account):
    """No such call: 404/20404."""
    _, client = serve()
    answer = client.get(f"/Accounts/{MAIN}/Calls/CA{7:032x}.json")
    assert (answer.status_code, answer.json()["code"]) == MISSING


def test_unknown_paths_and_methods(serve, account):
    """404 for a path that does not exist, 405 for another method than GET; the connection stays open."""
    twilio, client = serve()
    assert client.get(f"/Accounts/{MAIN}/Messages.json").status_code == 404
    url = f"{twilio.base_url}/2010-04-01/Accounts/{MAIN}/Calls.json"
    assert client.session.post(url, data={"To": "+12025550100"}, timeout=10).status_code == 405
    assert client.session.head(url, timeout=10).status_code == 405
    assert client.sids() == []


def usage(client, **params):
    """The usage records for some parameters."""
    return client.get(f"/Accounts/{MAIN}/Usage/Records/Daily.json", params=params).json()["usage_records"]


def test_usage_counts_billed_calls_by_day_of_start(serve, account):
    """Unanswered calls add nothing; minutes are rounded up; subaccounts count unless told otherwise."""
    day = timedelta(days=1)
    account.call(NOON - day, talks_for=61)
    account.call(NOON - day, status="busy")
    account.call(NOON - day, direction="inbound", price="-0.00850")
    account.call(NOON - 2 * day)
    account.add_subaccount(SUB, "t").call(NOON - day)
    _, client = serve()

    def total(**params):
        [record] = usage(client, Category="calls", StartDate="-1day", EndDate="yesterday", **params)
        return record["count"], record["usage"], Decimal(record["price"])

    assert ("3", "4", Decimal("0.0365")) == total()
    assert ("2", "3", Decimal("0.0225")) == total(IncludeSubaccounts="false")
    assert [
        record["start_date"] for record in usage(client, Category="calls-inbound", StartDate="-2days", EndDate="today")
    ] == ["2026-06-10", "2026-06-09", "2026-06-08"]


def test_usage_agrees_with_the_calls(serve, account):
    """Per day, `calls` and trunking together count the completed calls of the account."""
    account.generate(2000, NOON - timedelta(days=3), NOON - timedelta(days=1))
    _, client = serve()
    counted = {
        category: sum(int(record["count"]) for record in usage(client, Category=category, StartDate="-5days"))
        for category in ("calls", "calls-inbound", "trunking-origination", "trunking-termination")
    }
    completed = [call for call in account.calls_at(NOON) if call.status_at(seconds(NOON)) == "completed"]
    assert len(completed) == sum(counted.values()) - counted["calls-inbound"]
    assert 0 < counted["calls-inbound"] < counted["calls"]


def test_usage_pages_and_refuses_bad_dates(serve, account):
    """50 records a page unless told otherwise; an end before the start is 404/20404."""
    _, client = serve()
    path = f"/Accounts/{MAIN}/Usage/Records/Daily.json"
    first = client.get(f"{path}?Category=calls&StartDate=-59days").json()
    rest = client.get(first["next_page_uri"]).json()
    assert (len(first["usage_records"]), len(rest["usage_records"]), rest["next_page_uri"]) == (50, 10, None)
    for dates in ("StartDate=2026-06-10&EndDate=2026-06-01", "StartDate=soon"):
        bad = client.get(f"{path}?{dates}")
        assert (bad.status_code, bad.json()["code"]) == MISSING


def test_events_of_a_call_come_a_quarter_of_an_hour_later(serve, account, clock):
    """Events.json shows what was sent, with parameters in snake_case."""
    call = account.call(NOON - timedelta(minutes=10))
    _, client = serve()
    path = f"/Accounts/{MAIN}/Calls/{call.sid}/Events.json"
    assert client.get(path).json()["events"] == []
    clock.advance(timedelta(minutes=10))
    events = client.get(path).json()["events"]
    assert [event["request"]["parameters"]["call_status"] for event in events] == [
        "initiated",
        "ringing",
        "in-progress",
        "completed",
    ]
    assert client.get(f"/Accounts/{MAIN}/Calls/CA{7:032x}/Events.json").status_code == 404

"""Requests other than listings of calls: one call, the accounts, the usage records."""

from __future__ import annotations

import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from reconciler.errors import Refused, TwilioAnswerError, Unavailable
from reconciler.model import Page, Status
from reconciler.simulator import Fault
from reconciler.simulator.messages import Answer
from reconciler.twilio.account_records import Account, Usage
from reconciler.twilio.listing import Listing
from tests.harness.names import NOW

ACCOUNTS = "/2010-04-01/Accounts.json"


def instead(payload: object) -> Fault:
    """An answer of one's own."""
    return Fault("instead", instead=Answer(payload=payload))


# One call


def test_one_call_is_read_as_in_a_listing(source, listing, account, twilio):
    """The same observation, said at the answer's date, for one request."""
    listed = source.page(listing).observations[0]
    page = source.call(account.sid, listed.call_sid)
    assert Page([listed], [], None, NOW) == page
    assert f"/2010-04-01/Accounts/{account.sid}/Calls/{listed.call_sid}.json" == twilio.requests[-1].path
    assert (2, 0) == (source.requests, source.retries)


def test_a_call_that_twilio_has_no_more_is_an_empty_page(source, account):
    """404 is an answer: not repeated, no error, and no observation of any status."""
    sid = account.call(NOW - timedelta(hours=1)).sid
    assert 1 == len(source.call(account.sid, sid).observations)
    account.delete(sid, NOW - timedelta(minutes=1))
    page = source.call(account.sid, sid)
    assert ([], [], None) == page[:3]
    assert (2, 0) == (source.requests, source.retries)


def test_another_call_than_the_one_asked_for_is_no_answer(source, account, plan):
    """A proxy that mixes answers up must not make one call of another."""
    asked, other = (account.call(NOW - timedelta(hours=1)) for _ in range(2))
    plan.next(instead(dict(account.record(other.sid, NOW))))
    with pytest.raises(TwilioAnswerError, match=asked.sid):
        source.call(account.sid, asked.sid)


def test_a_call_that_cannot_be_read_is_a_dead_letter(source, account, plan):
    """It has the reason, and the call's SID."""
    record = account.call(NOW - timedelta(hours=1)).record(NOW)
    plan.next(instead({**record, "status": "exploded"}), instead([record]))
    page, shapeless = (source.call(account.sid, record["sid"]) for _ in range(2))
    assert [] == page.observations == shapeless.observations
    assert [(record["sid"], "unknown status 'exploded'")] == [(x.call_sid, x.reason) for x in page.dead_letters]
    assert ["the record is no JSON object"] == [letter.reason for letter in shapeless.dead_letters]


@pytest.mark.parametrize("fault", [Fault.server_error(503), Fault.truncated_json(), Fault.html_with_200()])
def test_a_call_is_asked_for_again(source, account, plan, fault):
    """The client repeats the request, as for a page."""
    sid = account.call(NOW - timedelta(hours=1)).sid
    plan.next(fault)
    assert [sid] == [observation.call_sid for observation in source.call(account.sid, sid).observations]
    assert 1 == source.retries


@pytest.mark.parametrize("fault", [Fault.unauthorized(), Fault.forbidden()])
def test_a_refusal_is_not_taken_for_a_call_that_is_gone(source, account, plan, fault):
    """Credentials that may not see a call say nothing of it."""
    plan.next(fault)
    with pytest.raises(Refused):
        source.call(account.sid, account.new_sid())


# Usage records


@pytest.fixture
def busy_days(account):
    """Three billed calls on 2 June and one on the 3rd; beside them one that was busy and one of a subaccount."""
    second = datetime(2026, 6, 2, tzinfo=UTC)
    for hour in (0, 12):
        account.call(second + timedelta(hours=hour))
    account.call(second + timedelta(hours=23, minutes=59, seconds=50), queued_for=0)
    account.call(second + timedelta(hours=1), status="busy")
    account.call(second + timedelta(days=1, hours=5))
    account.add_subaccount(f"AC{9:032x}", "sub-token").call(second)


def test_billed_calls_are_counted_by_day(source, account, twilio, busy_days):
    """Both ends and days without calls count. Only this account's calls count, by the day of their start."""
    counted = source.usage(account.sid, date(2026, 6, 1), date(2026, 6, 3))
    assert counted == {
        date(2026, 6, 1): Usage(0, Decimal(0), "USD"),
        date(2026, 6, 2): Usage(3, Decimal("0.04200"), "USD"),
        date(2026, 6, 3): Usage(1, Decimal("0.01400"), "USD"),
    }
    (request,) = twilio.requests
    assert f"/2010-04-01/Accounts/{account.sid}/Usage/Records/Daily.json" == request.path
    assert {
        "Category": "calls", "StartDate": "2026-06-01", "EndDate": "2026-06-03", "IncludeSubaccounts": "false",
        "PageSize": "3",
    } == dict(request.params)  # fmt: skip


def test_a_subaccount_has_counts_of_its_own(source, busy_days):
    """The request uses its own path."""
    only = source.usage(f"AC{9:032x}", date(2026, 6, 2), date(2026, 6, 2))
    assert only == {date(2026, 6, 2): Usage(1, Decimal("0.01400"), "USD")}


@pytest.mark.parametrize(
    ("price", "read"),
    [(0.1, "0.1"), (12, "12"), ("0.30000000000000004441", "0.30000000000000004441"), (None, None)],
)
def test_a_price_of_usage_is_exact(source, account, plan, price, read):
    """Text or a number of JSON; its currency is in capitals, and a price without a currency is none."""
    day = date(2026, 6, 2)
    record = {"start_date": "2026-06-02", "count": "1", "price": price, "price_unit": "eur"}
    plan.next(instead({"usage_records": [record]}))
    assert source.usage(account.sid, day, day) == {day: Usage(1, read and Decimal(read), "EUR")}
    plan.next(instead({"usage_records": [record | {"price_unit": None}]}))
    assert source.usage(account.sid, day, day) == {day: Usage(1, None, None)}


@pytest.mark.parametrize(
    "payload",
    [
        {"usage_records": [{"start_date": "soon", "count": "1"}]},
        {"usage_records": [{"start_date": "2026-06-02", "count": "many"}]},
        {"usage_records": [{"count": "1"}]},
        {"usage_records": [{"start_date": "2026-06-02", "count": "1", "price": "free"}]},
        {"usage_records": [{"start_date": "2026-06-02", "count": "1", "price": "NaN", "price_unit": "usd"}]},
        {"calls": []},
        [],
    ],
)
def test_what_are_no_usage_records_is_asked_for_again_and_then_said(source, account, plan, payload, busy_days):
    """A count that cannot be read is none: never 0."""
    day = date(2026, 6, 2)
    plan.next(instead(payload))
    assert source.usage(account.sid, day, day)[day].calls == 3
    plan.always(instead(payload))
    with pytest.raises(Unavailable, match="not a list of usage records"):
        source.usage(account.sid, day, day)


# Accounts


@pytest.fixture
def family(account) -> list[Account]:
    """The account with three subaccounts, one of them closed and one suspended."""
    for number, status in ((7, "active"), (8, "closed"), (9, "suspended")):
        account.add_subaccount(f"AC{number:032x}", "sub-token", status=status)
    return [Account(account.sid, "active")] + [Account(sub.sid, sub.status) for sub in account.subaccounts.values()]


def test_all_accounts_are_listed(source, twilio, family):
    """The account itself, then its subaccounts, whatever their status; a thousand a page."""
    assert family == source.accounts()
    assert [[("PageSize", "1000")]] == [request.params for request in twilio.requests]


def test_accounts_are_read_page_by_page(source, plan, family):
    """Every one once, to the last page."""
    first, *_ = family
    plan.next(instead({"accounts": [first._asdict()], "next_page_uri": f"{ACCOUNTS}?PageSize=1&Page=1"}))
    assert family == source.accounts()
    assert 5 == source.requests  # the last page is full, so Twilio names one more, and it is empty


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("/2010-04-01/Accounts/AC11111111111111111111111111111111/Calls.json", "another resource"),
        (f"{ACCOUNTS}?PageSize=1000", "back to its own page"),
        ("http://[::1", "not a URI"),
    ],
)
def test_a_next_page_of_accounts_that_is_none_is_refused(source, plan, uri, why):
    """The client does not follow it without end."""
    plan.next(instead({"accounts": [], "next_page_uri": uri}))
    with pytest.raises(TwilioAnswerError, match=why):
        source.accounts()
    assert 1 == source.requests


def test_an_api_key_may_not_list_accounts(make_source, twilio, account):
    """A standard key: Twilio refuses, and so do we."""
    account.add_key(f"SK{3:032x}", "key-secret", "standard")
    with pytest.raises(Refused):
        make_source(twilio.base_url, credentials={"username": f"SK{3:032x}", "secret": "key-secret"}).accounts()


def test_the_tokens_that_come_with_accounts_are_seen_nowhere(source, account, plan, family, events):
    """Twilio sends each account's auth token. It is in no result, in no error or traceback, and in no log line."""
    said = [repr(source.accounts()), repr(source)]
    tokens = [account.auth_token, "sub-token"]
    for broken in ({"sid": 1, "auth_token": tokens[0]}, {"sid": tokens[1]}, {"status": 1, "sid": tokens[1]}):
        plan.always(instead({"accounts": [broken]}))
        with pytest.raises(Unavailable, match="not a list of accounts") as caught:
            source.accounts()
        said += [repr(caught.value), *traceback.format_exception(caught.value)]
    said.append(repr(events))
    assert len(events) > 3
    assert not [text for text in said for token in tokens if token in text]


# Several runs behind one door


def test_each_run_has_counts_of_its_own(source, listing, plan):
    """The pacing is everybody's."""
    one, other = source.client.session(threading.Event()), source.client.session(threading.Event())
    plan.next(Fault.too_many_requests())
    one.page(listing)
    other.page(listing)
    counts = [(each.requests, each.retries, each.throttles) for each in (one, other, source)]
    assert [(2, 1, 1), (1, 0, 0), (0, 0, 0)] == counts
    assert one.client is other.client is source.client


def test_credentials_that_worked_for_one_run_are_only_doubted_in_another(source, listing, plan):
    """A request that met a passing 401 is sent again, also if it was another run that Twilio answered before."""
    source.client.session(threading.Event()).page(listing)
    plan.next(Fault.unauthorized())
    assert 10 == len(source.client.session(threading.Event()).page(listing).observations)


def test_bulk_work_leaves_a_place_to_the_rest(make_source, twilio, account, listing, plan):
    """Four requests at once are allowed: where hot has asked lately, a backfill takes three, and hot is answered."""
    living = Listing(account.sid, status=Status.IN_PROGRESS)
    source = make_source(twilio.base_url, limit=4)
    plan.when(lambda request: request.param("Status") is None, Fault.hang())
    assert [] == source.client.session(threading.Event()).page(living).observations
    bulk = source.client.session(threading.Event(), is_bulk=True)
    with ThreadPoolExecutor(6) as pool:
        pages = [pool.submit(bulk.page, listing) for _ in range(6)]
        assert plan.wait_until_hanging(3)
        for _ in range(5):
            assert [] == source.client.session(threading.Event()).page(living).observations
        assert 3 == plan.hanging
        plan.clear()
        assert [10] * 6 == [len(page.result(timeout=30).observations) for page in pages]

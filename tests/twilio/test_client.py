"""Requests for pages, answers that are pages, and the error for every other answer."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from reconciler import __version__, retry
from reconciler.errors import (
    ConnectionLost,
    CredentialsDoubted,
    FilterIgnored,
    OutsideRetention,
    RateLimited,
    Refused,
    TwilioAnswerError,
    Unavailable,
)
from reconciler.model import Status
from reconciler.settings import Credentials
from reconciler.simulator import Fault, FaultPlan, SimulatedAccount, SimulatedTwilio, Switches
from reconciler.simulator.listing import list_calls
from reconciler.simulator.messages import Answer
from reconciler.twilio.answers import load_of
from reconciler.twilio.budget import START
from reconciler.twilio.client import Session, TwilioClient
from reconciler.twilio.concurrency import Pacer
from reconciler.twilio.listing import Listing
from reconciler.twilio.transport import Answer as HttpAnswer
from reconciler.twilio.transport import Transport
from tests.harness.names import NOW


def instead(payload: object = None, **answer: Any) -> Fault:
    """An answer of one's own."""
    return Fault("instead", instead=Answer(payload=payload, **answer))


def whole_log(account: SimulatedAccount, twilio: SimulatedTwilio) -> Fault:
    """Twilio's answer when it ignores every filter."""
    return instead(list_calls(account, [("PageSize", "1000")], twilio.clock.now(), Switches()))


def sids(source: Session, listing: Listing) -> list[str]:
    """The SIDs of a whole listing, in order."""
    found, path = [], None
    while True:
        page = source.page(listing, path)
        found += [observation.call_sid for observation in page.observations]
        if (path := page.next_uri) is None:
            return found


# Requests


def test_pages_follow_tokens(source, listing, twilio, account):
    """Every call once, in Twilio's order, by the tokens of next_page_uri; calls that arrive meanwhile shift nothing."""
    expected = [call.sid for call in account.calls_at(NOW)]
    first = source.page(listing)
    account.call(NOW - timedelta(minutes=1))
    second = source.page(listing, first.next_uri)
    assert expected[:10] == [observation.call_sid for observation in first.observations]
    assert expected[10:20] == [observation.call_sid for observation in second.observations]
    assert [None, f"PA{expected[9]}"] == [entry.param("PageToken") for entry in twilio.requests]


def test_an_empty_last_page_ends_the_listing(source, listing, account):
    """Thirty calls in pages of ten: the fourth page is empty. One request proves that it is the end."""
    assert [call.sid for call in account.calls_at(NOW)] == sids(source, listing)
    assert 5 == source.requests


@pytest.mark.parametrize("deleted_cursor", ["empty", "refuse"])
def test_a_page_whose_token_died_is_no_end(source, listing, twilio, account, deleted_cursor):
    """The call that the token names is gone. Twilio's answer would otherwise prove a listing that has ten of thirty."""
    twilio.switches = Switches(deleted_cursor=deleted_cursor)
    first = source.page(listing)
    account.delete(first.observations[-1].call_sid, NOW)
    with pytest.raises(TwilioAnswerError):
        source.page(listing, first.next_uri)
    assert 29 == len(sids(source, listing))


def test_a_page_whose_token_left_the_listing_is_no_end(source, account, plan):
    """The call of the token is over by now, and a listing of open calls may end there."""
    for minute in range(12):
        account.call(NOW - timedelta(minutes=20 + minute), talks_for=None)
    living = Listing(account.sid, status=Status.IN_PROGRESS, page_size=10)
    first = source.page(living)
    account.hang_up(first.observations[-1].call_sid, NOW)
    plan.next(instead({"calls": [], "next_page_uri": None}))
    with pytest.raises(TwilioAnswerError, match="promised page came empty"):
        source.page(living, first.next_uri)


def test_filters_have_their_operator_in_the_name(source, twilio, account):
    """`StartTime>=…` on the wire is the name `StartTime>`; times are UTC instants, and pages are as large as can be."""
    listing = Listing(account.sid, since=NOW - timedelta(days=1), until=NOW)
    source.page(listing)
    source.page(Listing(account.sid, status=Status.IN_PROGRESS, page_size=5))
    first, second = twilio.requests
    assert listing.path.endswith(
        "?StartTime%3E=2026-06-09T12%3A00%3A00Z&StartTime%3C=2026-06-10T12%3A00%3A00Z&PageSize=1000"
    )
    assert [
        ("StartTime>", "2026-06-09T12:00:00Z"), ("StartTime<", "2026-06-10T12:00:00Z"), ("PageSize", "1000"),
    ] == first.params  # fmt: skip
    assert [("Status", "in-progress"), ("PageSize", "5")] == second.params
    assert f"/2010-04-01/Accounts/{account.sid}/Calls.json" == first.path


def test_requests_tell_who_asks(source, listing, twilio):
    """Twilio's support can tell our requests from others of the account."""
    source.page(listing)
    assert twilio.requests[0].user_agent.endswith(f" reconciler/{__version__}")
    assert "twilio-python/" in twilio.requests[0].user_agent


def test_an_api_key_signs_in_for_its_account(make_source, twilio, account, listing):
    """The key is the user, the path still names the account."""
    account.add_key(f"SK{3:032x}", "key-secret", "standard")
    source = make_source(twilio.base_url, credentials={"username": f"SK{3:032x}", "secret": "key-secret"})
    assert 10 == len(source.page(listing).observations)
    assert account.sid in twilio.requests[0].path


def test_the_account_reads_its_subaccounts(make_source, twilio, account):
    """It uses its own credentials, and the subaccount in the path. An API key may not."""
    sub = account.add_subaccount(f"AC{9:032x}", "sub-token")
    call = sub.call(NOW - timedelta(hours=3))
    assert [call.sid] == sids(make_source(twilio.base_url), Listing(sub.sid))
    account.add_key(f"SK{3:032x}", "key-secret")
    with pytest.raises(Refused):
        make_source(twilio.base_url, credentials={"username": f"SK{3:032x}", "secret": "key-secret"}).page(
            Listing(sub.sid)
        )


@pytest.mark.parametrize(
    ("region", "edge", "host"),
    [
        (None, None, "https://api.twilio.com"),
        ("us1", None, "https://api.us1.twilio.com"),
        ("ie1", None, "https://api.ie1.twilio.com"),
        (None, "dublin", "https://api.dublin.us1.twilio.com"),
        ("au1", "sydney", "https://api.sydney.au1.twilio.com"),
    ],
)
def test_region_and_edge_make_the_host(account, region, edge, host):
    """The host follows the SDK's rule, before the first request and after it."""
    client = TwilioClient(Credentials(account.sid, account.sid, "token", region, edge), pacer=Pacer(1))
    assert host == client._base
    assert f"{host}/2010-04-01" == client._sdk.get_hostname(f"{host}/2010-04-01")
    client.close()


def test_the_sdk_reads_nothing_from_the_environment(monkeypatch, make_source, twilio, listing):
    """It would take TWILIO_* from there in silence, and with them another account, region or edge."""
    for name in ("ACCOUNT_SID", "AUTH_TOKEN", "REGION", "EDGE"):
        monkeypatch.setenv(f"TWILIO_{name}", "elsewhere")
    source = make_source(twilio.base_url)
    assert 10 == len(source.page(listing).observations)
    assert (None, None) == (source.client._sdk.region, source.client._sdk.edge)
    default = TwilioClient(Credentials("AC", "AC", "token"), pacer=Pacer(1))
    assert "https://api.twilio.com" == default._base
    default.close()
    assert "elsewhere" == os.environ["TWILIO_REGION"]


def test_gzip_changes_nothing(source, listing, twilio):
    """Twilio compresses for clients that offer it."""
    plain = source.page(listing)
    twilio.switches = Switches(gzip=True)
    assert plain == source.page(listing)


def test_unknown_keys_are_kept_beside_the_known_ones(source, listing, twilio):
    """Twilio adds fields unannounced, to records and to the envelope."""
    plain = source.page(listing)
    twilio.switches = Switches(extra_keys=True)
    page = source.page(listing)
    assert [o._replace(other_fields=None) for o in page.observations] == [
        o._replace(other_fields=None) for o in plain.observations
    ]
    for known, observation in zip(plain.observations, page.observations, strict=True):
        assert known.other_fields is not None and observation.other_fields is not None
        kept, more = json.loads(known.other_fields), json.loads(observation.other_fields)
        assert kept.items() < more.items()


def test_observed_at_is_twilios_date(source, listing, clock):
    """Our clock may be wrong."""
    page = source.page(listing)
    assert NOW == page.observed_at
    assert {NOW} == {observation.observed_at for observation in page.observations}


@pytest.mark.parametrize("date", [None, "", "soon", "Wed, 10 Jun 2026 12:00:00", "Mon, 01 Jan 0001 00:00:00 GMT"])
def test_observed_at_is_our_clock_without_a_plausible_date(make_source, twilio, plan, listing, date):
    """A proxy may drop the header or spoil it; ours then, in whole seconds like Twilio's."""
    twilio.switches = Switches(date_header=False)
    headers = () if date is None else (("Date", date),)
    plan.next(instead({"calls": [], "next_page_uri": None}, headers=headers))
    source = make_source(twilio.base_url, clock=lambda: datetime(2026, 6, 11, 1, 2, 3, 456_789, tzinfo=UTC))
    assert datetime(2026, 6, 11, 1, 2, 3, tzinfo=UTC) == source.page(listing).observed_at


def dated(moment: datetime) -> Fault:
    """An empty listing with that `Date`."""
    return instead({"calls": [], "next_page_uri": None}, headers=(("Date", format_datetime(moment, usegmt=True)),))


def observed(source: Session, plan: FaultPlan, listing: Listing, *dates: datetime) -> list[datetime]:
    """The observed_at of answers with these dates."""
    plan.next(*map(dated, dates))
    return [source.page(listing).observed_at for _ in dates]


@pytest.fixture
def undated(twilio: SimulatedTwilio) -> SimulatedTwilio:
    """A Twilio that leaves the date to the test."""
    twilio.switches = Switches(date_header=False)
    return twilio


@pytest.mark.parametrize("odd", [timedelta(days=26_000), timedelta(minutes=50), timedelta(minutes=6)])
def test_a_date_in_the_future_is_bounded_by_our_clock(make_source, undated, plan, listing, odd):
    """If it were accepted, it would outrank all that Twilio says until then."""
    source = make_source(undated.base_url, clock=lambda: NOW)
    assert [NOW, NOW, NOW] == observed(source, plan, listing, NOW + odd, NOW, NOW + odd)


def test_a_date_in_the_future_is_bounded_by_earlier_answers(make_source, undated, plan, listing):
    """Our clock may be a day ahead, and then allows too much. A second of testing may pass."""
    source = make_source(undated.base_url, clock=lambda: NOW + timedelta(hours=25))
    true, odd, after = observed(source, plan, listing, NOW, NOW + timedelta(minutes=50), NOW)
    assert (NOW, NOW) == (true, after)
    assert NOW <= odd < NOW + timedelta(seconds=30)


@pytest.mark.parametrize(("ours", "is_found"), [(-timedelta(hours=2), True), (-timedelta(days=26_000), False)])
def test_answers_that_agree_are_twilios_clock(make_source, undated, plan, listing, ours, is_found):
    """Our clock may be behind by hours, but not by decades: the third answer that says the same is accepted."""
    source = make_source(undated.base_url, clock=lambda: NOW + ours)
    first, second, *rest = observed(source, plan, listing, *[NOW] * 5)
    assert [NOW + ours] * 2 == [first, second]
    assert [NOW if is_found else NOW + ours] * 3 == rest


def test_a_date_in_the_past_is_accepted(make_source, undated, plan, listing):
    """A cache repeats what was said then; and our clock may be ahead."""
    source = make_source(undated.base_url, clock=lambda: NOW)
    hours = [NOW, NOW - timedelta(hours=3), NOW]
    assert hours == observed(source, plan, listing, *hours)


# Where next_page_uri may lead


def test_no_foreign_host_hears_of_us(source, listing, twilio, account, elsewhere):
    """An absolute next_page_uri is followed on our own host."""
    twilio.switches = Switches(absolute_next_page_uri=elsewhere.base_url)
    assert 30 == len(sids(source, listing))
    assert 5 == len(twilio.requests)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_never_followed(source, listing, twilio, plan, elsewhere, status):
    """The client follows none, with or without credentials, to another host or our own."""
    plan.next(Fault.redirect(f"{elsewhere.base_url}/2010-04-01/Calls.json", status))
    with pytest.raises(TwilioAnswerError, match=f"HTTP {status}"):
        source.page(listing)
    plan.next(Fault.redirect(listing.path, status))
    with pytest.raises(TwilioAnswerError):
        source.page(listing)
    assert 2 == len(twilio.requests)


def test_the_transport_refuses_other_hosts_before_sending(source, twilio, elsewhere):
    """Scheme, host and port must be those of the transport."""
    port = twilio.base_url.rpartition(":")[2]
    for uri in (elsewhere.base_url, f"https://127.0.0.1:{port}/", f"http://localhost:{port}/", "http://127.0.0.1/"):
        with pytest.raises(TwilioAnswerError, match="refused to send credentials"):
            source.client._transport.request("GET", uri, auth=("user", "secret"))
    assert 0 == len(twilio.requests)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("/2010-04-01/Accounts.json", "another resource"),
        ("/2010-04-01/Accounts/ACffffffffffffffffffffffffffffffff/Calls.json?Page=1", "another resource"),
        ("https://elsewhere.example/", "another resource"),
        ("//elsewhere.example/x", "another resource"),
        ("http://[::1", "not a URI"),
        ("/2010-04-01/Accounts/AC11111111111111111111111111111111/Calls.json?To=\ud800", "not a URI"),
        ("{self}", "back to its own page"),
        ("https://api.twilio.com{self}", "back to its own page"),
    ],
)  # fmt: skip
def test_a_next_page_that_is_none_is_refused(source, listing, plan, uri, why):
    """Another account's calls, another kind of record or the same page for ever."""
    body = {"calls": [], "next_page_uri": uri.replace("{self}", listing.path)}
    plan.next(instead(body=json.dumps(body).encode()))
    with pytest.raises(TwilioAnswerError, match=why):
        source.page(listing)
    assert 1 == source.requests


# Filters that Twilio ignores


@pytest.fixture
def today(account) -> Listing:
    """The calls since midnight; the account has older ones."""
    return Listing(account.sid, since=NOW.replace(hour=0), until=NOW)


def test_an_ignored_window_is_loud(source, today, twilio, account):
    """The whole log comes back instead of a day: asked three times, then an error and never a page."""
    twilio.switches = Switches(ignore_filters=True)
    with pytest.raises(FilterIgnored):
        source.page(today)
    assert (3, 2) == (source.requests, source.retries)


def test_an_ignored_status_is_loud(source, twilio, account):
    """Otherwise completed calls in answer to `Status=queued` would count as open."""
    twilio.switches = Switches(ignore_filters=True)
    with pytest.raises(FilterIgnored):
        source.page(Listing(account.sid, status=Status.QUEUED))


def test_an_ignored_filter_heals_if_it_was_passing(source, today, twilio, account, plan):
    """The second answer is the page."""
    plan.next(whole_log(account, twilio))
    page = source.page(today)
    assert page.observations
    assert all(NOW.replace(hour=0) <= observation.start_time < NOW for observation in page.observations)
    assert 1 == source.retries


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("null_matches", [False, True])
@pytest.mark.parametrize("time_filters", ["instant", "day"])
def test_every_reading_of_the_filters_is_taken_for_an_answer(
    source, account, twilio, time_filters, null_matches, inclusive
):
    """Days or instants, `<` with or without its midnight, calls without start_time or not: none is suspicious."""
    for hour in range(24):
        account.call(datetime(2026, 6, 9, hour, 59, 59, tzinfo=UTC))
    account.call(datetime(2026, 6, 9, tzinfo=UTC), rings_for=0)
    account.call(datetime(2026, 6, 10, tzinfo=UTC), rings_for=0)
    account.call(NOW - timedelta(days=2), status="canceled", never_dialled=True)
    twilio.switches = Switches(
        time_filters=time_filters, null_start_matches_filters=null_matches, before_is_inclusive=inclusive
    )
    day = datetime(2026, 6, 9, tzinfo=UTC)
    tomorrow = day + timedelta(days=1)
    for since, until in ((day, tomorrow), (day + timedelta(hours=7), day + timedelta(hours=9))):
        page = source.page(Listing(account.sid, since=since, until=tomorrow + timedelta(minutes=10)))
        found = {observation.call_sid for observation in page.observations}
        wanted = {call.sid for call in account.calls_at(NOW) if _starts_within(call, since, until)}
        assert wanted <= found


def _starts_within(call, since: datetime, until: datetime) -> bool:
    start = call.start_at(int(NOW.timestamp()))
    return start is not None and since.timestamp() <= start < until.timestamp()


def test_a_call_that_changed_while_listed_by_status_is_no_ignored_filter(source, account, plan):
    """A listing of the living may show one that ended in the same moment."""
    living = account.call(NOW - timedelta(minutes=1), talks_for=None)
    ended = account.call(NOW - timedelta(minutes=2), talks_for=5)
    plan.next(instead({"calls": [living.record(NOW), ended.record(NOW)], "next_page_uri": None}))
    page = source.page(Listing(account.sid, status=Status.IN_PROGRESS))
    assert [living.sid, ended.sid] == [observation.call_sid for observation in page.observations]


# Answers that are no page


PASSING = [
    Fault.server_error(500), Fault.server_error(502, html=True), Fault.server_error(503),
    Fault.server_error(504, html=True), Fault.proxy(401), Fault.proxy(403), Fault.proxy(407),
    Fault.error(408, None, "Request Timeout"), Fault.too_many_requests(), Fault.too_many_requests(0), Fault.reset(),
    Fault.reset_mid_body(), Fault.closed_early(), Fault.truncated_json(), Fault.html_with_200(), Fault.empty_body(),
    Fault.empty_body(503), Fault.array(),
]  # fmt: skip


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: fault.name)
def test_what_can_heal_is_asked_again(source, listing, plan, events, fault):
    """The page comes as if nothing had been; each repeat is counted and logged, with its attempt and wait."""
    plan.next(fault, fault)
    assert 10 == len(source.page(listing).observations)
    assert (3, 2) == (source.requests, source.retries)
    retried = [event for event in events if event["event"] == "twilio.retried"]
    assert [1, 2] == [event["attempt"] for event in retried]
    assert {"event", "log_level", "error", "attempt", "wait_seconds"} == set(retried[0])


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (Fault.server_error(503), Unavailable, "^HTTP 503, Twilio error 20500: Service Unavailable$"),
        (Fault.server_error(502, html=True), Unavailable, "^HTTP 502$"),
        (
            instead(status=500, body=b'{"type": "x", "title": "Broken", "code": 30}'),
            Unavailable,
            "Twilio error 30: Broken",
        ),
        (instead(status=500, body=b"[" * 100_000), Unavailable, "^HTTP 500$"),
        (instead(status=500, body=b'["code"]'), Unavailable, "^HTTP 500$"),
        (Fault.too_many_requests(), RateLimited, "^HTTP 429, Twilio error 20429: Too Many Requests$"),
        (Fault.reset(), ConnectionLost, "connection reset"),
        (Fault.closed_early(), ConnectionLost, "IncompleteRead"),
        (Fault.html_with_200(), Unavailable, "not JSON"),
        (Fault.array(), Unavailable, "not a listing"),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else None,
)
def test_what_does_not_heal_comes_out_in_the_end(source, listing, plan, fault, error, said):
    """The error comes after ten attempts. It has Twilio's code and words if any, and never a gateway's HTML."""
    plan.always(fault)
    with pytest.raises(error, match=said):
        source.page(listing)
    assert (10, 9) == (source.requests, source.retries)


@pytest.mark.parametrize(
    ("fault", "error", "said", "hint"),
    [
        (Fault.unauthorized(), Refused, "HTTP 401, Twilio error 20003", "TWILIO_ACCOUNT_SID with TWILIO_AUTH_TOKEN"),
        (Fault.forbidden(20403), Refused, "HTTP 403, Twilio error 20403", "suspended"),
        (Fault.forbidden(20005), Refused, "Twilio error 20005", "suspended"),
        (Fault.forbidden(70051), Refused, "Twilio error 70051", "lacks a permission"),
        (Fault.not_found(), Refused, "HTTP 404, Twilio error 20404", "cannot read subaccounts"),
        (Fault.error(400, 21201, "No 'To'"), TwilioAnswerError, "HTTP 400, Twilio error 21201: No 'To'", None),
        (Fault.error(400, None, "Invalid StartDate"), TwilioAnswerError, "HTTP 400: Invalid StartDate", None),
        (Fault.error(400, 20004, "outside of retention window"), OutsideRetention, "20004", None),
        (Fault.error(405, 20004, "Method not allowed"), TwilioAnswerError, "HTTP 405", None),
        (Fault.empty_body(204), TwilioAnswerError, "HTTP 204", None),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else None,
)
def test_what_cannot_heal_is_asked_once(source, listing, plan, fault, error, said, hint):
    """A person must act, or the window is too old: the message names the setting, and Twilio is not hammered."""
    plan.always(fault)
    with pytest.raises(error, match=said) as caught:
        source.page(listing)
    assert (1, 0) == (source.requests, source.retries)
    assert hint is None or hint in caught.value.hint


def test_a_window_before_the_retention_is_not_an_outage(source, account, twilio):
    """Twilio's own answer to a window too old."""
    twilio.switches = Switches(retention_days=400)
    with pytest.raises(OutsideRetention):
        source.page(Listing(account.sid, since=NOW - timedelta(days=500), until=NOW - timedelta(days=499)))


@pytest.mark.parametrize("answer", [401, 403])
def test_a_suspended_account_is_refused(source, listing, account, twilio, answer):
    """Twilio is said to give either of two answers."""
    account.status = "suspended"
    twilio.switches = Switches(suspended_answer=answer)
    with pytest.raises(Refused, match=f"HTTP {answer}"):
        source.page(listing)


def test_wrong_credentials_are_refused_without_naming_them(make_source, twilio, listing):
    """The token is in no message."""
    source = make_source(twilio.base_url, credentials={"secret": "wrong-token"})
    with pytest.raises(Refused) as caught:
        source.page(listing)
    assert "wrong-token" not in f"{caught.value} {caught.value.hint} {caught.value.__context__!r}"
    assert 1 == len(twilio.requests)


def test_credentials_that_worked_are_doubted_before_they_are_given_up(source, listing, plan):
    """A 401 after a success is asked again three times, then it is the credentials."""
    source.page(listing)
    plan.always(Fault.unauthorized())
    with pytest.raises(CredentialsDoubted) as caught:
        source.page(listing)
    assert (5, 3, 77) == (source.requests, source.retries, caught.value.exit_code)


def test_a_passing_401_heals(source, listing, plan):
    """Twilio's own authentication has outages; mixed with 503 they are each the first of their kind."""
    source.page(listing)
    plan.next(*[Fault.server_error(503)] * 4, Fault.unauthorized(), Fault.unauthorized())
    assert 10 == len(source.page(listing).observations)


# Time


def test_a_hanging_answer_ends_in_our_own_timeout(make_source, twilio, listing, plan):
    """The SDK would wait for ever."""
    source = make_source(twilio.base_url, timeouts=(0.1, 5))
    plan.next(Fault.hang())
    started = time.monotonic()
    assert 10 == len(source.page(listing).observations)
    assert 1 == source.retries
    assert time.monotonic() - started < 5


@contextmanager
def raw_server(answer: bytes, drip: bytes = b"") -> Iterator[str]:
    """A server that sends `answer` and then `drip`, again and again, until its client leaves."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        left = threading.Event()

        def serve() -> None:
            while not left.is_set():
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(65_536)
                        connection.sendall(answer)
                        while drip and not left.wait(0.01):
                            connection.sendall(drip)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            left.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture
def stopped() -> threading.Event:
    """Set: nothing is asked twice."""
    stop = threading.Event()
    stop.set()
    return stop


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("answer", "drip"),
    [
        (HEAD + b"Content-Length: 1000000\r\n\r\n", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFF\r\n", b" "),
        (HEAD + b"\r\n", b" "),
    ],
    ids=["length", "chunks", "one chunk", "until closed"],
)
def test_a_trickle_ends_in_time(make_source, listing, stopped, answer, drip):
    """A byte now and then keeps the read timeout from striking; the answer as a whole has its own."""
    with raw_server(answer, drip) as url:
        source = make_source(url, timeouts=(5, 0.2), stop=stopped)
        started = time.monotonic()
        with pytest.raises(Unavailable, match="did not end in time"):
            source.page(listing)
        assert time.monotonic() - started < 3


def test_a_body_that_stops_arriving_is_a_timeout(make_source, listing, stopped):
    """It is an outage to wait for, not a lost connection to replace at once."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = make_source(f"http://127.0.0.1:{silent.getsockname()[1]}", timeouts=(0.1, 5), stop=stopped)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(source.page, listing)
            connection, _ = silent.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
                error = asked.exception(5)
    assert isinstance(error, Unavailable)
    assert not isinstance(error, ConnectionLost)
    assert "no answer in time" == str(error)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", ConnectionLost),
        (b"SSH-2.0-OpenSSH_9.6\r\n", ConnectionLost),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nFF\r\n{", ConnectionLost),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nhello\r\n", ConnectionLost),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello", Unavailable),
        (HEAD + b"Content-Length: 5\r\n\r\nhe", ConnectionLost),
    ],
    ids=["nothing", "no HTTP", "cut chunk", "bad chunk", "bad gzip", "cut body"],
)
def test_what_is_no_http_is_unavailable(make_source, listing, stopped, answer, error):
    """Another program may listen on the port."""
    with raw_server(answer) as url, pytest.raises(error):
        make_source(url, timeouts=(1, 5), stop=stopped).page(listing)


def test_nobody_at_the_port_is_a_lost_connection(make_source, listing, stopped):
    """The error tells the kind of failure, without the URL and what it may hold."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionLost, match=r"^the connection failed: connection refused$"):
        make_source(f"http://127.0.0.1:{port}", stop=stopped).page(listing)


def test_an_answer_without_end_is_cut_off(make_source, listing, stopped):
    """It must not fill the memory; no page is nearly as large."""
    with raw_server(HEAD + b"\r\n", b" " * 50_000) as url, pytest.raises(Unavailable, match="larger than any page"):
        make_source(url, transport=Transport(url, connections=1, largest_body=100_000), stop=stopped).page(listing)


def test_the_first_repeat_after_a_reset_is_at_once(monkeypatch, source, listing, plan, events):
    """An idle connection that Twilio had closed costs no wait; the next one does."""
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.02)
    plan.next(Fault.reset(), Fault.reset())
    source.page(listing)
    first, second = (event["wait_seconds"] for event in events if event["event"] == "twilio.retried")
    assert 0 == first < second


def test_stopping_ends_a_wait_at_once(make_source, twilio, listing, plan):
    """Retry-After may have asked for a wait of minutes."""
    stop = threading.Event()
    source = make_source(twilio.base_url, stop=stop)
    waiting = threading.Event()
    source._retrying.before_sleep = lambda _: waiting.set()
    plan.always(Fault.too_many_requests(200))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(source.page, listing)
        assert waiting.wait(5)
        stop.set()
        assert isinstance(asked.exception(5), RateLimited)
    assert source.requests <= 2


# 429


def wait_of(events: list) -> float:
    """The only wait."""
    [wait] = [event["wait_seconds"] for event in events if event["event"] == "twilio.retried"]
    return wait


def test_retry_after_in_seconds_is_obeyed(source, listing, plan, events):
    """The wait is exact to the second."""
    plan.next(Fault.too_many_requests(1))
    source.page(listing)
    assert 1 == wait_of(events)


def test_retry_after_as_a_date_is_on_twilios_clock(source, listing, plan, events):
    """Ours may be wrong by hours, and the simulated Twilio's is by years."""
    later = format_datetime(NOW + timedelta(seconds=1), usegmt=True)
    plan.next(instead(status=429, body=b"", headers=(("Retry-After", later),)))
    source.page(listing)
    assert 1 == wait_of(events)


@pytest.mark.parametrize("value", ["soon", "-5", "1.5", "9" * 5_000, "²", "", format_datetime(NOW - timedelta(days=9))])
def test_a_retry_after_that_makes_no_sense_is_left_out(source, listing, plan, events, value):
    """The usual backoff then."""
    plan.next(instead(status=429, body=b"", headers=(("Retry-After", value.encode().decode("latin-1")),)))
    source.page(listing)
    assert wait_of(events) < 0.1


def test_a_429_is_logged_for_support(source, listing, plan, events):
    """The line has the concurrency now in force, and the request's id to quote."""
    plan.next(Fault.too_many_requests(0))
    source.page(listing)
    [throttled] = [event for event in events if event["event"] == "twilio.throttled"]
    assert (2, 0.0) == (throttled["concurrency"], throttled["retry_after_seconds"])
    assert throttled["twilio_request_id"].startswith("RQ")


def test_concurrency_finds_twilios_ceiling_from_below(make_source, twilio, account, plan, listing):
    """All pages come though Twilio allows two at once; never above our own ceiling, and up to it again afterwards."""
    pacer = Pacer(6)
    source = make_source(twilio.base_url, pacer=pacer, limit=6)
    twilio.page_delay = timedelta(milliseconds=5)
    plan.max_concurrent = 2
    with ThreadPoolExecutor(6) as pool:
        pages = list(pool.map(lambda _: source.page(listing), range(24)))
        assert 24 == len(pages)
        assert source.throttles
        assert pacer.gate(account.sid).limit < 6
        assert twilio.requests.max_in_flight <= 6
        plan.max_concurrent = None
        list(pool.map(lambda _: source.page(listing), range(120)))
    assert 6 == pacer.gate(account.sid).limit
    assert twilio.requests.max_in_flight <= 6


def test_what_others_have_under_way_is_left_to_them(make_source, twilio, plan, account, listing):
    """`Twilio-Concurrent-Requests` counts the account's requests, ours among them."""
    source = make_source(twilio.base_url, limit=16)
    plan.others = 12
    source.page(listing)
    assert 4 == source.client.pacer.gate(account.sid).limit
    plan.others = 0
    source.page(listing)
    assert START <= source.client.pacer.gate(account.sid).limit


@pytest.mark.parametrize("said", ["", "many", "-3", "9" * 5_000, "\xb2"])
def test_a_load_that_is_no_number_tells_nothing(said):
    """A proxy may have spoilt it."""
    assert load_of(HttpAnswer(200, b"", {"Twilio-Concurrent-Requests": said})) is None


def test_a_burst_of_429_halves_the_concurrency_once(make_source, twilio, account, plan, listing):
    """Four requests in flight together and refused together."""
    pacer = Pacer(8)
    source = make_source(twilio.base_url, pacer=pacer, limit=8)
    together = threading.Barrier(4, timeout=5)
    inner = source.client._sdk.request

    def at_once(*args: object) -> object:
        answer = inner(*args)
        if answer.status_code == 429:
            together.wait()
        return answer

    source.client._sdk.request = at_once
    plan.next(*[Fault.too_many_requests()] * 4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: source.page(listing), range(4)))
    assert 4 == source.throttles
    assert pacer.gate(account.sid).limit in (4, 5)


def test_counts_are_right_from_many_threads(make_source, twilio, plan, listing):
    """Each request and each repeat once."""
    source = make_source(twilio.base_url, limit=8)
    plan.next(*[Fault.server_error(503)] * 10)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: source.page(listing), range(40)))
    assert (50, 10) == (source.requests, source.retries)
    assert 50 == len(twilio.requests)


def test_each_request_is_charged_to_the_account_that_it_is_about(make_source, twilio, account):
    """Lists that name no account are charged to the account of the credentials."""
    client = make_source(twilio.base_url).client
    other = "AC" + 32 * "2"
    for path in ("/2010-04-01/Accounts.json?PageSize=50", "/v1/Alerts?PageSize=50"):
        assert client.gate(path) is client.pacer.gate(account.sid)
    assert client.gate(f"/2010-04-01/Accounts/{other}/Calls.json") is client.pacer.gate(other)

"""Every fault as a plain client sees it, and the plan that hands them out."""

from __future__ import annotations

import http.client
import json
import shutil
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import requests

from reconciler.simulator import Fault, FaultPlan, Road, SimulatedTwilio, Switches
from reconciler.simulator.breakage import BREAKAGES

NOON = datetime(2026, 6, 10, 12, tzinfo=UTC)


@pytest.fixture
def plan():
    """A plan in which nothing is planned yet."""
    return FaultPlan(seed=1)


@pytest.fixture
def ask(serve, account, plan):
    """Asks for a page of fifty calls from a server with the plan."""
    account.generate(100, NOON - timedelta(days=2), NOON - timedelta(days=1))
    _, client = serve(faults=plan)
    return lambda: client.get(f"/Accounts/{account.sid}/Calls.json")


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault.too_many_requests(), 429, 20429),
        (Fault.server_error(), 500, 20500),
        (Fault.server_error(502), 502, 20500),
        (Fault.server_error(503), 503, 20500),
        (Fault.server_error(504), 504, 20500),
        (Fault.unauthorized(), 401, 20003),
        (Fault.forbidden(), 403, 20403),
        (Fault.forbidden(70051), 403, 70051),
        (Fault.not_found(), 404, 20404),
        (Fault.error(400, None, "Invalid StartDate"), 400, None),
    ],
)
def test_errors_come_in_twilios_words(ask, plan, fault, status, code):
    """Status, JSON body and X-Twilio-Error-Code; then all is well again."""
    plan.next(fault)
    answer = ask()
    assert (status, code, status) == (answer.status_code, answer.json().get("code"), answer.json()["status"])
    assert (None if code is None else str(code)) == answer.headers.get("X-Twilio-Error-Code")
    assert len(ask().json()["calls"]) == 50


def test_429_with_and_without_retry_after(ask, plan):
    """Retry-After may come or not."""
    plan.next(Fault.too_many_requests(), Fault.too_many_requests(retry_after=2))
    assert [ask().headers.get("Retry-After") for _ in range(2)] == [None, "2"]


@pytest.mark.parametrize("fault", [Fault.server_error(502, html=True), Fault.html_with_200()])
def test_html_where_json_belongs(ask, plan, fault):
    """A gateway's page, with its own status or with 200."""
    plan.next(fault)
    answer = ask()
    assert answer.headers["Content-Type"] == "text/html"
    assert answer.text.startswith("<html>")


@pytest.mark.parametrize("fault", [Fault.reset(), Fault.reset_mid_body(), Fault.closed_early()])
def test_broken_connections(ask, plan, fault):
    """Reset before or within the body, or closed before Content-Length is reached: the client sees an error."""
    plan.next(fault)
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        ask()
    assert ask().status_code == 200


def test_closed_early_and_reset_differ(serve, account, plan):
    """A close is an incomplete read, a reset is a reset."""
    account.generate(1000, NOON - timedelta(days=2), NOON - timedelta(days=1))
    _, client = serve(faults=plan)
    plan.next(Fault.closed_early(), Fault.reset())
    path = f"/Accounts/{account.sid}/Calls.json"
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError), match="IncompleteRead"):
        client.get(path)
    with pytest.raises(requests.ConnectionError, match="reset by peer"):
        client.get(path)


def test_truncated_json_is_complete_as_http_goes(ask, plan):
    """Content-Length agrees with the body, but half of the JSON is missing."""
    plan.next(Fault.truncated_json())
    answer = ask()
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    with pytest.raises(requests.exceptions.JSONDecodeError):
        answer.json()


def test_empty_body_and_array_and_redirect(ask, plan):
    """Nothing, JSON of the wrong shape, and the way to another host."""
    plan.next(Fault.empty_body(), Fault.array(), Fault.redirect("https://elsewhere.example/"))
    assert ask().content == b""
    assert isinstance(ask().json(), list)
    redirect = ask()
    assert (redirect.status_code, redirect.headers["Location"]) == (307, "https://elsewhere.example/")


def test_a_hanging_request_waits_for_its_release(ask, plan):
    """The client gets nothing until released, then the real answer."""
    plan.next(Fault.hang())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask)
        assert plan.wait_until_hanging()
        assert not waiting.done()
        plan.release()
        assert waiting.result(10).status_code == 200
    assert plan.hanging == 0


def test_stopping_the_server_releases_what_hangs(account, clock, plan):
    """A test that ends while a request hangs does not hang itself."""
    plan.always(Fault.hang())
    server = SimulatedTwilio([account], clock=clock, faults=plan).start()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(requests.get, server.base_url, timeout=10)
        assert plan.wait_until_hanging()
        server.stop()
        # Whole, or cut off before or within the body, as the stop finds it.
        ended = waiting.exception(10)
        assert ended is None or isinstance(ended, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError))


@pytest.mark.parametrize("kind", sorted(BREAKAGES))
def test_one_record_is_broken_and_the_others_are_not(ask, plan, kind):
    """Record-level breakage leaves the rest of the page as it was, and the JSON readable."""
    good = ask().json()["calls"]
    plan.next(Fault.broken_record(kind, index=7))
    bad = ask().json()["calls"]
    assert [index for index in range(50) if good[index] != bad[index]] == [7]


def test_a_certain_record_stays_broken_wherever_it_appears(serve, account, plan):
    """The SID names it: on the page that holds it, and in an answer of its own."""
    account.generate(100, NOON - timedelta(days=2), NOON - timedelta(days=1))
    call = account.calls_at(NOON)[70]
    _, client = serve(faults=plan)
    plan.always(Fault.broken_record("unknown_status", sid=call.sid))
    broken = [record["sid"] for page in client.pages() for record in page["calls"] if record["status"] == "on-hold"]
    assert [call.sid] == broken
    assert client.get(f"/Accounts/{account.sid}/Calls/{call.sid}.json").json()["status"] == "on-hold"


def test_lone_surrogate_and_nul_are_sent_as_escapes(ask, plan):
    """JSON that is valid and yet cannot be stored by PostgreSQL."""
    plan.next(Fault.broken_record("lone_surrogate"), Fault.broken_record("nul_in_string"))
    assert rb"\ud800" in ask().content
    assert rb"\u0000" in ask().content


def test_rules_come_before_the_queue_and_the_queue_before_the_rest(serve, account, plan):
    """Predicate, queue, always, in this order; each as often as told."""
    _, client = serve(faults=plan)
    plan.always(Fault.server_error(500))
    plan.next(Fault.server_error(503))
    plan.when(lambda request: request.param("Page") == "3", Fault.too_many_requests(), times=1)
    path = f"/Accounts/{account.sid}/Calls.json"
    statuses = [client.get(path + query).status_code for query in ("?Page=3", "?Page=3", "", "?Page=3")]
    assert statuses == [429, 503, 500, 500]
    plan.clear()
    assert client.get(path).status_code == 200


def test_rates_depend_on_the_request_and_not_on_the_order():
    """The same requests meet the same faults whatever thread comes first; shares are about right."""
    from reconciler.simulator.messages import Request

    requests_ = [Request("GET", f"/{n}", [], {}) for n in range(2000)]
    outcomes = []
    for order in (requests_, requests_[::-1]):
        plan = FaultPlan(seed=3)
        plan.rates({Fault.server_error(503): 0.1, Fault.reset(): 0.05})
        outcomes.append({request.path: plan.decide(request) for request in order})
    assert outcomes[0] == outcomes[1]
    names = [fault.name for fault in outcomes[0].values() if fault]
    assert 150 < names.count("503") < 250
    assert 60 < names.count("reset") < 140


def test_more_requests_at_once_than_allowed_get_429(serve, account, plan):
    """The ceiling is one of concurrency: it counts what is in flight and reports it in the header."""
    twilio, client = serve(faults=plan)
    plan.max_concurrent = 2
    path = f"/Accounts/{account.sid}/Calls.json"
    plan.next(Fault.hang(), Fault.hang())
    auth = (account.sid, account.auth_token)
    with ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(requests.get, f"{twilio.base_url}/2010-04-01{path}", auth=auth, timeout=10) for _ in "12"]
        assert plan.wait_until_hanging(2)
        refused = client.get(path)
        assert (
            refused.status_code, refused.json()["code"], refused.headers["Twilio-Concurrent-Requests"],
        ) == (429, 20429, "3")  # fmt: skip
        plan.release()
        assert [request.result(10).status_code for request in slow] == [200, 200]
    assert client.get(path).status_code == 200
    assert twilio.requests.max_in_flight == 3


def test_the_log_tells_what_was_asked_and_answered(serve, account, plan):
    """Path, parameters, credentials, identification, outcome and times of every request."""
    twilio, client = serve(faults=plan)
    client.session.headers["User-Agent"] = "reconciler/1.0"
    client.sids(Status="busy", StartTime_after="2026-06-01")
    plan.next(Fault.server_error(503))
    client.get("/Accounts.json")
    requests.get(f"{twilio.base_url}/2010-04-01/Accounts.json", timeout=10)
    first, second, third = twilio.requests
    assert (first.param("Status"), first.param("StartTime>")) == ("busy", "2026-06-01")
    assert (first.status, first.fault) == (200, None)
    assert (second.fault, second.authorized, second.user_agent) == ("503", True, "reconciler/1.0")
    assert (third.status, third.authorized) == (401, False)
    assert first.started <= first.finished <= second.started
    assert twilio.requests.count(path_contains="Calls.json", Status="busy") == 1
    assert twilio.requests.count(**{"StartTime>": "2026-06-01"}) == 1
    assert twilio.requests.count(path_contains="Accounts.json") == 2
    assert twilio.requests.count(status=503) == 1
    twilio.requests.clear()
    assert len(twilio.requests) == 0


def test_another_process_may_ask_what_was_asked_and_lost(serve, account, plan):
    """It needs no credentials, meets no faults, and is not in the log; DELETE forgets the requests."""
    twilio, client = serve(faults=plan)
    lost = account.call(NOON - timedelta(hours=1), direction="trunking-terminating")
    Road().deliver(account, NOON - timedelta(days=1), NOON)
    plan.next(Fault.too_many_requests(), Fault.reset())
    assert 429 == client.get(f"/Accounts/{account.sid}/Calls.json").status_code
    with pytest.raises(requests.ConnectionError):
        client.get(f"/Accounts/{account.sid}/Calls.json")
    assert 200 == client.get(f"/Accounts/{account.sid}/Calls.json").status_code
    plan.always(Fault.server_error(503))
    url = f"{twilio.base_url}/_simulator"
    assert requests.get(url, timeout=10).json() == {
        "requests": 3, "by_outcome": {"429": 1, "reset": 1, "200": 1}, "max_in_flight": 1,
        "max_in_flight_of": {account.sid: 1}, "lost": {"trunk": 1}, "causes_of_gaps": {lost.sid: "trunk"},
    }  # fmt: skip
    assert 3 == len(twilio.requests)
    assert 204 == requests.delete(url, timeout=10).status_code
    assert 0 == requests.get(url, timeout=10).json()["requests"] == len(twilio.requests)


def test_page_delay_takes_real_time(serve, account):
    """Every answer takes at least the delay."""
    twilio, client = serve(page_delay=timedelta(milliseconds=30))
    client.get(f"/Accounts/{account.sid}/Calls.json")
    assert twilio.requests[0].finished - twilio.requests[0].started >= 0.03


def test_a_mistake_in_the_simulator_is_raised_when_it_stops(account, clock, monkeypatch):
    """The client gets 500, and the error is raised again where the simulator was started."""
    monkeypatch.setattr(account, "calls_at", lambda *_, **__: 1 / 0)
    twilio = SimulatedTwilio([account], clock=clock).start()
    url = f"{twilio.base_url}/2010-04-01/Accounts/{account.sid}/Calls.json"
    assert requests.get(url, auth=(account.sid, "token"), timeout=10).status_code == 500
    with pytest.raises(ZeroDivisionError):
        twilio.stop()


def test_connections_are_kept_alive_and_answers_need_no_new_one(serve, account):
    """Two requests of one client travel over one connection."""
    twilio, _ = serve()
    connection = http.client.HTTPConnection("127.0.0.1", twilio.port, timeout=10)
    ports = []
    for _ in range(2):
        connection.request("GET", f"/2010-04-01/Accounts/{account.sid}/Calls.json")
        assert json.loads(connection.getresponse().read())["status"] == 401
        ports.append(connection.sock.getsockname()[1])
    connection.close()
    assert ports[0] == ports[1]


def test_many_clients_at_once_get_complete_listings(serve, account):
    """Threads share an account while calls are added to it."""
    account.generate(2000, NOON - timedelta(days=2), NOON - timedelta(days=1))
    twilio, _ = serve()
    known = {call.sid for call in account.calls_at(NOON)}
    stop = threading.Event()

    def arrive():
        while not stop.is_set():
            account.call(NOON)

    def listing(_):
        with requests.Session() as session:
            session.auth = (account.sid, account.auth_token)
            uri, sids = f"/2010-04-01/Accounts/{account.sid}/Calls.json?PageSize=500&StartTime%3C=2026-06-10", []
            while uri:
                page = session.get(twilio.base_url + uri, timeout=10).json()
                sids += [call["sid"] for call in page["calls"]]
                uri = page["next_page_uri"]
            return sids

    with ThreadPoolExecutor(5) as pool:
        pool.submit(arrive)
        listings = list(pool.map(listing, range(4)))
        stop.set()
    started = {call.sid for call in account.calls_at(NOON) if call.sid in known and call.start_at(10**10) is not None}
    assert all(len(sids) == len(set(sids)) and set(sids) == started for sids in listings)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls(tmp_path, serve, account, plan):
    """HTTPS with a certificate of one's own; faults work there too."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    account.generate(100, NOON - timedelta(days=2), NOON - timedelta(days=1))
    twilio, client = serve(tls=context, faults=plan)
    client.session.verify = str(cert)
    assert twilio.base_url.startswith("https://")
    assert set(client.sids()) == {call.sid for call in account.calls_at(NOON)}
    plan.next(Fault.reset(), Fault.reset_mid_body())
    for _ in range(2):
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            client.get("/Accounts.json")
    assert client.get("/Accounts.json").status_code == 200
    with pytest.raises(requests.ConnectionError):
        requests.get(twilio.base_url.replace("https", "http"), timeout=10)


@pytest.mark.parametrize(("path", "size", "status"), [
    ("Calls", 100, 200), ("Calls", 101, 500), ("Calls", None, 200), ("Usage/Records/Daily", 1000, 200),
])  # fmt: skip
def test_large_pages_fail_and_small_ones_do_not(serve, account, plan, path, size, status):
    """A page of more records than it can make costs Twilio its answer; the limit may hold for one resource alone."""
    _, client = serve(faults=plan)
    plan.large_pages(above=100, path="Calls")
    params = {} if size is None else {"PageSize": size}
    answer = client.get(f"/Accounts/{account.sid}/{path}.json", params=params)
    assert (status, 20500 if status == 500 else None) == (answer.status_code, answer.json().get("code"))


def test_a_wrong_region_knows_no_call_of_ours(serve, account, plan):
    """An empty list, the end of the listing, and 404/20404 for a call; accounts stay where the plan picks calls."""
    account.generate(100, NOON - timedelta(days=2), NOON - timedelta(days=1))
    sid = account.calls_at(NOON)[0].sid
    _, client = serve(faults=plan)
    plan.when(lambda request: "/Calls" in request.path, Fault.nothing_found())
    page = client.page()
    assert (page["calls"], page["next_page_uri"]) == ([], None)
    fetched = client.get(f"/Accounts/{account.sid}/Calls/{sid}.json")
    assert (fetched.status_code, fetched.json()["code"]) == (404, 20404)
    assert len(client.get("/Accounts.json").json()["accounts"]) == 1
    plan.clear()
    assert len(client.sids()) == 100


def test_a_call_deleted_between_two_pages(serve, account, plan):
    """The deletion comes after the first answer was made; its token then leads to an empty end, if so switched."""
    calls = [account.call(NOON - timedelta(minutes=n)) for n in range(6)]
    _, client = serve(faults=plan, switches=Switches(deleted_cursor="empty"))
    plan.next(Fault.followed_by(lambda: account.delete(calls[1].sid, NOON)))
    first, second = client.pages(PageSize=2)
    assert [call.sid for call in calls[:2]] == [call["sid"] for call in first["calls"]]
    assert (second["calls"], second["next_page_uri"]) == ([], None)
    assert len(client.sids(PageSize=2)) == 5


def test_two_answers_of_one_second_may_differ(serve, account, plan):
    """Date has whole seconds: a change within one is seen under an equal header."""
    call = account.call(NOON - timedelta(minutes=5), priced_after=None)
    _, client = serve(faults=plan)
    plan.next(Fault.followed_by(lambda: account.change(call.sid, price="-0.01400", priced=call.ended)))
    answers = [client.get(f"/Accounts/{account.sid}/Calls/{call.sid}.json") for _ in range(2)]
    assert [None, "-0.01400"] == [answer.json()["price"] for answer in answers]
    assert 1 == len({answer.headers["Date"] for answer in answers})


@pytest.mark.parametrize(("date", "shown"), [
    (datetime(2099, 1, 1, tzinfo=UTC), "Thu, 01 Jan 2099 00:00:00 GMT"),
    (timedelta(minutes=50), "Wed, 10 Jun 2026 12:50:00 GMT"),
    (-timedelta(hours=25), "Tue, 09 Jun 2026 11:00:00 GMT"),
])  # fmt: skip
def test_a_date_that_cannot_be(ask, plan, date, shown):
    """The header alone is wrong, by a time or by a distance; the records are right, and so is the next answer."""
    plan.next(Fault.wrong_date(date))
    wrong, right = ask(), ask()
    assert (shown, "Wed, 10 Jun 2026 12:00:00 GMT") == (wrong.headers["Date"], right.headers["Date"])
    assert wrong.json() == right.json()


@pytest.mark.parametrize("status", [401, 403, 407, 502])
def test_a_proxy_answers_in_html(ask, plan, status):
    """The answer is not Twilio's JSON, and lacks Twilio's error header."""
    plan.next(Fault.proxy(status))
    answer = ask()
    assert (status, "text/html", None) == (
        answer.status_code, answer.headers["Content-Type"], answer.headers.get("X-Twilio-Error-Code"),
    )  # fmt: skip


def test_requests_of_others_count_against_the_limit(serve, account, plan):
    """Five of the six that the account allows are somebody else's: one of ours passes, the header tells why."""
    account.add_subaccount(f"AC{2:032x}", "t")
    twilio, client = serve(faults=plan)
    plan.max_concurrent, plan.others = 6, 5
    assert "6" == client.get(f"/Accounts/{account.sid}/Calls.json").headers["Twilio-Concurrent-Requests"]
    plan.others = 6
    refused = client.get(f"/Accounts/{account.sid}/Calls.json")
    assert (429, "7") == (refused.status_code, refused.headers["Twilio-Concurrent-Requests"])
    assert 429 == client.get("/Accounts.json").status_code
    assert 1 == twilio.requests.max_in_flight_of(account.sid) == twilio.requests.max_in_flight
    assert 0 == twilio.requests.max_in_flight_of(f"AC{2:032x}")


def test_each_listed_record_may_take_time(serve, account):
    """A page of fifty takes fifty times as long; one call alone adds nothing."""
    account.generate(100, NOON - timedelta(days=2), NOON - timedelta(days=1))
    twilio, client = serve(record_delay=timedelta(milliseconds=2))
    client.page(PageSize=50)
    client.get(f"/Accounts/{account.sid}/Calls/{account.calls_at(NOON)[0].sid}.json")
    listing, single = (entry.finished - entry.started for entry in twilio.requests)
    assert listing >= 0.1 > single

"""The webhooks job, and what `reconcile why` makes of it: a simulated day whose webhooks are lost by order."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest

from reconciler.database.webhook_evidence import AlertCount
from reconciler.errors import CredentialsDoubted, Refused, TableFault
from reconciler.jobs import webhooks
from reconciler.simulator import Fault, Outage, Road, monitor
from reconciler.simulator.road import causes_of_gaps
from reconciler.simulator.viewer import receive, work
from reconciler.simulator.webhooks import Channel
from reconciler.status.why import Cause, Why, read_why
from reconciler.sync.counts import Outcome
from reconciler.twilio import webhook_listings
from reconciler.twilio.permissions import HINT
from reconciler.twilio.webhook_records import Alert
from tests.harness.names import ACCOUNT, NOW, SUBACCOUNT, TOKEN, sid
from tests.harness.world import World, day

GRACE = timedelta(seconds=60)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MORNING = day(-1)  # of the day after that of the first look
CALLS = 3_000
AT_TWO = Outage(MORNING + 14 * HOUR, MORNING + 15 * HOUR)
URL = "https://hooks.example.com/twilio/voice/status"
KEY = ("SK" + 32 * "3", "secret-of-the-key")

# What `why` calls otherwise than the simulator's journal.
WORDS = {"chance": "unexplained", "child_leg": "no_callback"}


def why(world: World, **more: Any) -> Why:
    """Return the causes of the last two days."""
    now = world.now()
    return read_why(world.conn, since=now - 2 * DAY, now=now, webhook_grace=GRACE, **more)


def lost(found: Why) -> dict[str, int]:
    """How many calls each cause lost."""
    calls: Counter[str] = Counter()
    for cause in found.causes:
        calls[cause.cause.value] += cause.gaps
    return dict(calls)


def alerts(world: World) -> list[tuple[Any, ...]]:
    """The rows of webhook_alerts: hour, code, URL, how many, and the calls that they name."""
    return world.conn.execute(
        "SELECT hour, error_code, url, alerts, call_sids FROM webhook_alerts ORDER BY hour, error_code, url"
    ).fetchall()


def faults(world: World) -> dict[str, tuple[str, str]]:
    """The rows of endpoint_faults: fault and URL by address."""
    rows = world.conn.execute("SELECT address, fault, url FROM endpoint_faults").fetchall()
    return {address: (fault, url) for address, fault, url in rows}


# The causes of a day


@pytest.fixture
def lossy(world: World) -> World:
    """A day that lost a third of its callbacks by four causes, and 5 % by chance; the Viewer is done with the rest."""
    account = world.account
    world.hot()
    world.clock.set(MORNING + 36 * HOUR)
    account.generate(CALLS, MORNING, MORNING + DAY, trunk_share=0.1)
    for number in list(account.endpoints.numbers)[:2]:
        account.endpoints.add_number(number, status_callback="")
    road = Road(Channel(seed=1, loss=0.05), outages=(AT_TWO,), inbox_failures=0.08, child_callbacks=True)
    receive(world.conn, road.deliver(account, MORNING, world.now()))
    work(world.conn, now=world.now(), batch=1_000_000)
    world.cold()
    return world


def test_a_day_is_explained(lossy: World) -> None:
    """The four causes that were ordered, and chance: each with its share of the day, within five points."""
    lossy.webhooks()
    found = why(lossy)
    truth = Counter(WORDS.get(cause, cause) for cause in causes_of_gaps(lossy.account).values())
    seen = lost(found)
    assert seen.keys() == truth.keys() == set(Cause)
    assert {cause: number / CALLS for cause, number in seen.items()} == {
        cause: pytest.approx(number / CALLS, abs=0.05) for cause, number in truth.items()
    }
    assert found.gaps == sum(seen.values()) == pytest.approx(CALLS / 3, rel=0.1)
    assert [cause.gaps for cause in found.causes] == sorted((cause.gaps for cause in found.causes), reverse=True)
    alert = next(cause for cause in found.causes if cause.cause is Cause.ALERT)
    assert dict(alert.reason.names) == {"error_code": "11205", "url": URL}
    assert alert.hours[AT_TWO.since] == pytest.approx(alert.gaps, abs=3) == pytest.approx(truth["alert"], abs=10)


def test_each_call_is_given_the_cause_that_it_has(lossy: World) -> None:
    """The calls that a large cause names were lost by it; not only the numbers agree."""
    lossy.webhooks()
    truth = causes_of_gaps(lossy.account)
    large = [cause for cause in why(lossy).causes if cause.gaps > CALLS // 100]
    assert {cause.cause for cause in large} == set(Cause)
    for cause in large:
        assert {cause.cause.value} == {WORDS.get(truth[call_sid], truth[call_sid]) for call_sid in cause.call_sids}


def test_before_anything_was_read_what_needs_no_reading_is_explained(lossy: World) -> None:
    """Trunks and the inbox; the rest is unexplained, and it says what to run."""
    found = why(lossy)
    assert lost(found).keys() <= {"trunk", "inbox", "no_callback", "unexplained"}
    assert found.unread == ["Twilio's alerts and endpoints were never read: `reconcile once webhooks` reads them"]
    assert found.as_dict()["causes"][0]["detail"]["unread"] == found.unread


def test_of_one_account(lossy: World) -> None:
    """All of it, or nothing."""
    lossy.webhooks()
    assert why(lossy, account_sid=ACCOUNT).gaps == why(lossy).gaps > 0
    assert why(lossy, account_sid=SUBACCOUNT).gaps == 0


# Alerts


def test_alerts_are_counted_by_hour_code_and_url(world: World) -> None:
    """The URL without its login, query and fragment, and the calls that they name."""
    account = world.account
    account.raise_alert(NOW - 3 * HOUR, "11205", f"{URL}?token=secret#rc=2", resource_sid=sid(1))
    account.raise_alert(NOW - 3 * HOUR, "11205", f"{URL}?token=other", resource_sid=sid(2))
    account.raise_alert(NOW - 3 * HOUR, "11200", URL, resource_sid="RE" + 32 * "0")
    account.raise_alert(NOW - 2 * HOUR, "11205", "https://user:password@hooks.example.com:8443/x", resource_sid=None)
    world.webhooks()
    assert alerts(world) == [
        (NOW - 3 * HOUR, "11200", URL, 1, []),
        (NOW - 3 * HOUR, "11205", URL, 2, [sid(1), sid(2)]),
        (NOW - 2 * HOUR, "11205", "https://hooks.example.com:8443/x", 1, []),
    ]


def test_a_clock_that_is_ahead_forgets_no_evidence(world: World) -> None:
    """No row goes before its time. Once the clock is right, the job reads all that it should."""
    world.account.raise_alert(NOW - 3 * HOUR, "11205", URL, resource_sid=sid(1))
    world.webhooks()
    told, at_fault = alerts(world), faults(world)
    world.account.raise_alert(NOW - timedelta(minutes=5), "11205", URL, resource_sid=sid(2))
    world.behind = -100 * DAY
    world.webhooks()
    assert (alerts(world), faults(world)) == (told, at_fault)
    world.behind = timedelta(0)
    world.webhooks()
    assert alerts(world) == [*told, (NOW - HOUR, "11205", URL, 1, [sid(2)])]


def test_alerts_are_read_once(world: World) -> None:
    """The next run asks from the hour on that was not settled, counts it anew, and keeps what is before."""
    world.account.raise_alert(NOW - 3 * HOUR, "11205", URL, resource_sid=sid(1))
    world.account.raise_alert(NOW - timedelta(minutes=5), "11205", URL, resource_sid=sid(2))
    world.webhooks()
    first = alerts(world)
    world.webhooks()
    assert alerts(world) == first
    assert world.twilio.requests[0].param("StartDate") == (NOW - HOUR).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert len(world.twilio.requests) == 4
    world.clock.advance(2 * HOUR)
    world.account.raise_alert(NOW - timedelta(minutes=4), "11205", URL, resource_sid=sid(3))
    world.webhooks()
    assert [(row[0], row[3]) for row in alerts(world)] == [(NOW - 3 * HOUR, 1), (NOW - HOUR, 2)]


def test_more_alerts_than_one_listing_shows_are_all_counted(world: World, monkeypatch) -> None:
    """Twilio lists the newest 10,000: the rest is asked for by an earlier end."""
    monkeypatch.setattr(monitor, "MOST", 20)
    monkeypatch.setattr(webhook_listings, "MOST_ALERTS", 20)
    for number in range(55):
        world.account.raise_alert(NOW - 2 * HOUR - number // 2 * timedelta(seconds=1), "11205", URL, resource_sid=None)
    world.webhooks()
    assert sum(row[3] for row in alerts(world)) == 55


def test_the_pages_of_alerts_stay_on_our_host(world: World, monkeypatch) -> None:
    """Twilio's next_page_url names monitor.twilio.com; only its path is followed."""
    monkeypatch.setattr(webhook_listings, "PAGE_SIZE", 10)
    for number in range(25):
        world.account.raise_alert(NOW - 2 * HOUR - number * timedelta(minutes=1), "11205", URL, resource_sid=None)
    world.webhooks()
    assert sum(row[3] for row in alerts(world)) == 25
    assert [entry.path for entry in world.twilio.requests].count("/v1/Alerts") == 3


def test_a_run_that_is_stopped_asks_no_more_and_keeps_nothing(world: World, monkeypatch) -> None:
    """The next run reads all of it."""
    count = webhooks.count_alerts

    def count_and_stop(*args: Any) -> list[AlertCount]:
        counted = count(*args)
        world.stop.set()
        return counted

    world.account.raise_alert(NOW - HOUR, "11205", URL, resource_sid=None)
    world.account.endpoints.add_number("+12025550177", status_callback="")
    monkeypatch.setattr(webhooks, "count_alerts", count_and_stop)
    assert world.webhooks().outcome is Outcome.INTERRUPTED
    monkeypatch.undo()
    assert len(world.twilio.requests) == 1
    assert (alerts(world), faults(world), world.cursor("webhooks")) == ([], {}, {})
    world.go_on()
    world.webhooks()
    assert (len(alerts(world)), len(faults(world))) == (1, 1)


def test_a_subaccounts_alerts_are_not_asked_for(world: World) -> None:
    """Twilio shows them to the subaccount's own credentials alone; its endpoints are read."""
    world.account.add_subaccount(SUBACCOUNT, "its-own-token").endpoints.add_number("+12025550177", status_callback="")
    world.webhooks(SUBACCOUNT)
    assert "/v1/Alerts" not in [entry.path for entry in world.twilio.requests]
    assert faults(world) == {"+12025550177": ("no_callback", "")}


def test_what_is_old_goes(world: World) -> None:
    """Rows go after 90 days."""
    world.account.raise_alert(NOW - HOUR, "11205", URL, resource_sid=None)
    world.account.endpoints.add_number("+12025550177", status_callback="")
    world.webhooks()
    world.account.endpoints.add_number("+12025550177")
    for days, left in ((89, 1), (91, 0)):
        world.clock.set(NOW + timedelta(days=days))
        world.webhooks()
        assert (len(alerts(world)), len(faults(world))) == (left, left)


@pytest.mark.parametrize("table", ["webhook_alerts", "endpoint_faults"])
def test_evidence_that_a_trigger_keeps_away_fails_the_run(world: World, table: str) -> None:
    """The cursor stays: the next run reads the same hours."""
    world.account.raise_alert(NOW - HOUR, "11205", URL, resource_sid=None)
    world.account.endpoints.add_number("+12025550177", status_callback="")
    world.conn.execute("CREATE FUNCTION viewers() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    world.conn.execute(
        f"CREATE TRIGGER a_viewers BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION viewers()".encode()
    )
    with pytest.raises(TableFault, match=f"keeps rows away from {table}"):
        world.webhooks()
    assert (alerts(world), faults(world), world.cursor("webhooks")) == ([], {}, {})
    world.conn.execute(f"DROP TRIGGER a_viewers ON {table}".encode())
    world.webhooks()
    assert (len(alerts(world)), len(faults(world))) == (1, 1)


# Credentials that may not read them


def test_a_key_that_may_read_neither_is_told_once_and_fails_nothing(world: World) -> None:
    """Each run succeeds; the log names each of the two the first time; `why` says so."""
    world.account.add_key(*KEY, "restricted", permissions=frozenset({"calls"}))
    for _ in range(2):
        assert world.webhooks(key=KEY).outcome is Outcome.SUCCEEDED
    told = world.said("evidence.refused")
    assert [line["resource"] for line in told] == ["alerts", "endpoints"]
    assert {line["hint"] for line in told} == {HINT}
    assert why(world).unread == [
        "Twilio's alerts cannot be read with these credentials",
        "numbers, SIP domains and TwiML apps cannot be read with these credentials",
    ]
    assert world.state("webhooks")["last_error_at"] is None


def test_a_key_that_may_read_one_of_the_two_reads_it(world: World) -> None:
    """Once it may read both, the job also reads the time before."""
    world.account.raise_alert(NOW - 3 * HOUR, "11205", URL, resource_sid=sid(1))
    world.account.endpoints.add_number("+12025550177", status_callback="")
    world.account.add_key(*KEY, "restricted", permissions=frozenset({"calls", "endpoints"}))
    world.webhooks(key=KEY)
    assert (alerts(world), faults(world)) == ([], {"+12025550177": ("no_callback", "")})
    world.clock.advance(5 * HOUR)
    world.webhooks(key=(ACCOUNT, TOKEN))
    assert len(alerts(world)) == 1
    assert why(world).unread == []


# Endpoints


def test_which_endpoints_are_at_fault(world: World) -> None:
    """Numbers, domains and apps without a callback, or on another host; a number has the callback of its app."""
    add = world.account.endpoints
    for number in range(5):
        add.add_number(f"+1202555010{number}")
    silent_app = add.add_application("silent", status_callback="")
    app = add.add_application("well")
    add.add_number("+12025550110", status_callback="")
    add.add_number("+12025550111", status_callback="https://old.example.net/status?token=secret")
    add.add_number("+12025550112", status_callback="", application_sid=app.sid)
    add.add_number("+12025550113", application_sid=silent_app.sid)
    add.add_number("+12025550114", status_callback="", trunk_sid="TK" + 32 * "0")  # its calls tell nobody anyway
    add.add_application("for messages", voice_url="", status_callback="")
    add.add_sip_domain("Quiet.sip.twilio.com", status_callback="")
    world.webhooks()
    assert faults(world) == {
        "+12025550110": ("no_callback", ""),
        "+12025550111": ("other_host", "https://old.example.net/status"),
        "+12025550113": ("no_callback", ""),
        silent_app.sid: ("no_callback", ""),
        "quiet.sip.twilio.com": ("no_callback", ""),
    }


@pytest.mark.parametrize(
    ("kind", "to"),
    [
        ("sip_domain", "sip:front-desk@quiet.sip.twilio.com;transport=tls"),
        ("application", f"app:AP{1:032x}"),
        ("phone_number", "+12025550110"),
    ],
)
def test_the_calls_to_an_endpoint_at_fault_are_explained_by_it(world: World, kind: str, to: str) -> None:
    """The cause has its name, and the next step its SID."""
    add = world.account.endpoints
    add.add_sip_domain("quiet.sip.twilio.com", status_callback="")
    add.add_application("silent", status_callback="")
    add.add_number("+12025550110", status_callback="")
    world.hot()
    world.clock.advance(HOUR)
    world.account.call(NOW + timedelta(minutes=5), direction="inbound", to=to, talks_for=60)
    world.hot()
    world.webhooks()
    (cause,) = why(world).causes
    names = dict(cause.reason.names)
    assert (cause.cause, cause.gaps) == (Cause.NO_CALLBACK, 1)
    assert kind in names
    assert names["sid"] in why(world).as_dict()["causes"][0]["next"]


def test_a_fault_that_was_mended_explains_what_it_lost_and_no_more(world: World) -> None:
    """A call after it was last seen has another cause."""
    number = "+12025550110"
    world.account.endpoints.add_number(number, status_callback="")
    world.hot()
    world.account.call(NOW + timedelta(minutes=5), direction="inbound", to=number, talks_for=60)
    world.clock.advance(HOUR)
    world.webhooks()
    world.account.endpoints.add_number(number)
    world.account.call(NOW + 5 * HOUR, direction="inbound", to=number, talks_for=60)
    world.clock.advance(6 * HOUR)
    world.hot()
    world.webhooks()
    assert lost(why(world)) == {"no_callback": 1, "unexplained": 1}


def test_counting_alerts_is_bounded(monkeypatch) -> None:
    """It counts all calls of an alert, and keeps the SIDs of a few."""
    monkeypatch.setattr(webhooks, "CALLS_NAMED", 3)
    found = [
        Alert(f"NO{number}", NOW, NOW, "11205", URL, sid(number)) for number in range(10)
    ]  # fmt: skip
    (count,) = webhooks.count_alerts(found, datetime(2026, 6, 10, tzinfo=NOW.tzinfo))
    assert (count.alerts, len(count.call_sids)) == (10, 3)


def test_a_401_that_stays_on_one_of_the_two_is_a_lacking_permission(world: World, quick_retries: None) -> None:
    """Twilio lists calls meanwhile. Found once, it is asked for once an hour, and not proven anew."""
    world.twilio.faults.when(lambda request: request.path == "/v1/Alerts", Fault.unauthorized())
    assert world.webhooks().outcome is Outcome.SUCCEEDED
    assert [entry.path == "/v1/Alerts" for entry in world.twilio.requests].count(True) == 5
    assert world.cursor("webhooks")["refused"] == ["alerts"]
    world.webhooks()
    assert [entry.path == "/v1/Alerts" for entry in world.twilio.requests].count(True) == 1
    assert [line["resource"] for line in world.said("evidence.refused")] == ["alerts"]


@pytest.mark.parametrize("times", [1, 5])
def test_a_passing_401_heals(world: World, quick_retries: None, times: int) -> None:
    """If the 401 outlasts the repeats, the run fails, and the next one reads all."""
    world.account.raise_alert(NOW - HOUR, "11205", URL, resource_sid=None)
    world.account.endpoints.add_number("+12025550177", status_callback="")
    world.twilio.faults.next(*[Fault.unauthorized()] * times)
    with pytest.raises(Refused):
        world.webhooks()
    world.twilio.faults.clear()
    assert (world.said("evidence.refused"), world.cursor("webhooks")) == ([], {})
    world.webhooks()
    assert (len(alerts(world)), len(faults(world)), why(world).unread) == (1, 1, [])


def test_a_401_between_the_two_fails_the_run_and_heals(world: World, quick_retries: None) -> None:
    """Alerts were read, and then Twilio refuses for longer than the repeats of a request."""
    world.account.raise_alert(NOW - HOUR, "11205", URL, resource_sid=None)
    world.twilio.faults.when(lambda request: request.path != "/v1/Alerts", Fault.unauthorized())
    with pytest.raises(CredentialsDoubted):
        world.webhooks()
    world.twilio.faults.clear()
    assert (world.said("evidence.refused"), alerts(world)) == ([], [])
    world.webhooks()
    assert len(alerts(world)) == 1

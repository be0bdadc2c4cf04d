"""Webhooks lost on purpose: each cause, the journal of losses, and the rows of the Viewer's database."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from reconciler.simulator import Callbacks, Outage, Road
from reconciler.simulator.road import causes_of_gaps
from reconciler.simulator.viewer import receive, work
from reconciler.simulator.webhooks import Channel, events_of
from reconciler.simulator.wire import seconds

NOON = datetime(2026, 6, 10, 12, tzinfo=UTC)
MORNING = NOON.replace(hour=0)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
AT_TWO = Outage(MORNING + 14 * HOUR, MORNING + 15 * HOUR)


@pytest.fixture
def day(account):
    """A day of 3,000 calls, a tenth of them drawn as trunk calls, one number of twelve without a status callback."""
    account.generate(3_000, MORNING, MORNING + DAY, trunk_share=0.1)
    silent = next(iter(account.endpoints.numbers))
    account.endpoints.add_number(silent, status_callback="")
    return account


def told(deliveries):
    """Return the calls whose end arrived and can be read."""
    return {delivery.webhook.call_sid for delivery in deliveries if delivery.webhook.is_final}


def over(account, until):
    """Return the calls that have ended by then."""
    return {call.sid for call in account.calls_at(until) if call.ended is not None and call.ended < seconds(until)}


def test_every_call_without_a_webhook_for_its_end_has_one_cause(day):
    """With all causes at once, the journal names exactly the calls whose end did not arrive."""
    road = Road(Channel(seed=3, loss=0.05, duplicate=0.1), outages=(AT_TWO,), inbox_failures=0.1)
    until = MORNING + 2 * DAY
    arrived = told(road.deliver(day, MORNING, until))
    causes = causes_of_gaps(day)
    assert over(day, until) - arrived == causes.keys()
    assert {"trunk", "no_callback", "child_leg", "alert", "inbox", "chance"} == set(causes.values())
    finals = [loss for loss in day.losses if loss.is_final]
    assert len(finals) == len(causes)


def test_windows_one_after_the_other_lose_the_same_as_one(day):
    """Delivery hour by hour delivers each webhook once, and records each loss once."""
    road = Road(outages=(AT_TWO,), inbox_failures=0.1)
    at, deliveries = MORNING, []
    while at < MORNING + 2 * DAY:
        deliveries += road.deliver(day, at, at + HOUR)
        at += HOUR
    by_hours, causes, alerts = told(deliveries), causes_of_gaps(day), len(day.alerts)
    day.losses.clear()
    day.alerts.clear()
    assert told(road.deliver(day, MORNING, MORNING + 2 * DAY)) == by_hours
    assert (causes, alerts) == (causes_of_gaps(day), len(day.alerts))


def test_a_number_without_a_status_callback_loses_the_ends_of_its_own_calls(day):
    """The journal names the number; outbound calls from it still send their end."""
    silent = next(iter(day.endpoints.numbers))
    Road().deliver(day, MORNING, MORNING + 2 * DAY)
    lost = [loss for loss in day.losses if loss.cause == "no_callback"]
    assert {silent} == {loss.detail for loss in lost}
    assert {"inbound"} == {day.find(loss.call_sid).direction for loss in lost}
    assert len(lost) == sum(call.to == silent for call in day.calls_at(MORNING + 2 * DAY))


def test_a_callback_on_a_foreign_host_reaches_nobody_here(account):
    """The journal names the URL."""
    call = account.call(NOON, direction="inbound", to="+12025550100")
    account.endpoints.add_number("+12025550100", status_callback="https://old.example.net/status")
    account.callbacks = Callbacks(recorded=0)
    arrived = Road().deliver(account, MORNING, MORNING + DAY)
    assert ["voice-url"] == [delivery.webhook.kind for delivery in arrived]
    assert [("no_callback", call.sid, "https://old.example.net/status")] == [
        (loss.cause, loss.call_sid, loss.detail) for loss in account.losses
    ]


def test_an_outage_of_the_receiver_leaves_an_alert_for_each_webhook_it_costs(day):
    """Alerts lie within its hours. Each has the call, the URL, the code, and a time after both attempts."""
    Road(outages=(AT_TWO,)).deliver(day, MORNING, MORNING + 2 * DAY)
    lost = [loss for loss in day.losses if loss.cause == "alert"]
    assert 50 < len(lost) == len(day.alerts)
    assert all(AT_TWO.since <= loss.at < AT_TWO.until for loss in lost)
    assert Counter(loss.call_sid for loss in lost) == Counter(alert.resource_sid for alert in day.alerts)
    assert {"11205"} == {alert.error_code for alert in day.alerts}
    assert {alert.request_url.rpartition("/")[0] for alert in day.alerts} == {"https://hooks.example.com/twilio/voice"}
    assert sorted(seconds(loss.at) + 10 for loss in lost) == sorted(alert.generated for alert in day.alerts)


@pytest.mark.parametrize(("code", "answered"), [("11205", None), ("11200", 500)])
def test_the_events_of_a_call_tell_how_the_receiver_failed(account, code, answered):
    """The lost webhook got no answer, or 500; all others got 200."""
    call = account.call(NOON, rings_for=6, talks_for=3600)
    last = Outage(NOON + HOUR, NOON + 2 * HOUR, code)
    Road(outages=(last,)).deliver(account, MORNING, MORNING + DAY)
    events = events_of(account, call.sid, MORNING + DAY)
    assert [200, 200, 200, answered] == [event["response"]["response_code"] for event in events]


def test_an_outage_may_hit_one_url_alone(day):
    """It may be the URL for recordings. The loss then names the recording's SID."""
    day.callbacks = Callbacks(recorded=1, conferences=0.5)
    outage = Outage(MORNING, MORNING + 2 * DAY, "11200", part_of_url="/voice/recording")
    Road(outages=(outage,)).deliver(day, MORNING, MORNING + 2 * DAY)
    lost = [loss for loss in day.losses if loss.cause == "alert"]
    assert {"recording"} == {loss.kind for loss in lost}
    assert len(lost) == len({loss.recording_sid for loss in lost}) == len(day.alerts)
    assert {"CA", "RE"} == {alert.resource_sid[:2] for alert in day.alerts}
    assert not any(loss.is_final for loss in lost)


def test_what_fails_in_the_inbox_has_arrived_and_stays_there_as_failed(conn, day):
    """The worker cannot read the status: the row is failed and names the call, and messages has no end."""
    road = Road(Channel(duplicate=0.3), inbox_failures=0.2, child_callbacks=True)
    receive(conn, road.deliver(day, MORNING, MORNING + 2 * DAY))
    work(conn, now=MORNING + 3 * DAY, batch=100_000)
    failed = conn.execute("SELECT call_sid, error FROM twilio_webhook_inbox WHERE processing_status = 'failed'")
    rows = failed.fetchall()
    lost = {sid for sid, cause in causes_of_gaps(day).items() if cause == "inbox"}
    assert lost == {sid for sid, _ in rows}
    assert {"no such call status: released"} == {error for _, error in rows}
    ended = conn.execute("SELECT twilio_sid FROM messages WHERE status = ANY(%s)", [["completed", "busy"]]).fetchall()
    assert ended
    assert not lost & {sid for (sid,) in ended}


def test_a_third_of_a_day_is_lost_by_four_causes_and_five_percent_by_chance(day):
    """Shares that a test of `why` can be held against: each of the four is there in numbers, chance is about 5 %."""
    for number in list(day.endpoints.numbers)[:2]:
        day.endpoints.add_number(number, status_callback="")
    hours = Outage(MORNING + 14 * HOUR, MORNING + 15 * HOUR + HOUR / 2)
    road = Road(Channel(seed=1, loss=0.05), outages=(hours,), inbox_failures=0.08, child_callbacks=True)
    road.deliver(day, MORNING, MORNING + 2 * DAY)
    shares = {cause: count / 3_000 for cause, count in Counter(causes_of_gaps(day).values()).items()}
    assert {"trunk", "no_callback", "alert", "inbox", "chance"} == shares.keys()
    assert all(0.04 < share < 0.13 for share in shares.values())
    assert 0.28 < sum(shares.values()) < 0.40

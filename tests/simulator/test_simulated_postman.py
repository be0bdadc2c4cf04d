"""Webhooks as time passes, into the Viewer's database."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from reconciler.simulator import Road, SimulatedAccount
from reconciler.simulator.calls import FINAL
from reconciler.simulator.postman import NoInbox, Postman
from reconciler.simulator.road import causes_of_gaps
from reconciler.simulator.webhooks import Channel

NOON = datetime(2026, 6, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SUB = f"AC{2:032x}"


@pytest.fixture
def postman(account, clock, database_url):
    """Makes a postman of the account, from an hour ago on."""
    made = []

    def make(road, url=database_url):
        made.append(Postman(url, [account], clock=clock, road=road, since=NOON - HOUR))
        return made[-1]

    yield make
    for each in made:
        each.close()


def ends(conn):
    """Return for how many calls the Viewer received the end."""
    told = "SELECT count(DISTINCT call_sid) FROM twilio_webhook_inbox WHERE payload->>'CallStatus' = ANY(%s)"
    return conn.execute(told, [sorted(FINAL)]).fetchone()[0]


def test_each_step_delivers_what_was_sent_meanwhile(postman, conn, account, clock):
    """Calls of the account and of its subaccounts, once each, however time is cut."""
    account.generate(200, NOON - HOUR, NOON + HOUR, trunk_share=0)
    account.add_subaccount(SUB, "t").generate(200, NOON - HOUR, NOON + HOUR, trunk_share=0)
    road = Road(Channel(late=0.2, latest=timedelta(minutes=20)), child_callbacks=True)
    with_time = postman(road)
    for _ in range(30):
        with_time.step()
        clock.advance(timedelta(minutes=10))
    assert 400 == ends(conn)
    assert 0 == len(causes_of_gaps([account, account.subaccounts[SUB]]))
    assert with_time.delivered == conn.execute("SELECT count(*) FROM twilio_webhook_inbox").fetchone()[0]


def test_what_is_lost_differs_from_step_to_step(postman, account, clock):
    """With one call a step, some are lost and some are not."""
    for minute in range(60):
        account.call(NOON + timedelta(minutes=minute), direction="inbound", rings_for=0, talks_for=1)
    some = postman(Road(Channel(loss=0.5)))
    for _ in range(62):
        some.step()
        clock.advance(timedelta(minutes=1))
    assert 15 < len(causes_of_gaps(account)) < 45


def test_the_share_that_is_lost_can_be_changed(postman, account, clock):
    """The next step uses the new share."""
    for minute in range(3):
        account.call(NOON + timedelta(minutes=minute), direction="inbound", rings_for=0, talks_for=1)
    lossy = postman(Road())
    for loss, ends_lost in ((0.0, 0), (1.0, 1), (0.0, 1)):
        lossy.loss = loss
        clock.advance(timedelta(minutes=1))
        lossy.step()
        assert ends_lost == len(causes_of_gaps(account))


def test_while_the_database_is_away_webhooks_are_lost_and_noted(postman, account, clock):
    """11200 for each: the receiver answered 500, and Twilio tries no second time."""
    account.call(NOON, rings_for=1, talks_for=1)
    lost = postman(Road(), "postgresql://nobody@127.0.0.1:1/nowhere?connect_timeout=2")
    clock.advance(timedelta(minutes=1))
    lost.step()
    assert Counter({"11200": 4}) == Counter(alert.error_code for alert in account.alerts)
    assert ["alert"] == list(causes_of_gaps(account).values())
    with pytest.raises(psycopg.OperationalError):
        lost.prepare()


def test_a_database_without_an_inbox(postman, empty_database_url, clock):
    """The error comes before anything is sent."""
    with pytest.raises(NoInbox):
        postman(Road(), empty_database_url).prepare()


def test_in_the_background_it_goes_on_by_itself(conn, clock, database_url):
    """Past webhooks are delivered at the begin, later ones with the next step of the clock."""
    account = SimulatedAccount(f"AC{1:032x}", "t")
    account.call(NOON - timedelta(minutes=30), direction="inbound")
    with Postman(database_url, [account], clock=clock, road=Road(), since=NOON - HOUR) as postman:
        assert 1 == ends(conn)
        account.call(NOON, direction="inbound")
        clock.advance(HOUR)
        assert postman.wait_for_step()
        assert 2 == ends(conn)

"""Our clock against Twilio's: deadlines pass on Twilio's, no cursor claims what is yet to come, and jobs heal alone."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.harness.names import ACCOUNT, NOW
from tests.harness.world import MINUTE

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
AHEAD = -25 * HOUR  # what our clock is behind by


def run_all(world):
    """Each job of the schedule once, as a daemon runs them for this account."""
    world.hot()
    world.warm()
    world.cold(deep=None)
    world.freeze(scheduled_accounts=(ACCOUNT,))


@pytest.mark.parametrize("had_run", [False, True])
def test_a_clock_that_is_a_day_ahead_for_a_moment_freezes_nothing_without_its_price(world, had_run):
    """30 calls that just ended; their prices come while our clock is right again, and nobody had to do anything."""
    if had_run:
        run_all(world)
        world.clock.advance(MINUTE)
    for number in range(30):
        world.account.call(world.clock.now() - (40 + number) * timedelta(seconds=1), talks_for=5, priced_after=75)
    world.behind = AHEAD
    run_all(world)
    assert world.conn.execute("SELECT count(*) FROM messages WHERE sync_state = 'frozen'").fetchone() == (0,)
    world.behind = timedelta(0)
    world.clock.advance(2 * MINUTE)
    run_all(world)
    assert world.differences() == []
    assert world.conn.execute("SELECT count(*) FROM messages WHERE sync_state = 'frozen'").fetchone() == (30,)
    assert world.said("cursor.corrected") == []


def test_freeze_after_a_backfill_alone_does_not_accept_a_clock_that_is_ahead(world):
    """No daemon has ever run: nobody but the backfill has asked Twilio, and the price is yet to come."""
    world.account.call(world.clock.now() - 40 * timedelta(seconds=1), talks_for=5, priced_after=75)
    world.backfill(days=2)
    world.behind = AHEAD
    assert world.freeze().frozen == 0
    world.behind = timedelta(0)
    world.clock.advance(2 * MINUTE)
    world.backfill(days=2)
    assert world.differences() == []


def test_calls_that_begin_after_a_step_of_the_clock_are_found(world):
    """Hot, after five days of downtime, reads up to Twilio's time, not up to ours."""
    world.hot()
    world.clock.advance(5 * DAY)
    world.behind = AHEAD
    world.hot()
    assert world.cursor()["read_until"] < (world.clock.now() + MINUTE).isoformat()
    world.behind = timedelta(0)
    world.account.call(world.clock.now() + MINUTE, talks_for=5, priced_after=0)
    world.hot_after(HOUR)
    assert world.differences() == []
    assert world.said("cursor.corrected") == []


@pytest.mark.parametrize("job", ["hot", "warm", "cold"])
def test_no_cursor_holds_the_time_of_a_clock_that_is_ahead(world, job):
    """This holds after the first run and after later ones."""
    world.account.call(NOW - 30 * HOUR, talks_for=5, price=None)
    world.hot(since=NOW - 2 * DAY)
    world.behind = AHEAD
    for _ in range(2):
        getattr(world, job)()
        moments = [value for name, value in world.cursor(job).items() if name != "account" and isinstance(value, str)]
        assert moments
        assert max(moments) < (world.clock.now() + MINUTE).isoformat()
        world.clock.advance(MINUTE)


@pytest.mark.parametrize("job", ["hot", "warm", "cold"])
@pytest.mark.parametrize("ahead", [20 * MINUTE, 25 * HOUR])
def test_what_a_clock_ahead_wrote_heals_by_itself(world, job, ahead):
    """The job reads from the last certain time, logs that once, and goes on. An earlier version wrote the cursor."""
    future = (NOW + ahead).isoformat()
    world.set_cursor({"account": ACCOUNT, "read_until": future})
    world.set_cursor({"account": ACCOUNT, "settled_until": NOW.isoformat(), "looked_at": future}, "warm")
    world.set_cursor({"account": ACCOUNT, "swept_at": future, "deep_at": future}, "cold")
    lost = world.account.call(NOW - HOUR, talks_for=5, priced_after=0)
    if job == "warm":
        world.hot(since=NOW - 2 * HOUR)
        world.log.clear()
    getattr(world, job)(**({"deep": None} if job == "cold" else {}))
    assert world.row(lost.sid)["sync_state"] == "frozen"
    assert world.said("cursor.corrected") == [{"until": future}]
    world.clock.advance(MINUTE)
    getattr(world, job)(**({"deep": None} if job == "cold" else {}))
    assert len(world.said("cursor.corrected")) == 1


def test_hot_sweeps_again_what_it_had_put_off_when_its_clock_was_ahead(world):
    """The end of the sweep lay in the future; its beginning is certain."""
    since, future = NOW - 5 * DAY, (NOW + 25 * HOUR).isoformat()
    lost = world.account.call(NOW - 4 * DAY, talks_for=5, priced_after=0)
    plan = {"since": since.isoformat(), "until": future, "done": 3, "uncut": [], "open": {}}
    world.set_cursor({"account": ACCOUNT, "read_until": since.isoformat(), "ahead_until": future, "plan": plan})
    world.hot()
    assert world.row(lost.sid)
    assert world.cursor() == {"account": ACCOUNT, "read_until": NOW.isoformat(), "usual": 0}


@pytest.mark.parametrize("scheduled_accounts", [(), (ACCOUNT,), None])
def test_freeze_does_not_accept_a_look_in_the_future(world, scheduled_accounts):
    """Warm refuses it too: it has yet to look, whether it runs beside freeze or not."""
    world.account.call(NOW - HOUR, talks_for=5, price=None)
    world.know()
    world.clock.advance(30 * HOUR)
    looked_at = (world.clock.now() + 20 * MINUTE).isoformat()
    world.set_cursor({"account": ACCOUNT, "settled_until": NOW.isoformat(), "looked_at": looked_at}, "warm")
    assert world.freeze(scheduled_accounts=scheduled_accounts).frozen == 0
    world.warm()
    assert world.freeze(scheduled_accounts=scheduled_accounts).frozen == 0  # warm's merge froze it
    assert world.conn.execute("SELECT sync_state FROM messages").fetchall() == [("frozen",)]


def test_freeze_waits_for_twilio_while_it_is_away(world):
    """Its deadline passed while nobody could ask: the price may be there."""
    call = world.account.call(NOW - HOUR, talks_for=5, price=None)
    world.hot()
    world.warm()
    world.clock.advance(30 * HOUR)
    assert world.freeze().frozen == 0
    world.hot()
    world.warm()
    assert world.row(call.sid)["sync_state"] == "frozen"


@pytest.mark.parametrize(("behind", "seconds"), [(-25 * HOUR, 90_000), (-6 * MINUTE, 360)])
def test_each_run_warns_of_clocks_that_differ(world, behind, seconds):
    """The warning says by how much ours is ahead. A few minutes need no warning."""
    world.behind = behind
    world.hot()
    world.hot_after(MINUTE)
    assert [line["seconds"] for line in world.said("clock.differed")] == 2 * [pytest.approx(seconds, abs=2)]


@pytest.mark.parametrize("behind", [-4 * MINUTE, timedelta(0), 4 * MINUTE])
def test_nothing_is_said_of_clocks_that_agree(world, behind):
    world.behind = behind
    world.hot()
    assert world.said("clock.differed") == []

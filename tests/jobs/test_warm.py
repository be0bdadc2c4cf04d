"""warm: values that come after a call's end arrive, complete calls freeze, settled calls are not asked about."""

from __future__ import annotations

from datetime import timedelta

import pytest

from reconciler.errors import ConfigError, Refused, Retriable
from reconciler.simulator import Fault
from reconciler.sync.counts import Outcome
from tests.harness.equality import versions
from tests.harness.names import ACCOUNT, NOW, SUBACCOUNT, TOKEN
from tests.harness.present import present
from tests.harness.world import FREEZE_AFTER, MINUTE

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
QUARTER = timedelta(minutes=15)
FIRST = "Calls.json?PageSize=1"


def ended(world, *, ago=MINUTE, **script):
    """The SID of a call that ended so long ago, completed unless told otherwise."""
    return world.account.call(world.clock.now() - ago - timedelta(seconds=8), rings_for=3, talks_for=5, **script).sid


def reasons(world, sid):
    """Why a call froze."""
    rows = world.conn.execute(
        "SELECT coalesce(payload->>'reason', payload->>'frozen') FROM call_events"
        " WHERE call_sid = %s AND (event_type = 'call.frozen' OR payload ? 'frozen')",
        (sid,),
    )
    return [row[0] for row in rows]


def test_a_price_that_comes_late_arrives_and_the_row_freezes(world):
    """A complete call is settled, and not asked about again."""
    sid = ended(world, price="-0.01400", priced_after=300)
    world.know()
    assert world.row(sid)["sync_state"] == "active"
    totals = world.warm_after(10 * MINUTE)
    assert world.asked() == [FIRST, f"Calls/{sid}.json"]
    assert (totals.updated, totals.frozen, totals.requests) == (1, 1, 2)
    assert world.differences() == []
    assert world.row(sid)["sync_state"] == "frozen"
    assert world.events(sid) == ["call.created", "call.enriched", "call.frozen"]
    assert reasons(world, sid) == ["complete"]
    before = versions(world.conn)
    world.warm_after(10 * MINUTE)
    assert (world.asked(), versions(world.conn)) == ([], before)


def test_a_first_look_reaches_back_to_all_that_hot_left_without_a_price(world):
    """Hot ran for days and warm never did: freeze would seal these calls without the price that came in time."""
    sid = ended(world, price="-0.01400", priced_after=300)
    world.know()
    world.clock.advance(2 * DAY)
    assert world.row(sid)["price"] is None
    world.warm()
    assert world.differences() == []
    assert reasons(world, sid) == ["complete"]


@pytest.mark.parametrize("status", ["busy", "no-answer", "failed", "canceled"])
def test_what_has_no_price_to_wait_for_freezes_at_once(world, status):
    """A webhook told its end; the first record of the REST API settles it."""
    sid = ended(world, status=status)
    world.write_as_viewer(sid, status)
    world.conn.execute("UPDATE messages SET finalized_at = %s WHERE twilio_sid = %s", (NOW, sid))
    world.warm_after(MINUTE)
    assert (world.row(sid)["sync_state"], reasons(world, sid)) == ("frozen", ["complete"])
    assert world.row(sid)["account_sid"] == ACCOUNT
    world.warm_after(MINUTE)
    assert world.asked() == []


def test_a_completed_call_without_a_price_freezes_at_its_deadline(world):
    """It does not freeze before. The event keeps the reason."""
    sid = ended(world, ago=timedelta(0), price=None)
    world.know()
    world.warm_after(FREEZE_AFTER - MINUTE)
    assert (world.asked(), world.row(sid)["sync_state"]) == ([FIRST, f"Calls/{sid}.json"], "active")
    world.warm_after(2 * MINUTE)
    assert (world.row(sid)["sync_state"], reasons(world, sid)) == ("frozen", ["deadline"])
    world.warm_after(MINUTE)
    assert world.asked() == []


def test_nothing_unfrozen_costs_nothing(world):
    """An empty database, and one where all is settled; a first run asks for Twilio's time."""
    world.warm()
    assert world.asked() == [FIRST]
    assert world.warm().requests == len(world.asked()) == 0
    world.account.generate(50, NOW - 5 * HOUR, NOW - 4 * HOUR)
    world.know()
    world.conn.execute("DELETE FROM messages WHERE sync_state <> 'frozen'")
    world.warm_after(QUARTER)
    assert world.asked() == []
    assert world.state("warm")["last_success_at"] is not None


def test_asked_at_once_and_again_when_grown_twice_as_old(world):
    """A price that never comes costs ten requests until the deadline; the last one settles the call."""
    sid = ended(world, ago=timedelta(0), price=None)
    world.know()
    ages = []
    world.clock.set(NOW - 8 * MINUTE)
    world.warm(interval=QUARTER, since=NOW - DAY)
    for _ in range(100):
        world.warm_after(QUARTER, interval=QUARTER)
        if world.asked():
            ages.append((world.clock.now() - NOW) // MINUTE)
    assert ages == [7, 22, 37, 67, 127, 247, 487, 967, 1447]
    assert reasons(world, sid) == ["deadline"]


def test_a_person_asks_about_all_at_once(world):
    """Without an interval the run asks about every call."""
    ended(world, ago=3 * HOUR, price=None)
    world.know()
    for _ in range(3):
        world.warm_after(MINUTE)
        assert len(world.asked()) == 2


def test_what_webhooks_alone_told_is_asked_about_at_each_run(world):
    """REST has not confirmed it; a 404 in its first minutes is no reason to wait until it is twice as old."""
    sid = ended(world, ago=2 * MINUTE)
    world.write_as_viewer(sid, "completed")
    world.conn.execute("UPDATE messages SET finalized_at = %s WHERE twilio_sid = %s", (NOW - 2 * MINUTE, sid))
    world.twilio.faults.when(lambda request: sid in request.path, Fault.not_found(), times=1)
    totals = world.warm_after(MINUTE, interval=QUARTER)
    assert (len(world.asked()), totals.gone) == (2, 0)
    world.warm_after(MINUTE, interval=QUARTER)
    assert len(world.asked()) == 2
    assert world.differences() == []


def test_after_three_days_all_that_ended_meanwhile_is_asked_about(world):
    """The cursor stayed behind with the machine; nothing is skipped."""
    world.warm(interval=QUARTER)
    world.clock.advance(3 * DAY)
    sids = [ended(world, ago=hours * HOUR, price="-0.01400", priced_after=60) for hours in range(1, 72)]
    unpriced = [ended(world, ago=ago * HOUR, price=None) for ago in (23, 25, 71)]
    for sid in [*sids, *unpriced]:
        world.write_as_viewer(sid, "completed", created_at=world.account.find(sid).date_created)
        end = world.account.find(sid).ended
        world.conn.execute(
            "UPDATE messages SET finalized_at = to_timestamp(%s), start_time = to_timestamp(%s) AT TIME ZONE 'UTC'"
            " WHERE twilio_sid = %s",
            (end, end - 5, sid),
        )
    totals = world.warm(interval=QUARTER)
    assert world.differences() == []
    assert totals.frozen == 71 + 2
    assert world.row(unpriced[0])["sync_state"] == "active"
    assert totals.requests <= 1 + 4 * 2


@pytest.mark.parametrize("interval", [None, QUARTER])
def test_three_days_of_what_rest_told_already(world, interval):
    """The same where hot had brought the ends, without the prices."""
    world.warm(interval=QUARTER)
    sids = []
    for _ in range(30):
        world.clock.advance(2 * HOUR)
        sids.append(ended(world, ago=timedelta(0), price="-0.01400", priced_after=60))
        world.know()
    world.clock.set(NOW + 3 * DAY)
    world.warm(interval=interval)
    assert world.differences() == []
    assert {world.row(sid)["sync_state"] for sid in sids} == {"frozen"}


def test_a_thousand_calls_of_an_hour_are_listed(world):
    """Where many lie close, a listing takes fewer requests than they would."""
    for number in range(1_000):
        world.account.call(
            NOW - 2 * HOUR + timedelta(seconds=3 * number), rings_for=1, talks_for=2, priced_after=4 * HOUR.seconds
        )
    world.know()
    totals = world.warm_after(6 * HOUR)
    assert (totals.frozen, totals.updated) == (1_000, 1_000)
    assert world.differences() == []
    assert len(world.asked_singly()) == 1  # the page is full: a look at its last call proves that the next one is empty
    assert totals.requests == len(world.asked()) <= 4


def test_a_call_that_is_gone_is_marked_once_and_left_alone(world):
    """No status comes of it."""
    sid = ended(world, ago=10 * MINUTE, price=None)
    world.know()
    world.account.delete(sid, NOW)
    totals = world.warm_after(MINUTE)
    assert (totals.gone, world.events(sid)) == (1, ["call.created", "call.gone"])
    assert world.row(sid)["status"] == "completed"
    world.warm_after(MINUTE)
    assert world.asked() == []


def test_no_call_is_gone_when_the_account_cannot_be_seen(world):
    """404 for everything says nothing of its calls."""
    sid = ended(world, ago=HOUR, price=None)
    world.know()
    world.twilio.faults.always(Fault.not_found())
    with pytest.raises(Refused, match="no such account"):
        world.warm_after(MINUTE)
    assert (len(world.asked()), world.row(sid)["gone_at"]) == (1, None)
    assert "no such account" in world.state("warm")["last_error"]


def test_a_run_that_fails_leaves_the_cursor_where_it_was(world, quick_retries):
    """503 for good: the next run asks about the same calls."""
    world.warm(interval=QUARTER)
    before = world.cursor("warm")
    sid = ended(world, ago=timedelta(0), price=None)
    world.know()
    world.twilio.faults.always(Fault.server_error(503))
    with pytest.raises(Retriable, match="503"):
        world.warm_after(QUARTER, interval=QUARTER)
    assert world.cursor("warm") == before
    assert "503" in world.state("warm")["last_error"]
    world.twilio.faults.clear()
    world.warm_after(MINUTE, interval=QUARTER)
    assert world.asked_singly() == [sid]


def test_a_call_that_cannot_be_read_keeps_no_other_from_its_price(world, quick_retries):
    """The others freeze; the run is no success, and its cursor stays for the one that is left."""
    sids = [ended(world, ago=ago, priced_after=15 * HOUR.seconds) for ago in (HOUR, 14 * HOUR)]
    world.know()
    before = {"account": ACCOUNT, "settled_until": (NOW - DAY).isoformat(), "looked_at": (NOW - DAY).isoformat()}
    world.set_cursor(before, "warm")
    world.twilio.faults.when(lambda request: sids[1] in request.path, Fault.server_error(500))
    totals = world.warm_after(15 * HOUR)
    assert [world.row(sid)["sync_state"] for sid in sids] == ["frozen", "active"]
    assert "1 calls were not read" in totals.problem
    assert world.cursor("warm") == before
    world.twilio.faults.clear()
    world.warm()
    assert world.differences() == []


def test_a_day_that_cannot_be_listed_keeps_no_other_from_its_prices(world, quick_retries):
    """Its calls are left to the next run; those of other days arrive."""
    today = [ended(world, ago=HOUR + number * MINUTE, priced_after=7_200) for number in range(20)]
    before = [ended(world, ago=20 * HOUR + number * MINUTE, priced_after=24 * HOUR.seconds) for number in range(20)]
    world.know()
    cursor = {"account": ACCOUNT, "settled_until": (NOW - 3 * DAY).isoformat(), "looked_at": NOW.isoformat()}
    world.set_cursor(cursor, "warm")
    world.twilio.faults.when(
        lambda request: (request.param("StartTime>") or "").startswith("2026-06-09"), Fault.server_error(503)
    )
    totals = world.warm_after(3 * HOUR)
    assert {world.row(sid)["sync_state"] for sid in today} == {"frozen"}
    assert {world.row(sid)["price"] for sid in before} == {None}
    assert "1 slices were not read" in totals.problem
    assert world.asked_singly() == []
    assert world.cursor("warm") == cursor


def test_a_run_that_is_stopped_goes_on_at_the_next(world):
    """The run stops before it asks, and takes no call for done."""
    sid = ended(world, ago=10 * MINUTE, priced_after=5)
    world.conn.execute("TRUNCATE messages")
    world.write_as_viewer(sid, "completed")
    world.conn.execute("UPDATE messages SET finalized_at = %s WHERE twilio_sid = %s", (NOW, sid))
    world.stop.set()
    totals = world.warm()
    assert totals.outcome is Outcome.INTERRUPTED
    assert world.cursor("warm") == {}
    assert world.state("warm").get("last_success_at") is None
    world.go_on()
    world.warm()
    assert world.differences() == []


@pytest.mark.parametrize(
    ("cursor", "says"),
    [
        ({"settled_until": (NOW - 401 * DAY).isoformat(), "looked_at": NOW.isoformat()}, "before what Twilio keeps"),
        ({"settled_until": NOW.isoformat(), "looked_at": NOW.isoformat(), "account": SUBACCOUNT}, "another account"),
        ({"settled_until": NOW.isoformat()}, "cannot be read"),
        ({"settled_until": "x", "looked_at": NOW.isoformat()}, "cannot be read"),
    ],
)
def test_a_cursor_that_cannot_be_is_refused(world, cursor, says):
    """The error names the job and how to mend it; nothing is asked. `since` mends it."""
    sid = ended(world, ago=2 * HOUR, priced_after=HOUR.seconds)
    world.know()
    world.set_cursor({"account": ACCOUNT, **cursor}, "warm")
    world.write_as_viewer("CA" + 32 * "b", "completed")
    with pytest.raises(ConfigError, match=says) as error:
        world.warm()
    assert "cursor of warm" in str(error.value)
    assert "reconcile once warm" in present(error.value.hint)
    assert world.asked() == []
    world.conn.execute("DELETE FROM messages WHERE account_sid IS NULL")
    world.warm(since=NOW - DAY)
    assert world.row(sid)["sync_state"] == "frozen"
    world.warm_after(MINUTE)


def test_an_account_looks_after_its_own(world):
    """Rows without an account are the main account's."""
    sub = world.account.add_subaccount(SUBACCOUNT, TOKEN)
    own, theirs, stray = (ended(world, ago=HOUR, price=None) for _ in range(3))
    world.know([own])
    for sid in (theirs, stray):
        world.write_as_viewer(sid, "completed", created_at=NOW - HOUR)
    world.conn.execute("UPDATE messages SET finalized_at = %s WHERE account_sid IS NULL", (NOW - HOUR,))
    world.conn.execute("UPDATE messages SET account_sid = %s WHERE twilio_sid = %s", (SUBACCOUNT, theirs))
    sub.call(NOW - HOUR, sid=theirs, talks_for=5, rings_for=3)
    world.warm(SUBACCOUNT)
    assert world.asked_singly() == [theirs]
    assert world.row(theirs)["sync_state"] == "frozen"
    assert world.row(stray)["sync_state"] == "active"
    world.clock.advance(MINUTE)
    world.warm()
    assert theirs not in world.asked_singly()
    assert world.row(stray)["account_sid"] == ACCOUNT
    assert set(world.cursor(f"warm:{SUBACCOUNT}")) == {"account", "settled_until", "looked_at"}


def test_a_busy_day_is_listed_by_its_hours(world):
    """Hundreds of calls of yesterday wait for their prices: their pages are not one chain."""
    noon = NOW.replace(hour=0, minute=0, second=0, microsecond=0) - DAY / 2
    world.account.generate(1_500, noon - DAY / 4, noon + DAY / 4)
    world.know()
    world.conn.execute("SELECT set_config('reconciler.thaw', 'on', false)")
    world.conn.execute("UPDATE messages SET price = NULL, sync_state = 'active' WHERE status = 'completed'")
    world.page_size = 25
    counts = world.warm_after(MINUTE)
    assert len(world.hours_asked()) > 4
    assert counts.problem is None
    assert world.differences() == []
    assert world.conn.execute("SELECT count(*) FROM messages WHERE sync_state <> 'frozen'").fetchone() == (0,)

"""hot brings calls that webhooks missed and the ends of calls, with no more requests than needed."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import msgspec
import pytest

from reconciler.database.transaction import Transaction
from reconciler.errors import ConfigError, JobHeld, Refused, Retriable, TwilioAnswerError
from reconciler.simulator import Fault
from reconciler.sync.counts import Outcome
from tests.harness.equality import doubled_events, versions
from tests.harness.names import ACCOUNT, NOW, SUBACCOUNT, TOKEN
from tests.harness.present import present
from tests.harness.world import MINUTE

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
NEWEST = "Calls.json?PageSize=200"
LARGEST = "Calls.json?PageSize=1000"


class Killed(BaseException):
    """An exception that none of our code catches."""


@pytest.fixture
def kill_at(monkeypatch):
    """Kill a run as it moves its cursor the nth time, in the transaction of the page."""

    def arm(nth):
        left, move_cursor = [nth], Transaction.move_cursor

        def die(self, *args, **kwargs):
            left[0] -= 1
            if not left[0]:
                raise Killed
            move_cursor(self, *args, **kwargs)

        monkeypatch.setattr(Transaction, "move_cursor", die)

    return arm


class Reversed:
    """A fault: the page comes oldest first."""

    def encode(self, payload):
        payload["calls"].reverse()
        return msgspec.json.encode(payload)


DISORDERED = Fault("disordered", breakage=cast("Any", Reversed()))


def talking(world, count, *, since=NOW - HOUR, until=NOW, **script):
    """Calls that were answered and go on and on, spread over a window."""
    step = (until - since) / count
    return [
        world.account.call(since + step * number, rings_for=3, talks_for=None, **script).sid for number in range(count)
    ]


def crowd(world, account=None):
    """So many calls half an hour ago that what is older is not on the page of the newest."""
    for number in range(260):
        (account or world.account).call(
            NOW - HOUR / 2 - timedelta(seconds=number), talks_for=1, rings_for=1, priced_after=0
        )


# New calls


def test_a_first_run_looks_back_one_day(world):
    """Older calls are left to a backfill. The day is read in the largest pages, once Twilio's clock is known."""
    world.account.generate(300, NOW - DAY, NOW)
    world.account.generate(1_500, NOW - 30 * DAY, NOW - DAY - HOUR)
    totals = world.hot()
    assert [line for line in world.differences() if "no row" not in line] == []
    oldest = world.conn.execute("SELECT count(*) FROM messages WHERE date_created >= %s", (NOW - DAY,)).fetchone()
    assert oldest == (300,)
    assert totals.requests == len(world.asked())
    assert world.asked()[:2] == ["Calls.json?PageSize=1", LARGEST]
    assert world.cursor()["read_until"] == NOW.isoformat()
    assert world.state()["last_success_at"] is not None


def test_a_lost_call_shows_up_within_one_run(world):
    """No webhook told of it; one request brings it."""
    world.hot()
    call = world.account.call(NOW + timedelta(seconds=10))
    totals = world.hot_after(2 * MINUTE)
    assert world.differences() == []
    assert (totals.inserted, world.asked()) == (1, [NEWEST])
    assert world.events(call.sid) == ["call.created"]
    assert world.said("gap.filled")[0]["kind"] == "missing"


def test_an_idle_account_costs_one_request_a_run(world):
    """The request asks for the smallest page, however long the account's log is."""
    world.account.generate(500, NOW - 10 * DAY, NOW - 2 * DAY, trunk_share=0)
    world.hot()
    for _ in range(5):
        world.hot_after(MINUTE)
        assert world.asked() == [NEWEST]
        assert world.cursor()["usual"] == 0


@pytest.mark.parametrize(("calls_a_minute", "page_size"), [(1, 200), (20, 350), (30, 500), (200, 1_000)])
def test_the_page_is_as_large_as_need_be(world, calls_a_minute, page_size):
    """A run reads the overlap and the new calls; one page holds these, and half as many again."""
    for number in range(15 * calls_a_minute):
        world.account.call(NOW - 11 * MINUTE + MINUTE * number / calls_a_minute, talks_for=1, rings_for=1)
    world.know()
    world.set_cursor({"account": ACCOUNT, "read_until": (NOW - MINUTE).isoformat()})
    world.hot()
    for _ in range(2):
        world.hot_after(MINUTE)
        assert world.asked()[0] == f"Calls.json?PageSize={page_size}"
        assert len([asked for asked in world.asked() if asked.startswith("Calls.json?Page")]) == (
            1 if page_size < 1_000 else 3
        )


def test_the_page_shrinks_again(world):
    """A busy hour is over, and the next runs ask for little."""
    world.account.generate(600, NOW - 10 * MINUTE, NOW, trunk_share=0)
    world.hot()
    world.hot_after(MINUTE)
    assert world.cursor()["usual"] > 400
    for minutes in (20, 1, 1):
        world.hot_after(minutes * MINUTE)
    assert world.asked() == [NEWEST]


def test_what_changed_nothing_writes_nothing(world):
    """The overlap is read again each run, and neither row nor event comes of it."""
    world.account.generate(200, NOW - 2 * HOUR, NOW - HOUR)
    world.account.generate(200, NOW - 9 * MINUTE, NOW - 8 * MINUTE)
    world.clock.advance(DAY)
    world.set_cursor({"account": ACCOUNT, "read_until": (NOW - 9 * MINUTE).isoformat()})
    world.hot()
    before, events = versions(world.conn), world.event_count()
    world.set_cursor({"account": ACCOUNT, "read_until": (NOW - 9 * MINUTE).isoformat()})
    totals = world.hot()
    assert totals.unchanged == totals.seen >= 200
    assert (versions(world.conn), world.event_count()) == (before, events)


def test_what_was_late_to_be_listed_is_found_by_the_overlap(world):
    """Twilio's listing did not show it when its time was read."""
    for number in range(399):
        world.account.call(NOW + timedelta(seconds=number % 50), rings_for=1, talks_for=1)
    world.account.call(NOW - MINUTE)
    late = world.account.call(NOW - 9 * MINUTE)
    too_late = [world.account.call(NOW - 11 * MINUTE - DAY).sid for _ in range(260)]
    world.set_cursor({"account": ACCOUNT, "read_until": NOW.isoformat()})
    world.hot_after(MINUTE)
    assert world.row(late.sid)
    assert len(world.asked()) == 3
    assert not all(world.row(sid) for sid in too_late)


# Ended calls


def test_a_call_that_ended_between_two_runs_is_final_after_the_next(world):
    """Its neighbours, which go on, keep their row versions; the gap is named, with how late we are."""
    sids = talking(world, 3, since=NOW - 2 * HOUR, until=NOW - HOUR)
    crowd(world)
    world.hot()
    before, events = versions(world.conn), world.event_count()
    world.account.hang_up(sids[1], NOW + MINUTE)
    totals = world.hot_after(5 * MINUTE)
    assert (totals.requests, world.asked()[0], "StartTime" in world.asked()[1]) == (2, NEWEST, True)
    assert world.differences_but_prices() == []
    assert world.events(sids[1])[-1] == "call.status_changed"
    changed = {row[0] for row in set(versions(world.conn)) - set(before)}
    assert (changed, world.event_count()) == ({sids[1]}, events + 1)
    assert world.said("gap.filled")[-1] == {
        "call_sid": sids[1], "kind": "stale", "from_status": "in-progress", "to_status": "completed",
        "late_seconds": 240.0,
    }  # fmt: skip


@pytest.mark.parametrize(("open_calls", "ended", "at_most"), [(5_000, 50, 59), (10_000, 100, 120)])
def test_requests_grow_with_what_ended_and_not_with_what_is_open(world, open_calls, ended, at_most):
    """The living are listed, a thousand a page; only those that left are asked about one by one."""
    sids = talking(world, open_calls, since=NOW - 20 * HOUR, until=NOW - HOUR)
    world.know()
    world.set_cursor({"account": ACCOUNT, "read_until": NOW.isoformat()})
    left = set(sids[:: open_calls // ended])
    for sid in left:
        world.account.hang_up(sid, NOW + timedelta(seconds=30))
    before = {row[0]: row[1:] for row in versions(world.conn)}
    totals = world.hot_after(2 * MINUTE, concurrency=8)
    assert totals.requests == len(world.asked()) <= at_most
    assert set(world.asked_singly()) <= left
    assert world.differences() == []
    after = {row[0]: row[1:] for row in versions(world.conn)}
    assert {sid for sid in sids if after[sid] != before[sid]} == left


def test_those_that_live_are_not_looked_at_again(world):
    """Three listings by status tell that none of them ended, whenever they began."""
    talking(world, 40, since=NOW - 40 * DAY, until=NOW - DAY)
    crowd(world)
    world.know()
    world.set_cursor({"account": ACCOUNT, "read_until": NOW.isoformat()})
    world.hot_after(MINUTE)
    statuses = [f"Calls.json?Status={status}&PageSize=1000" for status in ("queued", "ringing", "in-progress")]
    assert sorted(world.asked()) == sorted([NEWEST, *statuses])


def test_many_that_ended_in_an_outage_are_listed_by_day(world):
    """Where a listing of their day takes fewer requests than they would, it is listed."""
    sids = talking(world, 400, since=NOW - 20 * HOUR, until=NOW - 11 * HOUR)
    world.know()
    world.set_cursor({"account": ACCOUNT, "read_until": NOW.isoformat()})
    for sid in sids:
        world.account.hang_up(sid, NOW + MINUTE)
    totals = world.hot_after(2 * HOUR)
    assert world.differences() == []
    assert world.asked_singly() == []
    assert totals.requests <= 1 + 3 + 2


def test_rows_that_the_viewer_wrote_are_looked_after(world):
    """These rows name no account; Twilio's record fills it in. SIDs of its own making are never asked for."""
    call = world.account.call(NOW - 3 * HOUR, talks_for=HOUR.seconds)
    world.write_as_viewer(call.sid, "in-progress", created_at=NOW - 3 * HOUR)
    world.write_as_viewer("CA-test-1", "ringing")
    world.write_as_viewer("SM" + 32 * "0", "queued")
    world.set_cursor({"account": ACCOUNT, "read_until": NOW.isoformat()})
    world.hot()
    assert world.asked() == [NEWEST]  # it is among the newest
    world.conn.execute("DELETE FROM messages WHERE twilio_sid = %s", (call.sid,))
    world.account.generate(260, NOW - HOUR, NOW)
    world.know([record.sid for record in world.account.calls_at(NOW) if record.sid != call.sid])
    world.write_as_viewer(call.sid, "in-progress", created_at=NOW - 3 * HOUR)
    world.set_cursor({"account": ACCOUNT, "read_until": NOW.isoformat()})
    world.hot()
    row = world.row(call.sid)
    assert (row["status"], row["account_sid"]) == ("completed", ACCOUNT)
    assert call.sid in world.asked_singly()
    assert not [sid for sid in world.asked_singly() if len(sid) != 34 or not sid.startswith("CA")]


# Gone calls


def test_a_call_that_twilio_has_no_more_is_marked_once(world):
    """Absence is no status: the row stays as it is, one event tells, and it is asked for no more."""
    (sid,) = talking(world, 1)
    world.hot()
    world.account.delete(sid, NOW + MINUTE)
    totals = world.hot_after(2 * MINUTE)
    assert (totals.gone, world.asked_singly()) == (1, [sid])
    assert world.row(sid)["status"] == "in-progress"
    assert world.row(sid)["gone_at"] is not None
    assert world.events(sid) == ["call.created", "call.gone"]
    assert world.said("call.gone") == [{"call_sid": sid}]
    totals = world.hot_after(2 * MINUTE)
    assert (totals.gone, world.asked(), world.events(sid)) == (0, [NEWEST], ["call.created", "call.gone"])


def test_a_young_call_may_not_have_arrived_everywhere(world):
    """Younger than five minutes, a 404 says nothing yet; older, it does."""
    sid = "CA" + 32 * "a"
    world.write_as_viewer(sid, "ringing", created_at=NOW)
    world.set_cursor({"account": ACCOUNT, "read_until": NOW.isoformat()})
    totals = world.hot_after(4 * MINUTE)
    assert (world.asked_singly(), totals.gone, world.row(sid)["gone_at"]) == ([sid], 0, None)
    totals = world.hot_after(2 * MINUTE)
    assert (world.asked_singly(), totals.gone) == ([sid], 1)


def test_a_call_that_is_listed_again_is_no_longer_gone(world):
    """The jobs look after it again."""
    (sid,) = talking(world, 1, since=NOW - 5 * MINUTE)
    world.hot()
    world.account.delete(sid, NOW + MINUTE)
    world.hot_after(6 * MINUTE)
    assert world.row(sid)["gone_at"] is not None
    world.account.change(sid, deleted=None)
    world.hot_after(MINUTE)
    assert world.row(sid)["gone_at"] is None
    world.account.hang_up(sid, NOW + 10 * MINUTE)
    world.hot_after(HOUR)
    assert world.row(sid)["status"] == "completed"


def test_no_call_is_gone_when_the_account_cannot_be_seen(world):
    """404 for everything: the account is not visible to these credentials, which says nothing of its calls."""
    talking(world, 3, since=NOW - 2 * HOUR, until=NOW - HOUR)
    world.hot()
    world.twilio.faults.always(Fault.not_found())
    with pytest.raises(Refused, match="no such account"):
        world.hot_after(20 * MINUTE)
    assert world.asked_singly() == []
    assert world.conn.execute("SELECT count(*) FROM messages WHERE gone_at IS NOT NULL").fetchone() == (0,)


def test_a_call_that_cannot_be_read_keeps_no_other_from_being_final(world, quick_retries):
    """One answer that is always broken: the others are final, the run is no success and says why."""
    sids = talking(world, 3, since=NOW - 4 * DAY, until=NOW - DAY)
    crowd(world)
    world.know()
    world.set_cursor({"account": ACCOUNT, "read_until": NOW.isoformat()})
    for sid in sids:
        world.account.hang_up(sid, NOW + MINUTE)
    world.twilio.faults.when(lambda request: sids[1] in request.path, Fault.server_error(500))
    totals = world.hot_after(20 * MINUTE)
    assert [world.row(sid)["status"] for sid in sids] == ["completed", "in-progress", "completed"]
    assert "1 calls were not read" in totals.problem
    assert "500" in world.state()["last_error"]


# After downtime


def test_six_hours_are_listed(world):
    """Several pages of the newest, no more, each once."""
    world.hot()
    world.account.generate(2_500, NOW, NOW + 6 * HOUR)
    totals = world.hot_after(6 * HOUR)
    assert world.differences() == []
    assert totals.requests == len(set(world.asked())) <= 3 + 3
    assert totals.inserted == 2_500
    assert doubled_events(world.conn) == []


@pytest.mark.parametrize("commits", [1, 2, 3])
def test_a_listing_that_was_stopped_is_gone_on_with(world, commits):
    """The run ends between two pages. The next one asks for the pages that are left, and then for newer calls."""
    world.hot()
    world.account.generate(3_500, NOW, NOW + 6 * HOUR)
    world.stop_after_commits(commits)
    first = world.hot_after(6 * HOUR)
    asked = world.asked()
    assert first.outcome is Outcome.INTERRUPTED
    assert len(asked) == commits
    assert world.cursor()["read_until"] == NOW.isoformat()
    world.go_on()
    lost = world.account.call(NOW + 6 * HOUR + MINUTE, talks_for=5)
    second = world.hot_after(5 * MINUTE)
    assert second.outcome is not Outcome.INTERRUPTED
    assert world.differences_but_prices() == []
    assert world.row(lost.sid)
    assert {question for question in asked if "PageToken" in question}.isdisjoint(world.asked())
    assert "next_page" not in world.cursor()


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4])
def test_a_listing_that_was_killed_reads_no_page_again_but_the_one_in_hand(world, killed_at, kill_at):
    """A run that is killed as a page commits asks for that page again, and for no committed one."""
    world.hot()
    world.account.generate(3_500, NOW, NOW + 6 * HOUR)
    world.clock.advance(6 * HOUR)
    kill_at(killed_at)
    with pytest.raises(Killed):
        world.hot()
    asked = world.asked()
    assert len(asked) == killed_at
    world.hot_after(MINUTE)
    again = {question for question in asked if "PageToken" in question} & set(world.asked())
    assert again <= {asked[-1]}
    assert world.differences() == []
    assert doubled_events(world.conn) == []


def test_five_days_are_swept(world):
    """They are too many pages for one listing. hot reads the days, several at once, and then the newest calls."""
    world.hot()
    world.account.generate(3_000, NOW, NOW + 5 * DAY)
    totals = world.hot_after(5 * DAY)
    assert world.differences() == []
    assert len([question for question in world.asked() if "StartTime" in question]) <= 6
    assert totals.requests == len(world.asked()) == len(set(world.asked()))
    assert totals.requests <= 1 + 5 + 6 + 3
    cursor = world.cursor()
    assert ("plan" in cursor, cursor["read_until"]) == (False, (NOW + 5 * DAY).isoformat())
    world.hot_after(MINUTE)
    assert len(world.asked()) <= 2


@pytest.mark.parametrize("commits", [2, 4, 7, 9])
def test_a_sweep_that_was_stopped_is_gone_on_with(world, commits):
    """Its plan stands in the cursor. hot reads no page of it twice, and new calls show up while it lasts."""
    world.hot()
    world.account.generate(3_000, NOW, NOW + 5 * DAY)
    world.stop_after_commits(commits)
    first = world.hot_after(5 * DAY, concurrency=1)
    asked = world.asked()
    assert first.outcome is Outcome.INTERRUPTED
    assert "plan" in world.cursor()
    assert first.lag >= 5 * DAY
    world.stop_after_commits(1)
    lost = world.account.call(world.clock.now() + MINUTE, talks_for=5)
    world.hot_after(2 * MINUTE, concurrency=1)
    assert world.row(lost.sid)
    world.go_on()
    world.hot_after(DAY, concurrency=1)
    assert world.differences() == []
    swept = {question for question in asked if "StartTime" in question or "Status" in question}
    assert swept.isdisjoint(question for question in world.asked() if "StartTime" in question)
    assert "plan" not in world.cursor()
    assert doubled_events(world.conn) == []


@pytest.mark.parametrize("killed_at", [2, 5, 8, 11])
def test_a_sweep_that_was_killed_reads_no_page_again_but_the_one_in_hand(world, killed_at, kill_at):
    """The kill comes as a page commits. With one page under way at a time, one page is read again."""
    world.hot()
    world.account.generate(3_000, NOW, NOW + 5 * DAY)
    world.clock.advance(5 * DAY)
    kill_at(killed_at)
    with pytest.raises(Killed):
        world.hot(concurrency=1)
    asked = world.asked()
    world.hot_after(timedelta(seconds=1), concurrency=1)
    again = {question for question in asked if "StartTime" in question} & set(world.asked())
    assert again <= set(asked[-1:])
    assert world.differences() == []
    assert doubled_events(world.conn) == []


def test_downtime_in_the_middle_of_a_sweep_is_added_to_it(world):
    """The sweep is finished, and the days since are swept with it."""
    world.hot()
    world.account.generate(2_000, NOW, NOW + 12 * DAY)
    world.stop_after_commits(7)
    world.hot_after(5 * DAY, concurrency=1)
    world.go_on()
    world.hot_after(7 * DAY)
    assert world.differences() == []
    assert "plan" not in world.cursor()


def test_a_day_that_cannot_be_read_keeps_nobody_from_seeing_what_is_new(world, quick_retries):
    """It stays in the plan, the run is no success; and still new calls come in and ended ones are final."""
    (ended,) = talking(world, 1)
    world.hot()
    world.account.generate(1_000, NOW, NOW + 5 * DAY)
    bad = f"{NOW + 2 * DAY:%F}"
    world.twilio.faults.when(
        lambda request: (request.param("StartTime>") or "").startswith(bad), Fault.server_error(503), times=22
    )
    world.account.hang_up(ended, NOW + 5 * DAY)
    totals = world.hot_after(5 * DAY)
    assert "1 slices were not read" in totals.problem
    assert world.state()["last_success_at"] < world.state()["last_error_at"]
    assert world.row(ended)["status"] == "completed"
    lost = world.account.call(world.clock.now() + MINUTE, talks_for=5)
    totals = world.hot_after(5 * MINUTE)
    assert (bool(totals.problem), totals.lag > 5 * DAY) == (True, True)
    assert world.cursor()["read_until"] == NOW.isoformat()
    assert world.row(lost.sid)
    world.hot_after(MINUTE)
    assert world.differences() == []
    assert "plan" not in world.cursor()


def test_a_page_token_that_died_begins_the_listing_anew(world):
    """A token names a call and may die with it, also between two runs."""
    world.twilio.switches = replace(world.twilio.switches, deleted_cursor="refuse")
    world.hot()
    world.account.generate(2_500, NOW, NOW + 6 * HOUR)
    world.stop_after_commits(1)
    world.hot_after(6 * HOUR)
    token = world.cursor()["next_page"].partition("PageToken=PA")[2][:34]
    world.account.delete(token, world.clock.now())
    world.go_on()
    totals = world.hot_after(MINUTE)
    assert totals.outcome is not Outcome.INTERRUPTED
    assert [line for line in world.differences() if not line.startswith(token)] == []


def test_page_tokens_that_always_die_end_the_run(world):
    """Begun anew once and no more: it does not go round for ever."""
    world.hot()
    world.account.generate(1_500, NOW, NOW + 6 * HOUR)
    world.twilio.faults.when(
        lambda request: request.param("PageToken") is not None, Fault.error(400, 20001, "Invalid PageToken")
    )
    with pytest.raises(TwilioAnswerError, match="PageToken"):
        world.hot_after(6 * HOUR)
    assert len(world.asked()) == 4
    assert world.cursor()["read_until"] == NOW.isoformat()


def test_a_listing_out_of_order_is_noticed_and_the_days_are_swept(world):
    """Newest first is observed and not promised: where it does not hold, no end can be told from it."""
    world.hot()
    world.account.generate(400, NOW, NOW + 3 * HOUR)
    world.twilio.faults.when(lambda request: request.param("StartTime>") is None, DISORDERED)
    world.hot_after(3 * HOUR)
    assert world.differences() == []
    assert world.said("listing.disordered") == [{}]
    assert len([question for question in world.asked() if "StartTime" in question]) == 1
    assert ("plan" in world.cursor()) is False


@pytest.mark.parametrize(
    "contested",
    [
        {"duplicates_in_listing": 0.2},
        {"time_filters": "day"},
        {"time_filters": "day", "before_is_inclusive": True},
        {"null_start_matches_filters": True},
        {"date_header": False},
        {"fetch_lag": 2 * MINUTE},
        {"listing_lag": 2 * MINUTE},
    ],
    ids=str,
)
@pytest.mark.parametrize("downtime", [3 * HOUR, 3 * DAY], ids=str)
def test_whatever_is_contested_about_twilio(world, contested, downtime):
    """A listing and a sweep end with the same rows."""
    world.twilio.switches = replace(world.twilio.switches, **contested)
    talking(world, 20)
    world.hot()
    world.account.generate(800, NOW, NOW + downtime)
    for sid in talking(world, 10, since=NOW, until=NOW + HOUR):
        world.account.hang_up(sid, NOW + 2 * HOUR)
    world.hot_after(downtime)
    world.hot_after(8 * MINUTE)
    assert world.differences_but_prices() == []
    assert doubled_events(world.conn) == []
    assert world.conn.execute("SELECT count(*) FROM messages WHERE gone_at IS NOT NULL").fetchone() == (0,)


def test_an_ignored_filter_keeps_nobody_from_seeing_what_is_new(world, quick_retries):
    """Twilio sends the whole log instead of the open calls. New calls need no filter, and the run reports the rest."""
    talking(world, 80, since=NOW - 3 * HOUR, until=NOW - 2 * HOUR)
    world.account.generate(400, NOW - 5 * DAY, NOW - 4 * DAY)
    crowd(world)
    world.know()
    world.set_cursor({"account": ACCOUNT, "read_until": NOW.isoformat()})
    world.twilio.switches = replace(world.twilio.switches, ignore_filters=True)
    lost = world.account.call(NOW + MINUTE, talks_for=5)
    totals = world.hot_after(2 * MINUTE)
    assert world.row(lost.sid)
    assert "filter" in totals.problem
    assert world.asked_singly() == []


# The cursor


@pytest.mark.parametrize(
    ("cursor", "says"),
    [
        ({"account": ACCOUNT, "read_until": (NOW - 401 * DAY).isoformat()}, "before what Twilio keeps"),
        ({"account": SUBACCOUNT, "read_until": NOW.isoformat()}, "another account"),
        ({"account": ACCOUNT, "read_until": "yesterday"}, "cannot be read"),
        ({"account": ACCOUNT, "read_until": "2026-06-10T12:00:00"}, "cannot be read"),
        ({"account": ACCOUNT, "read_until": 7}, "cannot be read"),
        ({"account": ACCOUNT}, "cannot be read"),
        ({"position": 7}, "cannot be read"),
        ([1, 2], "cannot be read"),
        ("garbage", "cannot be read"),
        ({"account": ACCOUNT, "read_until": NOW.isoformat(), "plan": {"bounds": ["x"]}}, "cannot be read"),
        ({"account": ACCOUNT, "read_until": NOW.isoformat(), "plan": [7]}, "cannot be read"),
        ({"account": ACCOUNT, "read_until": NOW.isoformat(), "usual": "many"}, "cannot be read"),
        ({"account": ACCOUNT, "read_until": NOW.isoformat(), "listed_until": 5}, "cannot be read"),
    ],
)
def test_a_cursor_that_cannot_be_is_refused(world, cursor, says):
    """The error names the job and how to mend it; nothing is asked and nothing written. `since` mends it."""
    world.account.generate(20, NOW - HOUR, NOW)
    world.set_cursor(cursor)
    with pytest.raises(ConfigError, match=says) as error:
        world.hot()
    assert "cursor of hot" in str(error.value)
    assert "reconcile once hot" in present(error.value.hint)
    assert world.asked() == []
    assert world.state()["cursor"] == cursor
    world.hot(since=NOW - 2 * HOUR)
    assert world.differences() == []
    assert world.cursor()["read_until"] == NOW.isoformat()
    world.hot_after(MINUTE)


def test_a_clock_that_is_behind_twilios_makes_no_cursor_in_the_future(world):
    """If two clocks differ, the one behind claims less."""
    world.behind = 20 * MINUTE
    world.hot()
    assert world.cursor()["read_until"] == (NOW - 20 * MINUTE).isoformat()
    world.account.call(NOW + timedelta(seconds=5), talks_for=1)
    world.hot_after(MINUTE)
    assert world.differences() == []


def test_a_cursor_that_another_process_moved_is_left_alone(world, conn):
    """A process that was stopped while another took over ends, and does not set the cursor back."""
    world.hot()
    world.account.generate(1_500, NOW, NOW + 6 * HOUR)
    moved = {"account": ACCOUNT, "read_until": (NOW + 6 * HOUR).isoformat()}
    times: list[Any] = []

    def take_over():
        if len(times) == 1:  # the note of the first look was read, and now the cursor
            world.set_cursor(moved)
            conn.execute("UPDATE sync_state SET term = term + 1 WHERE job_name = 'hot'")  # as each run does at first
        times.append(1)

    world.on_progress = take_over
    with pytest.raises(JobHeld, match="hot"):
        world.hot_after(6 * HOUR)
    assert world.cursor() == moved
    assert world.state()["last_error"] is None


def test_a_listing_that_fails_ends_the_run_and_the_cursor_stays(world, quick_retries):
    """Twilio answers 503 and never recovers. The pages read stay, the run fails, and the next one goes on."""
    world.hot()
    world.account.generate(2_500, NOW, NOW + 6 * HOUR)
    world.twilio.faults.when(lambda request: request.param("Page") == "2", Fault.server_error(503), times=10)
    with pytest.raises(Retriable, match="503"):
        world.hot_after(6 * HOUR)
    asked = world.asked()
    assert len(asked) == 2 + 10
    assert "503" in world.state()["last_error"]
    assert world.cursor()["read_until"] == NOW.isoformat()
    assert world.said("job.failed")[0]["kind"] == "Unavailable"
    world.hot_after(MINUTE)
    assert world.asked()[0] == asked[2]  # the page that failed, in its first size
    assert world.differences() == []


# Subaccounts


def test_an_account_looks_after_its_own(world):
    """Each under its own cursor; rows without an account are the main account's."""
    sub = world.account.add_subaccount(SUBACCOUNT, TOKEN)
    call = sub.call(NOW - HOUR, talks_for=None)
    crowd(world)
    crowd(world, sub)
    (own,) = talking(world, 1, since=NOW - 3 * HOUR)
    stray = world.account.call(NOW - 2 * DAY, talks_for=None).sid
    world.write_as_viewer(stray, "in-progress", created_at=NOW - 2 * DAY)
    world.hot()
    world.hot(SUBACCOUNT)
    assert world.row(call.sid)["account_sid"] == SUBACCOUNT
    assert world.row(own)["account_sid"] == ACCOUNT
    assert set(world.cursor(f"hot:{SUBACCOUNT}")) >= {"account", "read_until"}
    world.conn.execute("UPDATE messages SET account_sid = NULL WHERE twilio_sid = %s", (stray,))
    sub.hang_up(call.sid, NOW + MINUTE)
    world.hot_after(20 * MINUTE, account_sid=SUBACCOUNT)
    assert world.asked_singly() == [call.sid]
    assert world.row(call.sid)["status"] == "completed"
    assert world.row(stray)["gone_at"] is None
    world.hot()
    assert sorted(world.asked_singly()) == sorted([own, stray])
    assert world.row(stray)["account_sid"] == ACCOUNT


@pytest.mark.parametrize("created_at", ["infinity", "-infinity", "20000-01-01", "0044-03-15 BC"])
def test_a_row_with_a_time_that_cannot_be_stops_no_run(world, created_at):
    """The Viewer may write such a time, and Python cannot hold it."""
    call = world.account.call(NOW - timedelta(hours=3))
    world.write_as_viewer(call.sid, "ringing")
    world.conn.execute("UPDATE messages SET created_at = %s::timestamp", (created_at,))
    assert 0 == world.hot().exit_code
    assert "completed" == world.row(call.sid)["status"]
    assert 0 == world.freeze().exit_code


# Trunks


def trunk_call(world, began, *, lasts):
    """A call of a SIP trunk, which Twilio lists when it is over."""
    return world.account.call(
        began, direction="trunking-terminating", rings_for=0, talks_for=int(lasts.total_seconds())
    )


def ended_listings(world):
    """The listings of ended calls that the last run asked for."""
    return [asked for asked in world.asked() if "EndTime" in asked]


@pytest.mark.parametrize("by_day", [False, True])
def test_a_trunk_call_shows_up_within_one_interval_of_its_end(world, by_day):
    """It began three hours ago, far behind the cursor, and hundreds of calls began since."""
    world.twilio.switches = replace(world.twilio.switches, end_time_filters="day" if by_day else "instant")
    trunk_call(world, NOW - 5 * MINUTE, lasts=MINUTE)
    world.account.generate(600, NOW - 3 * HOUR, NOW, trunk_share=0)
    world.hot()
    late = trunk_call(world, NOW - 3 * HOUR, lasts=3 * HOUR + 30 * MINUTE / 60)
    world.hot_after(16 * MINUTE if by_day else MINUTE)
    assert "completed" == world.row(late.sid)["status"]
    assert 1 == len(ended_listings(world))


def test_an_account_without_trunks_costs_no_request(world):
    """This holds for the first run and for later ones."""
    world.account.generate(300, NOW - 2 * HOUR, NOW - HOUR, trunk_share=0)
    world.hot()
    assert [] == ended_listings(world)
    world.hot_after(MINUTE)
    assert [NEWEST] == world.asked()


def test_rows_tell_that_an_account_has_trunks(world):
    """Cold found a trunk call: from then on hot lists the calls that ended."""
    call = trunk_call(world, NOW - 9 * HOUR, lasts=HOUR)
    world.account.generate(300, NOW - 2 * HOUR, NOW, trunk_share=0)
    world.know([call.sid])
    world.hot()
    world.hot_after(MINUTE)
    assert 1 == len(ended_listings(world))


def test_where_ends_count_by_day_the_listing_is_rarer(world):
    """It holds all calls that ended today. What an answer proved is remembered."""
    world.twilio.switches = replace(world.twilio.switches, end_time_filters="day")
    trunk_call(world, NOW - 5 * HOUR, lasts=HOUR)
    world.account.generate(100, NOW - 11 * HOUR, NOW - 2 * HOUR, trunk_share=0)
    world.hot()
    assert world.cursor()["ends_by_day"] is True
    asked = []
    for _ in range(30):
        world.hot_after(MINUTE)
        asked.append(len(ended_listings(world)))
    assert 2 == sum(asked)


def test_an_ended_listing_that_fails_moves_no_cursor(world, quick_retries):
    """New calls are read; the run reports the failure, and the next run reads the ended calls."""
    trunk_call(world, NOW - 5 * MINUTE, lasts=MINUTE)
    world.hot()
    before = world.cursor()["ended_until"]
    late = trunk_call(world, NOW - 3 * HOUR, lasts=3 * HOUR + MINUTE / 2)
    world.account.generate(300, NOW - 2 * HOUR, NOW, trunk_share=0)
    world.twilio.faults.when(lambda request: request.param("EndTime>") is not None, Fault.server_error(503), times=10)
    counts = world.hot_after(MINUTE)
    assert "503" in counts.problem
    assert before == world.cursor()["ended_until"]
    world.hot_after(MINUTE)
    assert "completed" == world.row(late.sid)["status"]


def test_an_open_call_that_the_viewer_sets_back_is_put_right(world):
    """No trigger keeps an open call from going back; the next run of hot sees it. Its event is written once at most."""
    call = world.account.call(NOW - timedelta(minutes=1), talks_for=600)
    world.hot()
    events = []
    for _ in range(2):
        world.conn.execute("UPDATE messages SET status = 'ringing'")
        assert world.conn.execute("SELECT status FROM messages").fetchall() == [("ringing",)]
        world.hot_after(timedelta(minutes=1))
        assert world.conn.execute("SELECT twilio_sid, status FROM messages").fetchall() == [(call.sid, "in-progress")]
        events.append(world.conn.execute("SELECT event_type, event_status FROM call_events ORDER BY id").fetchall())
    assert events == [[("call.created", "in-progress"), ("call.status_changed", "in-progress")]] * 2

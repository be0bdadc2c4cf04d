"""The cold job: nothing was missed, and there is a record of it for each day."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta

import pytest

from reconciler.database import account_days
from reconciler.database.store import Store
from reconciler.errors import ConfigError, ExitCode, Unavailable
from reconciler.metrics import REGISTRY
from reconciler.simulator import Fault
from reconciler.simulator.messages import Answer
from reconciler.sync import day_proof as proof
from reconciler.sync.counts import Outcome
from tests.harness.equality import records_of, versions
from tests.harness.names import ACCOUNT, NOW
from tests.harness.world import day

DAYS = ["2026-06-07", "2026-06-08", "2026-06-09"]


def usage_of(count):
    """Usage records that count so many calls on each day."""
    return Fault(
        "usage",
        instead=Answer(payload={"usage_records": [{"start_date": d, "count": str(count)} for d in DAYS]}),
    )


def is_usage(request):
    return "Usage" in request.path


def listings(world):
    return [r for r in world.twilio.requests if r.path.endswith("Calls.json")]


def singles(world):
    return [r.path for r in world.twilio.requests if "/Calls/CA" in r.path]


# Proofs


def test_lost_calls_are_found_and_the_days_are_proven(busy):
    """An empty database becomes equal, and each finished day has a row that says so: SIDs listed, held, digest."""
    totals = busy.cold()
    assert busy.differences() == []
    assert totals.exit_code is ExitCode.DONE
    assert (totals.days_verified, totals.days_incomplete) == (3, 0)
    proofs = busy.proofs()
    assert DAYS == list(proofs)
    for name, row in proofs.items():
        sids = sorted(
            sid for (sid,) in busy.conn.execute(
                "SELECT twilio_sid FROM messages WHERE coalesce(start_time, date_created AT TIME ZONE 'UTC')::date"
                " = %s",
                (name,),
            )
        )  # fmt: skip
        assert len(sids) > 100
        assert row["listed"] == row["held"] == len(sids)
        assert row["digest"] == hashlib.sha256("".join(sids).encode()).hexdigest()
        assert row["is_complete"]
        assert row["verified_at"] == "2026-06-10T12:00:00+00:00"
        assert row["differences"] == {"imported": len(sids)}
        assert 0 < row["billed"] < len(sids)
    assert {"2026-06-07", "2026-06-08", "2026-06-09"} == {line["day"] for line in busy.said("day.verified")}
    assert busy.state("cold")["cursor"] == {"account": ACCOUNT, "swept_at": NOW.isoformat(), "deep_at": None}


def test_a_second_night_writes_no_row_and_says_nothing_new(busy):
    """No row version and no event; the proof is renewed with the same digest and without differences."""
    busy.cold()
    first = busy.proofs()
    before = versions(busy.conn), busy.conn.execute("SELECT count(*), max(id) FROM call_events").fetchone()
    busy.log.clear()
    totals = busy.cold()
    assert (versions(busy.conn), busy.conn.execute("SELECT count(*), max(id) FROM call_events").fetchone()) == before
    assert {"job.started", "day.verified", "job.finished"} == {line["event"] for line in busy.log}
    assert (totals.inserted, totals.updated, totals.exit_code) == (0, 0, ExitCode.DONE)
    assert busy.proofs() == {name: {**row, "differences": {}} for name, row in first.items()}


def test_no_more_requests_than_the_listings_need_and_one(busy):
    """Five listings by Status, one for each of four days, one of recordings, and usage once."""
    totals = busy.cold()
    assert totals.requests == len(busy.twilio.requests) == 5 + 4 + 1 + 1


def test_a_call_twice_in_a_listing_is_one_call(busy):
    """Rows are not calls: listed are distinct SIDs."""
    busy.twilio.switches = replace(busy.twilio.switches, duplicates_in_listing=0.3)
    totals = busy.cold()
    assert (totals.days_verified, totals.days_incomplete) == (3, 0)
    assert busy.differences() == []


@pytest.mark.parametrize("time_filters", ["instant", "day"])
@pytest.mark.parametrize("inclusive", [False, True])
def test_whatever_a_time_filter_means_a_day_is_a_day(busy, time_filters, inclusive):
    """Calls of neighbouring days that a listing shows are not this day's."""
    busy.twilio.switches = replace(busy.twilio.switches, time_filters=time_filters, before_is_inclusive=inclusive)
    assert busy.cold().days_verified == 3


def test_a_call_that_was_never_dialled_belongs_to_the_day_it_was_made(world):
    """No time filter shows it; its day holds it all the same."""
    world.account.call(day(1.5), status="canceled", never_dialled=True)
    world.account.call(day(1), status="canceled", never_dialled=True)
    world.account.call(day(1.5), queued_for=None)
    world.cold()
    assert [0, 2, 1] == [row["listed"] for row in world.proofs().values()]
    assert [0, 2, 1] == [row["held"] for row in world.proofs().values()]
    assert all(row["is_complete"] for row in world.proofs().values())
    assert world.differences() == []


def test_a_call_that_left_the_queue_on_another_day_is_listed_there(world):
    """The listing by Status has it; its start then moves to today. No day lacks it."""
    call = world.account.call(day(0.5), queued_for=None)

    def dial(request):
        if request.param("StartTime>"):
            world.account.change(call.sid, dialled=int((NOW - timedelta(hours=1)).timestamp()))
        return False

    world.twilio.faults.when(dial, Fault.reset())
    totals = world.cold(concurrency=1)
    assert (totals.days_verified, totals.days_incomplete) == (3, 0)
    assert world.differences() == []


def test_a_call_deleted_at_twilio_is_marked_gone_once(busy):
    """Held, not listed, and unknown when asked for: gone, its status kept; another day confirms the day without it."""
    busy.cold()
    row = busy.conn.execute(
        "SELECT twilio_sid, status FROM messages WHERE status = 'completed' AND start_time::date = '2026-06-08' LIMIT 1"
    ).fetchone()
    busy.account.delete(row[0], NOW)
    busy.twilio.requests.clear()
    totals = busy.cold()
    assert (totals.gone, totals.days_verified, totals.exit_code) == (1, 2, ExitCode.UNRECONCILED)
    assert busy.proofs()["2026-06-08"]["differences"] == {"shrunk": 1}
    assert len(singles(busy)) == 1
    assert [{"call_sid": row[0]}] == busy.said("call.gone")
    gone = busy.conn.execute("SELECT status, gone_at FROM messages WHERE twilio_sid = %s", (row[0],)).fetchone()
    assert gone == (row[1], NOW)
    busy.twilio.requests.clear()
    assert busy.cold().gone == 0
    assert singles(busy) == []
    (next_sid,) = busy.conn.execute(
        "SELECT twilio_sid FROM messages WHERE gone_at IS NULL AND is_final AND start_time::date = '2026-06-08' LIMIT 1"
    ).fetchone()
    busy.account.delete(next_sid, NOW)
    assert busy.cold().gone == 1
    assert [next_sid in path for path in singles(busy)] == [True]


def test_a_call_held_and_not_listed_that_twilio_still_has_is_said(busy, monkeypatch):
    """It is asked for and not called gone; the listing did not show it, so the day is not proven."""
    busy.cold()
    hidden = next(
        r for r in records_of(busy.account, NOW) if r["status"] == "completed" and "09 Jun" in r["start_time"]
    )
    real = busy.account.calls_at
    monkeypatch.setattr(
        busy.account, "calls_at", lambda *args, **kw: [c for c in real(*args, **kw) if c.sid != hidden["sid"]]
    )
    totals = busy.cold()
    assert (totals.gone, totals.days_verified, totals.days_incomplete) == (0, 2, 1)
    assert totals.exit_code is ExitCode.UNRECONCILED
    assert busy.proofs()["2026-06-09"]["differences"] == {"unlisted": 1, "shrunk": 1}
    assert not busy.proofs()["2026-06-09"]["is_complete"]


def test_of_many_calls_not_listed_so_many_are_asked_for(busy, monkeypatch):
    """A whole day that vanished is not asked for call by call in one night; every night brings it forward."""
    monkeypatch.setattr(proof, "ASKED_AT_MOST", 5)
    busy.cold()
    rows = busy.conn.execute(
        "SELECT twilio_sid FROM messages WHERE start_time::date = '2026-06-08' AND is_final ORDER BY 1 LIMIT 7"
    ).fetchall()
    for (sid,) in rows:
        busy.account.delete(sid, NOW)
    busy.twilio.requests.clear()
    totals = busy.cold()
    assert (totals.gone, len(singles(busy)), totals.days_incomplete) == (5, 5, 1)
    assert busy.proofs()["2026-06-08"]["differences"]["unlisted"] == 2
    totals = busy.cold()
    assert (totals.gone, totals.days_incomplete) == (2, 1)
    assert busy.proofs()["2026-06-08"]["differences"] == {"shrunk": 7}
    busy.clock.advance(timedelta(days=1))
    assert busy.cold().days_incomplete == 0


def test_one_night_without_calls_takes_no_proof_back(busy):
    """A wrong region answers with empty lists and 404: the days are incomplete, and all calls return, frozen or not."""
    busy.cold()
    proven, rows = busy.proofs(), len(versions(busy.conn))
    busy.twilio.faults.when(lambda _: True, Fault.nothing_found())
    totals = busy.cold()
    assert totals.gone > 300
    assert busy.conn.execute("SELECT DISTINCT sync_state FROM messages WHERE gone_at IS NOT NULL").fetchall()
    assert (totals.days_verified, totals.days_incomplete) == (0, 3)
    said = {line["day"]: line["differences"]["shrunk"] for line in busy.said("day.incomplete")}
    assert said == {day: row["listed"] for day, row in proven.items()}
    busy.twilio.faults.clear()
    busy.clock.advance(timedelta(hours=1))
    assert busy.cold().days_verified == 3
    assert busy.differences() == []
    assert busy.conn.execute("SELECT count(*) FROM messages WHERE gone_at IS NOT NULL").fetchone() == (0,)
    assert {day: row["digest"] for day, row in busy.proofs().items()} == {d: row["digest"] for d, row in proven.items()}
    assert len(versions(busy.conn)) == rows


def test_fewer_calls_are_accepted_when_another_day_lists_the_same(busy):
    """A second reading on the same day confirms nothing: one bad answer may last for hours."""
    busy.cold()
    (sid,) = busy.conn.execute(
        "SELECT twilio_sid FROM messages WHERE is_final AND start_time::date = '2026-06-09' LIMIT 1"
    ).fetchone()
    busy.account.delete(sid, NOW)
    for hours, incomplete in ((0, 1), (6, 1), (6, 0), (24, 0)):
        busy.clock.advance(timedelta(hours=hours))
        assert busy.cold().days_incomplete == incomplete
    assert busy.proofs()["2026-06-09"]["differences"] == {}


def test_a_record_that_cannot_be_read_leaves_its_day_incomplete(busy):
    """It has a SID, so it is listed and not held: exit code 1, and the other days are proven."""
    sid = next(r["sid"] for r in records_of(busy.account, NOW) if "09 Jun" in (r["start_time"] or ""))
    busy.twilio.faults.always(Fault.broken_record("unknown_status", sid=sid))
    totals = busy.cold()
    assert (totals.days_verified, totals.days_incomplete) == (2, 1)
    assert totals.exit_code is ExitCode.UNRECONCILED
    row = busy.proofs()["2026-06-09"]
    assert (row["is_complete"], row["listed"] - row["held"]) == (False, 1)
    assert row["differences"]["dead_letters"] == row["differences"]["not_held"] == 1
    (line,) = busy.said("day.incomplete")
    assert line == {
        "day": "2026-06-09",
        "listed": row["listed"],
        "held": row["held"],
        "differences": row["differences"],
    }
    assert [line["log_level"] for line in busy.log if line["event"] == "day.incomplete"] == ["error"]


def test_a_broken_record_of_a_call_that_was_never_dialled_is_its_days(world):
    """Only a listing by Status shows it."""
    call = world.account.call(day(1.5), status="canceled", never_dialled=True)
    world.twilio.faults.always(Fault.broken_record("unknown_status", sid=call.sid))
    assert world.cold().days_incomplete == 1
    assert [True, False, True] == [row["is_complete"] for row in world.proofs().values()]
    assert world.proofs()["2026-06-08"]["differences"] == {"dead_letters": 1, "not_held": 1}


def test_a_record_without_a_sid_leaves_its_day_incomplete(busy):
    """Nobody can say which call it is, so nobody can say that it is held."""
    sid = next(r["sid"] for r in records_of(busy.account, NOW) if "09 Jun" in (r["start_time"] or ""))
    busy.twilio.faults.always(Fault.broken_record("null_sid", sid=sid))
    assert busy.cold().days_incomplete == 1
    assert not busy.proofs()["2026-06-09"]["is_complete"]


def test_a_broken_record_of_the_next_morning_is_not_this_days(world):
    """A listing reaches some minutes into the next day."""
    call = world.account.call(day(1) + timedelta(minutes=5))
    world.twilio.faults.always(Fault.broken_record("price_not_a_number", sid=call.sid))
    world.cold()
    assert [True, True, False] == [row["is_complete"] for row in world.proofs().values()]


def test_drift_is_counted_every_night_and_reported_once(busy):
    """A frozen row that Twilio disagrees with is no lost call: the day is complete, the exit code is not 0."""
    busy.cold()
    (sid,) = busy.conn.execute(
        "SELECT twilio_sid FROM messages WHERE price < 0 AND start_time::date = '2026-06-08' LIMIT 1"
    ).fetchone()
    busy.account.change(sid, price="-9.99000")
    for expected in ([{"call_sid": sid, "fields": ["price"]}], []):
        busy.log.clear()
        totals = busy.cold()
        assert busy.said("call.frozen_drift") == expected
        assert (totals.drifted, totals.days_verified, totals.exit_code) == (1, 3, ExitCode.UNRECONCILED)
        assert busy.proofs()["2026-06-08"]["differences"] == {"drift": 1, "price_drift": 1}


# Usage


def test_usage_beyond_what_is_held_is_an_alarm(busy):
    """If Twilio billed more calls than we hold, the day is incomplete. Yesterday is not: its numbers still move."""
    busy.twilio.faults.when(is_usage, usage_of(1000))
    totals = busy.cold()
    assert (totals.days_verified, totals.days_incomplete) == (1, 2)
    assert totals.exit_code is ExitCode.UNRECONCILED
    proofs = busy.proofs()
    assert [1000, 1000, 1000] == [row["billed"] for row in proofs.values()]
    assert [False, False, True] == [row["is_complete"] for row in proofs.values()]
    completed = busy.conn.execute(
        "SELECT count(*) FROM messages WHERE status = 'completed' AND start_time::date = '2026-06-08'"
    ).fetchone()[0]
    assert proofs["2026-06-08"]["differences"]["billed_beyond"] == 1000 - completed


def test_a_call_that_was_billed_and_deleted_is_no_alarm(busy):
    """Twilio bills it and lists it no more; we know that it was."""
    busy.cold()
    rows = busy.conn.execute(
        "SELECT twilio_sid FROM messages WHERE status = 'completed' AND start_time::date = '2026-06-08'"
    ).fetchall()
    for (sid,) in rows[:5]:
        busy.account.delete(sid, NOW)
    busy.twilio.faults.when(is_usage, usage_of(len(rows)))
    assert busy.cold().gone == 5
    assert busy.proofs()["2026-06-08"]["differences"] == {"shrunk": 5}
    busy.clock.advance(timedelta(days=1))
    busy.cold()
    row = busy.proofs()["2026-06-08"]
    assert (row["billed"], row["is_complete"], row["differences"]) == (len(rows), True, {})


@pytest.mark.parametrize(("billed", "completed", "beyond"), [
    (None, 0, 0), (0, 50, 0), (12, 10, 0), (13, 10, 3), (1020, 1000, 0), (1021, 1000, 21), (3, 0, 3),
])  # fmt: skip
def test_two_calls_or_two_percent_are_allowed(billed, completed, beyond):
    """Usage and listing are not of the same moment; fewer billed than completed is usual."""
    assert proof._beyond(billed, completed, age=timedelta(hours=24)) == beyond
    assert proof._beyond(billed, completed, age=timedelta(hours=23, minutes=59)) == 0


def test_a_key_that_may_not_read_usage_proves_the_days_without_it(busy):
    """A restricted key is no failure: billed is null, and asked for once more after calls could be read."""
    busy.account.add_key("SK" + 32 * "3", "secret-of-key", "restricted", ["calls"])
    totals = busy.cold(key=("SK" + 32 * "3", "secret-of-key"))
    assert (totals.days_verified, totals.exit_code, totals.problem) == (3, ExitCode.DONE, None)
    assert {None} == {row["billed"] for row in busy.proofs().values()}
    assert busy.twilio.requests.count(path_contains="Usage") == 2


def test_a_401_for_usage_alone_is_no_failure_if_it_stays(busy, quick_retries):
    """Where it passes after the repeats of a request, the sweep fails and is tried again."""
    busy.twilio.faults.when(is_usage, Fault.unauthorized(), times=4)
    assert "usage was not read" in busy.cold().problem
    busy.twilio.faults.when(is_usage, Fault.unauthorized())
    busy.clock.advance(timedelta(hours=25))
    totals = busy.cold()
    assert (totals.exit_code, totals.problem) == (ExitCode.DONE, None)
    assert busy.twilio.requests.count(path_contains="Usage") == 8


def test_usage_that_does_not_come_is_said_and_the_days_are_proven(busy, quick_retries):
    """A sweep without its witness has not done all its work."""
    busy.twilio.faults.when(is_usage, Fault.server_error(503))
    totals = busy.cold()
    assert totals.days_verified == 3
    assert totals.exit_code is ExitCode.TRY_AGAIN
    assert "usage was not read" in busy.state("cold")["last_error"]


# Which days


def test_today_and_a_day_that_just_ended_are_read_and_not_proven(world):
    """Half an hour past midnight yesterday is not settled."""
    world.account.generate(200, day(3), NOW)
    world.clock.set(day(0) + timedelta(minutes=30))
    totals = world.cold()
    assert (totals.days_verified, totals.days_incomplete) == (2, 0)
    assert ["2026-06-07", "2026-06-08"] == list(world.proofs())
    assert world.differences() == []


def test_a_weekly_sweep_reads_35_days(world):
    """The first one is deep, the next ones are not, and a week later, though a little earlier in the day, one is."""
    world.account.call(day(30.5))
    assert world.cold(deep=None).days_verified == 35
    assert world.differences() == []
    deep_at = world.state("cold")["cursor"]["deep_at"]
    for days_later in range(1, 7):
        world.clock.set(NOW + timedelta(days=days_later))
        assert world.cold(deep=None).days_verified == 3
        assert world.state("cold")["cursor"]["deep_at"] == deep_at
    world.clock.set(NOW + timedelta(days=7, minutes=-1))
    assert world.cold(deep=None).days_verified == 35


def test_a_cursor_in_the_future_is_begun_anew(world):
    """A clock that was ahead wrote the cursor. Its account of the past proves nothing, so the next sweep is deep."""
    world.cold(deep=True)
    world.clock.set(NOW - timedelta(days=1))
    assert world.cold(deep=None).days_verified == 35
    assert world.said("cursor.corrected") == [{"until": NOW.isoformat()}]
    assert world.cursor("cold")["deep_at"] == (NOW - timedelta(days=1)).isoformat()


def test_after_a_long_pause_the_window_reaches_back_to_the_last_sweep(world):
    """Ten days of downtime: no day is skipped."""
    world.cold(deep=False)
    world.clock.set(NOW + timedelta(days=10))
    world.cold(deep=False)
    assert [f"2026-06-{number:02}" for number in range(7, 20)] == list(world.proofs())


def test_the_cursor_of_another_account_is_refused(world):
    """TWILIO_ACCOUNT_SID was changed: a person says which of the two is right."""
    world.set_cursor({"account": "AC" + 32 * "9", "swept_at": NOW.isoformat(), "deep_at": NOW.isoformat()}, "cold")
    with pytest.raises(ConfigError, match="that of another account"):
        world.cold(deep=None)


# When it does not go to its end


def stop_when_proven(world, days=1):
    if world.conn.execute("SELECT count(*) FROM account_days").fetchone()[0] >= days:
        world.stop.set()


def test_a_killed_sweep_goes_on_with_the_days_it_has_not_proven(busy):
    """It stops when one day is proven. The next run reads the other days from their first page."""
    busy.page_size = 50
    busy.on_progress = lambda: stop_when_proven(busy)
    first = busy.cold(concurrency=1)
    assert first.outcome is Outcome.INTERRUPTED
    assert ["2026-06-09"] == list(busy.proofs())
    assert ["2026-06-09"] == busy.state("cold")["cursor"]["sweep"]["settled"]
    busy.go_on()
    busy.clock.advance(timedelta(minutes=10))
    second = busy.cold(deep=None, concurrency=1)
    assert second.exit_code is ExitCode.DONE
    assert DAYS == list(busy.proofs())
    assert "2026-06-09T00:00:00Z" not in {r.param("StartTime>") for r in listings(busy)}
    assert busy.differences() == []
    assert busy.state("cold")["cursor"]["swept_at"] == (NOW + timedelta(minutes=10)).isoformat()


def test_a_sweep_left_for_more_than_a_day_is_begun_anew(busy):
    """Proven days are proven again, because late prices may have arrived since."""
    busy.on_progress = lambda: stop_when_proven(busy)
    first = busy.cold(concurrency=1)
    assert first.outcome is Outcome.INTERRUPTED
    assert ["2026-06-09"] == busy.state("cold")["cursor"]["sweep"]["settled"]
    busy.go_on()
    busy.clock.advance(timedelta(hours=23, minutes=59))
    busy.on_progress = lambda: stop_when_proven(busy, days=2)
    second = busy.cold(deep=None, concurrency=1)
    assert second.outcome is Outcome.INTERRUPTED
    assert ["2026-06-09", "2026-06-10"] == busy.state("cold")["cursor"]["sweep"]["settled"]
    busy.go_on()
    busy.clock.advance(timedelta(minutes=1))
    assert busy.cold().exit_code is ExitCode.DONE
    assert busy.clock.now().isoformat() == busy.proofs()["2026-06-09"]["verified_at"]


def test_killed_at_any_commit_the_end_is_the_same(busy, monkeypatch):
    """The database connection dies before each write in turn, each time in a new process; at the end all is proven."""
    busy.page_size = 100
    real, left = Store.atomically, {"writes": 0}

    def dying(self, work, **more):
        left["writes"] -= 1
        if left["writes"] < 0:
            busy.stop.set()  # nobody is there to try again
            raise Unavailable("killed")
        return real(self, work, **more)

    monkeypatch.setattr(Store, "atomically", dying)
    for writes in range(60):
        left["writes"] = writes
        busy.stop.clear()
        try:
            totals = busy.cold(concurrency=1)
        except Unavailable:
            continue
        if totals.exit_code is ExitCode.DONE:
            break
    assert totals.exit_code is ExitCode.DONE
    assert writes > 3
    assert busy.differences() == []
    assert DAYS == list(busy.proofs())
    assert all(row["is_complete"] for row in busy.proofs().values())


def test_a_day_that_cannot_be_read_leaves_the_others_proven(busy, quick_retries):
    """The run is no success, its cursor stays, and the next one reads what is left."""
    busy.twilio.faults.when(lambda r: r.param("StartTime>") == "2026-06-08T00:00:00Z", Fault.error(400, 20001, "no"))
    totals = busy.cold()
    assert totals.exit_code is ExitCode.TRY_AGAIN
    assert ["2026-06-07", "2026-06-09"] == list(busy.proofs())
    assert "1 slices were not read" in busy.state("cold")["last_error"]
    assert busy.state("cold")["last_success_at"] is None
    busy.twilio.faults.clear()
    busy.twilio.requests.clear()
    assert busy.cold(deep=None).exit_code is ExitCode.DONE
    assert DAYS == list(busy.proofs())
    assert {None, "2026-06-08T00:00:00Z", "2026-06-10T00:00:00Z"} == {r.param("StartTime>") for r in listings(busy)}


def test_without_the_listings_by_status_no_day_is_proven(busy, quick_retries):
    """A day's calls that were never dialled would be missing from its proof; the days are merged all the same."""
    busy.twilio.faults.when(lambda r: r.param("Status") == "canceled", Fault.error(400, 20001, "no"))
    totals = busy.cold()
    assert totals.exit_code is ExitCode.TRY_AGAIN
    assert totals.inserted > 500
    assert busy.proofs() == {}


def test_twilio_away_for_the_first_listings_is_not_asked_for_the_days(busy, quick_retries):
    """No listing works, so the job tries no more of them."""
    busy.twilio.faults.always(Fault.server_error(503))
    totals = busy.cold()
    assert totals.exit_code is ExitCode.TRY_AGAIN
    assert {None} == {r.param("StartTime>") for r in listings(busy)}


def test_a_call_that_cannot_be_asked_for_leaves_its_day_unproven(busy, quick_retries):
    """Held, not listed, and no answer: not gone, not complete, and the next run asks again."""
    busy.cold()
    (sid,) = busy.conn.execute(
        "SELECT twilio_sid FROM messages WHERE start_time::date = '2026-06-08' AND is_final LIMIT 1"
    ).fetchone()
    busy.account.delete(sid, NOW)
    busy.conn.execute("DELETE FROM account_days")
    busy.twilio.faults.when(lambda r: sid in r.path, Fault.server_error(503))
    totals = busy.cold()
    assert (totals.gone, totals.exit_code) == (0, ExitCode.TRY_AGAIN)
    assert ["2026-06-07", "2026-06-09"] == list(busy.proofs())
    busy.twilio.faults.clear()
    assert busy.cold().gone == 1
    assert DAYS == list(busy.proofs())


def test_a_day_that_twilio_keeps_no_more_is_not_taken_for_empty(busy):
    """Error 20004 for a day is not a listing without calls: nothing is marked gone, and the day is not proven."""
    busy.cold()
    busy.conn.execute("DELETE FROM account_days")
    busy.twilio.switches = replace(busy.twilio.switches, retention_days=2)
    assert busy.cold().gone == 0
    assert "2026-06-07" not in busy.proofs()


# Metrics and query plans


def test_the_metrics_tell_of_incomplete_days_and_of_the_newest_that_is_proven(busy):
    """They count this account's days that deep sweeps prove. The newest ended at midnight."""
    busy.twilio.faults.when(is_usage, usage_of(1000))
    busy.cold()
    labels = {"account": ACCOUNT}
    assert REGISTRY.get_sample_value("reconciler_incomplete_proofs", labels) == 2
    assert REGISTRY.get_sample_value("reconciler_day_verified_timestamp_seconds", labels) == day(0).timestamp()


@pytest.mark.parametrize("query", ["held_of_day", "sids_of_day"])
def test_a_day_is_read_by_its_index(conn, query):
    """20,000 calls of other days and accounts are not looked at."""
    conn.execute(
        "INSERT INTO messages (twilio_sid, account_sid, direction, status, from_number, to_number, start_time)"
        " SELECT 'CA' || lpad(to_hex(n), 32, '0'), 'AC' || n %% 3, 'inbound', 'ringing', '', '',"
        " %s::timestamp - n * interval '5 minutes' FROM generate_series(1, 20000) AS n",
        (NOW.replace(tzinfo=None),),
    )
    conn.execute("ANALYZE messages")
    window = {"account_sid": "AC1", "since": day(1), "until": day(0)}
    statement = account_days._queries[query]
    plan = "\n".join(row[0] for row in conn.execute(f"EXPLAIN {statement}", window))
    assert "messages_account_time" in plan
    assert "Seq Scan" not in plan


def test_sids_are_packed_whatever_their_case():
    """Twilio's are lower case; any other keeps its own."""
    for sid in ("CA" + 32 * "a", "CA" + 32 * "A", "CA" + 31 * "0" + "F"):
        assert proof._unpack(proof._pack(sid)) == sid
    assert len(proof._pack("CA" + 32 * "a")) == 16
    sids = ["CA" + 32 * "b", "CA" + 32 * "B", "CA" + 32 * "0"]
    assert (
        proof._digest({proof._pack(sid) for sid in sids}) == hashlib.sha256("".join(sorted(sids)).encode()).hexdigest()
    )

"""A call that ended before this installation first looked after its account is imported, not lost."""

from __future__ import annotations

from datetime import timedelta

import pytest

from reconciler import metrics
from reconciler.status.report import Report, read_gaps_by_hour, read_report
from reconciler.status.why import read_why
from tests.harness.names import ACCOUNT, NOW, SUBACCOUNT, TOKEN
from tests.harness.world import MINUTE, World

HOUR = timedelta(hours=1)
WEBHOOK_GRACE = timedelta(minutes=1)


def report(world: World) -> Report:
    """Completeness and gaps of the last 30 days."""
    now = world.now()
    return read_report(world.conn, since=now - timedelta(days=30), now=now, webhook_grace=WEBHOOK_GRACE)


def repairs() -> float:
    """How many ends the histogram of repairs has seen."""
    return metrics.REGISTRY.get_sample_value("reconciler_repair_seconds_count") or 0.0


def noted(world: World, account_sid: str = ACCOUNT) -> str | None:
    """Since when the account is looked after."""
    query = "SELECT cursor ->> 'since' FROM sync_state WHERE job_name = %s"
    row = world.conn.execute(query, (f"account:{account_sid}",)).fetchone()
    return row[0] if row else None


def test_a_first_import_lost_nothing(world):
    """Hot, warm and cold bring 300 calls of three days: no gap in counts, log, metrics, report and page."""
    world.account.generate(300, NOW - timedelta(days=3), NOW - HOUR)
    before = repairs()
    counts = [world.hot(), world.warm(), world.cold()]
    assert world.differences() == []
    assert [one.gaps.total() for one in counts] == [0, 0, 0]
    assert sum(one.imported for one in counts) == sum(one.inserted for one in counts) == 300
    assert world.said("gap.filled") == []
    assert repairs() == before
    made = report(world)
    assert (made.gaps, made.calls_with_losses, made.share_lost, made.imported) == ([], 0, None, 300)
    why = read_why(world.conn, since=NOW - HOUR, now=world.now(), webhook_grace=WEBHOOK_GRACE)
    assert (why.gaps, why.imported, why.causes) == (0, 300, [])
    assert read_gaps_by_hour(world.conn, since=NOW - HOUR, now=world.now(), webhook_grace=WEBHOOK_GRACE) == []


def test_run_report_and_why_say_the_same_number(world):
    """A call that began a moment before the first look is imported, and the recording of a conference is no call."""
    world.account.generate(10, NOW - timedelta(days=1), NOW - HOUR)
    world.account.call(NOW - WEBHOOK_GRACE / 3, talks_for=7200)
    world.account.add_recording(NOW - 2 * HOUR, NOW - HOUR, conference_sid="CF" + 32 * "1")
    counts = world.backfill(days=2)
    why = read_why(world.conn, since=NOW - HOUR, now=world.now(), webhook_grace=WEBHOOK_GRACE)
    told = world.conn.execute("SELECT count(*) FROM call_events WHERE call_sid LIKE 'CF%' AND payload ? 'imported'")
    assert told.fetchone() == (1,)
    assert [counts.imported, report(world).imported, why.imported] == [11, 11, 11]


def test_a_row_that_was_behind_by_then_is_imported_too(world):
    """The Viewer's own rows count as imported, with everything that they lacked at the first run."""
    call = world.account.call(NOW - 5 * HOUR, direction="inbound")
    world.conn.execute(
        "INSERT INTO messages (twilio_sid, account_sid, direction, status, from_number, to_number, start_time)"
        " VALUES (%s, %s, 'inbound', 'ringing', '', '', %s)",
        (call.sid, ACCOUNT, NOW - 5 * HOUR),
    )
    counts = world.hot()
    assert world.differences() == []
    assert (counts.gaps.total(), counts.imported, report(world).gaps) == (0, 1, [])


def test_what_is_lost_later_counts(world):
    """So does the end of a call that was under way at the first look. The share counts the calls since then."""
    world.account.generate(50, NOW - timedelta(days=1) + HOUR, NOW - HOUR)
    under_way = world.account.call(NOW - 10 * MINUTE, talks_for=1800)
    assert world.hot().gaps.total() == 0
    before = repairs()
    lost = world.account.call(NOW + MINUTE)
    counts = world.hot_after(HOUR)
    assert {kind.value: count for kind, count in counts.gaps.items()} == {"missing": 1, "stale": 1}
    assert {line["call_sid"] for line in world.said("gap.filled")} == {lost.sid, under_way.sid}
    assert repairs() == before + 2
    made = report(world)
    assert (made.calls, made.calls_with_losses, made.share_lost) == (1, 1, 1.0)
    assert sum(sum(day.kinds.values()) for day in made.gaps) == 2


def test_an_older_time_that_is_brought_later_is_imported(world):
    """A deep sweep, like a person's backfill, reads what was before the first look."""
    world.hot()
    world.account.generate(50, NOW - timedelta(days=20), NOW - timedelta(days=10))
    world.clock.advance(HOUR)
    counts = world.cold(deep=True)
    assert (counts.inserted, counts.gaps.total(), counts.imported) == (50, 0, 50)


def test_each_account_has_a_first_look_of_its_own(world):
    """A subaccount that is added later brings its past along."""
    world.hot()
    theirs = world.account.add_subaccount(SUBACCOUNT, auth_token=TOKEN)
    theirs.call(NOW + MINUTE)
    assert world.hot_after(HOUR, account_sid=SUBACCOUNT).imported == 1
    assert (noted(world), noted(world, SUBACCOUNT)) == (NOW.isoformat(), (NOW + HOUR).isoformat())


def test_the_first_look_is_noted_once(world):
    """Later runs of any job leave the note as it is, and write nothing to do so."""
    world.hot()
    for _ in range(2):
        world.hot_after(HOUR)
        world.warm()
        world.cold()
    assert noted(world) == NOW.isoformat()


def test_an_older_version_left_no_note(world):
    """An older version looked after the account since its first event there: later losses count."""
    world.account.call(NOW - 5 * HOUR)
    world.hot()
    world.conn.execute("DELETE FROM sync_state WHERE job_name = %s", (f"account:{ACCOUNT}",))
    world.account.call(NOW + MINUTE)
    assert world.hot_after(HOUR).gaps.total() == 1
    assert noted(world) == NOW.isoformat()


def test_a_first_look_in_the_future_is_corrected(world):
    """A clock that was ahead noted it: from now on the account is looked after."""
    world.hot()
    world.clock.set(NOW - timedelta(days=1))
    world.hot(since=NOW - timedelta(days=2))
    assert noted(world) == (NOW - timedelta(days=1)).isoformat()


@pytest.mark.parametrize("lost", [4, 40])
def test_of_many_gaps_a_few_are_named(world, lost):
    """Five at most; the last line of the run counts all of them."""
    world.hot()
    for number in range(lost):
        world.account.call(NOW + number * MINUTE)
    world.hot_after(2 * HOUR)
    named = [line["log_level"] for line in world.log if line["event"] == "gap.filled"]
    assert named.count("info") == min(lost, 5)
    assert world.said("job.finished")[-1]["gaps_missing"] == lost

"""A day with many calls is read by its hours, several at once, where Twilio counts the time in its filters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlencode

import msgspec
import pytest

from reconciler.simulator import Fault
from reconciler.simulator.listing import list_calls
from reconciler.simulator.messages import Answer
from reconciler.simulator.switches import Switches
from tests.harness.equality import doubled_events
from tests.harness.names import NOW
from tests.harness.world import BACKFILL

DAY = timedelta(days=1)


@pytest.fixture
def busy(world):
    """A world whose calls are mostly those of yesterday: sixty pages of them."""
    noon = datetime(NOW.year, NOW.month, NOW.day, tzinfo=UTC) - DAY / 2
    world.account.generate(1_500, noon - DAY / 4, noon + DAY / 4)
    world.page_size = 25
    return world


def test_a_busy_day_is_read_by_its_hours(busy):
    """Every call of it lands once."""
    counts = busy.backfill(days=3, since="3d")
    assert len(busy.hours_asked()) > 4
    assert counts.slices == counts.slices_done
    assert counts.seen == counts.inserted
    busy.backfill()
    assert busy.differences() == []
    assert doubled_events(busy.conn) == []


def test_where_only_dates_count_a_day_is_read_as_a_whole(busy):
    """One question shows it, and is not asked again."""
    busy.twilio.switches = Switches(time_filters="day")
    counts = busy.backfill()
    assert len(busy.hours_asked()) == 1
    assert counts.seen == counts.inserted
    assert busy.differences() == []


def test_where_dates_begin_to_count_in_the_middle_nothing_is_lost(busy):
    """Each answer is checked; hours that cannot be asked for are read from the whole day."""

    def change() -> None:
        if len(busy.hours_asked()) > 2:
            busy.twilio.switches = Switches(time_filters="day")

    busy.watched.on_page = change
    busy.backfill()
    assert busy.state(BACKFILL)["cursor"]["finished"]
    assert busy.differences() == []


def test_hours_whose_filter_is_ignored_once_are_asked_again(busy, quick_retries):
    """An answer with calls of other days tells nothing about hours: they are not read from the whole day."""
    busy.backfill()
    hours = f"StartTime%3C={quote(min(busy.hours_asked())[1])}"
    busy.twilio.requests.clear()
    in_vain = Fault("ignored filter", instead=Answer(body=msgspec.json.encode(whole_log(busy))))
    busy.twilio.faults.when(lambda request: hours in urlencode(request.params), in_vain, times=1)
    busy.backfill()
    assert [hours in question and "PageToken" not in question for question in busy.asked()].count(True) == 2


def whole_log(world):
    """The answer to a listing without filters."""
    return list_calls(world.account, [("PageSize", "1000")], world.clock.now(), Switches())


def test_a_backfill_that_was_stopped_goes_on_with_the_hours(busy):
    """The cursor has the names of the hours, and the backfill reads no finished hour again."""

    def stop() -> None:
        if any(name.startswith("hours@") for name in busy.state(BACKFILL)["cursor"]["open"]):
            busy.stop.set()

    busy.watched.on_page = stop
    busy.backfill()
    begun = busy.state(BACKFILL)["cursor"]["open"]
    assert any(name.startswith("hours@") for name in begun)
    busy.stop.clear()
    busy.watched.on_page = lambda: None
    assert busy.backfill().resumed
    assert busy.differences() == []
    assert doubled_events(busy.conn) == []


def test_a_dry_run_tells_each_call_once(busy):
    """The hours bring the calls of the day's first page, so that page brings none."""
    counts = busy.backfill(dry_run=True)
    told = [decision.call_sid for decision in busy.watched.decisions]
    assert len(told) == len(set(told)) == counts.seen == counts.inserted
    assert len(busy.hours_asked()) > 4


def test_a_question_that_fails_leaves_the_day_whole(busy):
    """The proof is worth a question, not a run."""
    busy.twilio.faults.when(
        lambda request: "StartTime<" in dict(request.params) and request.param("StartTime<")[11:] not in
        ("00:00:00Z", "00:00:01Z"), Fault.server_error(400),
    )  # fmt: skip
    assert busy.backfill().seen
    assert busy.differences() == []

"""The decision after an error of Twilio's, without Twilio."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from reconciler.errors import (
    CredentialsDoubted,
    FilterIgnored,
    NotFound,
    OutsideRetention,
    Refused,
    TimeIgnored,
    TwilioAnswerError,
    Unavailable,
)
from reconciler.sync.reading import GiveUp, Nothing, Reading, Retry, Skip, Tally, decide
from reconciler.sync.slices import slice_of_days, slice_of_hours, slice_of_newest

ACCOUNT = "AC" + 32 * "1"
DAY = timedelta(days=1)
MIDNIGHT = datetime(2026, 6, 10, tzinfo=UTC)
DAYS = slice_of_days(ACCOUNT, MIDNIGHT - 3 * DAY, MIDNIGHT)
MANY = Tally(at_once=8, begun=8)


def reading(path=None, **more):
    return Reading(DAYS, DAYS.listing, path, **more)


@pytest.mark.parametrize("error", [TwilioAnswerError("?"), FilterIgnored("?")])
def test_a_page_that_makes_no_sense_begins_its_slice_anew_once(error):
    """Its token may have died; the first page has none, and the second time it is not the token."""
    assert decide(reading("/page"), error, MANY) == Retry(DAYS.listing, begun_anew=True)
    assert decide(reading("/page", begun_anew=True), error, MANY) == Skip()
    assert decide(reading(), error, MANY) == Skip()


def test_hours_that_are_read_from_their_days_may_still_begin_anew():
    """The listing of the days is another one, and no page of it has failed yet."""
    hours = slice_of_hours(ACCOUNT, MIDNIGHT, MIDNIGHT + DAY / 4)
    step = decide(Reading(hours, hours.listing, None), TimeIgnored("?"), MANY)
    assert step == Retry(slice_of_days(ACCOUNT, hours.since, hours.until).listing, begun_anew=False)
    by_days = Reading(hours, step.listing, "/page", begun_anew=step.begun_anew)
    assert decide(by_days, FilterIgnored("?"), MANY) == Retry(step.listing, begun_anew=True)


@pytest.mark.parametrize("error", [Unavailable("503"), CredentialsDoubted("401")])
def test_an_error_of_twilios_health_fails_the_slice_alone(error):
    assert decide(reading("/page"), error, MANY) == Skip()


def test_of_a_window_that_is_kept_in_part_the_later_days_are_asked_for():
    """A day later each time, until no day is left."""
    step = decide(reading(), OutsideRetention("20004"), MANY)
    assert isinstance(step, Retry)
    assert step.listing.since == MIDNIGHT - 2 * DAY
    last = Reading(DAYS, step.listing.__class__(ACCOUNT, since=MIDNIGHT - DAY, until=DAYS.listing.until), None)
    assert decide(last, OutsideRetention("20004"), MANY) == Nothing()


def test_a_listing_without_a_window_is_never_outside_retention():
    """Such an answer belongs to another request, so the slice has failed."""
    newest = slice_of_newest(ACCOUNT, down_to=MIDNIGHT, page_size=50)
    assert decide(Reading(newest, newest.listing, None), OutsideRetention("20004"), MANY) == Skip()


@pytest.mark.parametrize("error", [Refused("403"), NotFound("404")])
def test_a_refusal_concerns_every_slice(error):
    with pytest.raises(type(error)):
        decide(reading("/page"), error, MANY)


def test_when_as_many_failed_in_a_row_as_run_at_once_nothing_works_any_more():
    tally = Tally(at_once=8, begun=20, failures_in_a_row=6)
    assert decide(reading(), Unavailable("503"), tally) == Skip()
    tally.failures_in_a_row = 7
    assert decide(reading(), Unavailable("503"), tally) == GiveUp()


def test_a_single_failure_is_not_enough_unless_there_was_a_single_slice():
    assert decide(reading(), Unavailable("503"), Tally(at_once=1, begun=1)) == Skip()
    assert decide(reading(), Unavailable("503"), Tally(at_once=1, begun=1, are_all_begun=True)) == GiveUp()
    assert decide(reading(), Unavailable("503"), Tally(at_once=1, begun=2, failures_in_a_row=1)) == GiveUp()

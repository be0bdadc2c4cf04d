"""Durations and moments as people write them."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.times import format_duration, midnight, parse_duration, parse_moment, utc_days

NOW = datetime(2026, 6, 10, 20, 11, 27, tzinfo=UTC)
MOMENTS = st.integers(0, 4 * 10**15).map(lambda n: datetime.fromtimestamp(0, UTC) + timedelta(microseconds=n))


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90s", timedelta(seconds=90)), ("15m", timedelta(minutes=15)), ("24h", timedelta(days=1)),
        ("7d", timedelta(days=7)), ("2w", timedelta(days=14)), (" 5 m ", timedelta(minutes=5)), ("0s", timedelta(0)),
    ],
)  # fmt: skip
def test_durations_are_a_number_and_a_unit(text, duration):
    """Seconds, minutes, hours, days or weeks."""
    assert duration == parse_duration(text)


@pytest.mark.parametrize(
    "text", ["", "7", "d", "-7d", "7 days", "1.5h", "1h30m", "\u0667d", "7D", "9" * 12 + "d", "999999999w"]
)
def test_anything_else_is_no_duration(text):
    """The error tells how to write one."""
    with pytest.raises(ValueError, match="must be"):
        parse_duration(text)


@given(st.text() | st.from_regex(r"\d+[smhdw]"))
def test_arbitrary_text_is_a_duration_or_a_value_error(text):
    """No overflow comes out, however long the number."""
    with suppress(ValueError):
        assert parse_duration(text) >= timedelta(0)


@given(st.integers(0, 999_999_999))
def test_what_is_formatted_reads_back_as_it_was(seconds):
    """Up to thirty years, which is more than any setting."""
    duration = timedelta(seconds=seconds)
    assert duration == parse_duration(format_duration(duration))


@pytest.mark.parametrize(
    ("text", "shortest"), [("86400s", "1d"), ("14d", "2w"), ("90m", "90m"), ("61s", "61s"), ("0s", "0s")]
)
def test_durations_are_formatted_in_their_largest_unit(text, shortest):
    """The shortest text that says it exactly."""
    assert shortest == format_duration(parse_duration(text))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("7d", NOW - timedelta(days=7)),
        ("0s", NOW),
        ("2026-06-01", datetime(2026, 6, 1, tzinfo=UTC)),
        ("2026-06-01T05:00:00", datetime(2026, 6, 1, 5, tzinfo=UTC)),
        ("2026-06-01 05:00", datetime(2026, 6, 1, 5, tzinfo=UTC)),
        ("2026-06-01T05:00:00Z", datetime(2026, 6, 1, 5, tzinfo=UTC)),
        ("2026-06-01T05:00:00+05:30", datetime(2026, 5, 31, 23, 30, tzinfo=UTC)),
    ],
)
def test_moments_are_in_utc(text, moment):
    """How long ago, a date or an ISO time; without a zone it is UTC."""
    assert moment == parse_moment(text, now=NOW)
    assert UTC is parse_moment(text, now=NOW).tzinfo


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "999999w", "0001-01-01T00:00:00+14:00", "10/06/2026"])
def test_what_is_no_moment_is_told_how_to_write_one(text):
    """Dates beyond the calendar are none either."""
    with pytest.raises(ValueError, match="how long ago"):
        parse_moment(text, now=NOW)


def test_midnight_is_that_of_utc():
    """The moment may be in any zone."""
    moment = datetime(2026, 6, 11, 1, 30, 5, 7, tzinfo=timezone(timedelta(hours=2)))
    assert datetime(2026, 6, 10, tzinfo=UTC) == midnight(moment)


@given(MOMENTS, st.timedeltas(timedelta(0), timedelta(days=40)))
def test_days_cover_the_window_exactly_once(since, length):
    """Gapless, in order, without overlap, each within one UTC day."""
    until = since + length
    days = utc_days(since, until)
    bounds = [since, *(end for _, end in days)]
    assert [start for start, _ in days] == bounds[:-1]
    assert bounds[-1] == until
    for start, end in days:
        assert start < end <= midnight(start) + timedelta(days=1)
    assert len(days) <= length.days + 2


def test_an_empty_window_has_no_days():
    """A window that ends before it begins has none either."""
    assert [] == utc_days(NOW, NOW) == utc_days(NOW, NOW - timedelta(days=1))

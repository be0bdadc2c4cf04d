"""Twilio's dates: RFC 2822 in records, headers and webhooks."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Final

# Twilio was founded in 2008. A date far from that is a broken record, and would spoil windows and cursors.
_YEARS: Final = range(2000, 2100)

_DATE: Final = re.compile(
    r"(?:[A-Z][a-z]{2}, *)?([0-9]{1,2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2})(?::([0-9]{2}))?"
    r" (?:GMT|UTC?|([+-])([0-9]{2})([0-5][0-9]))"
)
_MONTH_NAMES: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTHS: Final = {name: number for number, name in enumerate(_MONTH_NAMES, start=1)}

# In every date of Twilio's records: the hour, then minutes and seconds in UTC.
_HOUR_LENGTH: Final = len("Tue, 10 Jun 2026 20:")
_PAST_THE_HOUR: Final = re.compile(r"([0-5][0-9]):([0-5][0-9]) \+0000")


def parse_rfc2822(value: str) -> datetime:
    """Return an aware UTC datetime from `Tue, 10 Jun 2026 20:11:27 +0000`, also with another zone or HTTP's `GMT`.

    A leap second (`23:59:60`) is the second after it, as in POSIX and in PostgreSQL.

    Raises:
        ValueError: the text is no date, has no zone, or lies outside 2000 to 2099.

    """
    # A record has four dates, so speed counts: each hour is parsed once, and so is each minute and second past it.
    try:
        return _hour(value[:_HOUR_LENGTH]) + _past_the_hour(value[_HOUR_LENGTH:])
    except ValueError:
        return _parse_any_form(value)


def _parse_any_form(value: str) -> datetime:
    # email.utils would read 0001 as 2001, and a date without a zone as UTC.
    match = _DATE.fullmatch(value)
    if match is None or match[2] not in _MONTHS:
        raise ValueError("not a date with a zone")
    day, month, year, hour, minute, second, sign, hours, minutes = match.groups()
    zone = UTC
    if sign and (hours, minutes) != ("00", "00"):
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        zone = timezone(-offset if sign == "-" else offset)
    is_leap = second == "60"
    seconds = 59 if is_leap else int(second or 0)
    local = datetime(int(year), _MONTHS[month], int(day), int(hour), int(minute), seconds, tzinfo=zone)
    # The years 1 and 9999 are tested first, because they cannot be converted to UTC.
    if local.year not in _YEARS or (time := local.astimezone(UTC) + timedelta(seconds=is_leap)).year not in _YEARS:
        raise ValueError("not a year of Twilio's")
    return time


@lru_cache(maxsize=4096)
def _hour(text: str) -> datetime:
    """Return the time of `Tue, 10 Jun 2026 20:`, parsed like any other date."""
    return _parse_any_form(f"{text}00:00 +0000")


@lru_cache(maxsize=4096)
def _past_the_hour(text: str) -> timedelta:
    """Return the duration of `11:27 +0000`."""
    match = _PAST_THE_HOUR.fullmatch(text)
    if match is None:
        raise ValueError("not minutes and seconds in UTC")
    return timedelta(minutes=int(match[1]), seconds=int(match[2]))

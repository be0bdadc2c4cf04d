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

# In every date of Twilio's records.
_TIME_LENGTH: Final = len("Tue, 10 Jun 2026 20:11:27")
_DAY_LENGTH: Final = len("Tue, 10 Jun 2026 ")


def parse_rfc2822(value: str) -> datetime:
    """Return an aware UTC datetime from `Tue, 10 Jun 2026 20:11:27 +0000`, also with another zone or HTTP's `GMT`.

    A leap second (`23:59:60`) is the second after it, as in POSIX and in PostgreSQL.

    Raises:
        ValueError: the text is no date, has no zone, or lies outside 2000 to 2099.

    """
    # A record has four dates, so speed counts: each day is parsed once and cached; compiled code reads the time of day.
    if value[_TIME_LENGTH:] == " +0000" and value[19] == value[22] == ":" and value[23] < "6":
        return datetime.fromisoformat(_day(value[:_DAY_LENGTH]) + value[_DAY_LENGTH:_TIME_LENGTH] + "+00:00")
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


@lru_cache(maxsize=1024)
def _day(text: str) -> str:
    """Return `2026-06-10T` for `Tue, 10 Jun 2026 `, parsed like any other date."""
    return f"{_parse_any_form(f'{text}00:00:00 +0000'):%FT}"

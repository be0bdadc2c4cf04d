"""Twilio's dates (RFC 2822)."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Final

# Twilio was founded in 2008. A date far from that is a broken record, and would poison windows and cursors.
_YEARS: Final = range(2000, 2100)


_DATE: Final = re.compile(
    r"(?:[A-Z][a-z]{2}, *)?([0-9]{1,2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2})(?::([0-9]{2}))?"
    r" (?:GMT|UTC?|([+-])([0-9]{2})([0-5][0-9]))"
)


_MONTH_NAMES: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


_MONTHS: Final = {name: number for number, name in enumerate(_MONTH_NAMES, start=1)}


_LENGTH: Final = len("Tue, 10 Jun 2026 20:11:27 +0000")  # of every date in Twilio's records


_DAY_LENGTH: Final = len("Tue, 10 Jun 2026 ")


def parse_rfc2822(value: str) -> datetime:
    """An aware UTC datetime from `Tue, 10 Jun 2026 20:11:27 +0000`, or with another zone, or `GMT` as HTTP has it.

    Raises:
        ValueError: it is none, has no zone, or lies outside 2000 to 2099.

    """
    # A record holds four of them: the few days are read once each, and the time of day in compiled code.
    if len(value) == _LENGTH and value[19] == value[22] == ":" and value.endswith(" +0000"):
        return datetime.fromisoformat(f"{_day(value[:_DAY_LENGTH])}T{value[_DAY_LENGTH:-6]}+00:00")
    return _parse_any_form(value)


def _parse_any_form(value: str) -> datetime:
    # email.utils would take 0001 for 2001, and a date without a zone for one in UTC.
    match = _DATE.fullmatch(value)
    if match is None or match[2] not in _MONTHS:
        raise ValueError("not a date with a zone")
    day, month, year, hour, minute, second, sign, hours, minutes = match.groups()
    zone = UTC
    if sign and (hours, minutes) != ("00", "00"):
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        zone = timezone(-offset if sign == "-" else offset)
    local = datetime(int(year), _MONTHS[month], int(day), int(hour), int(minute), int(second or 0), tzinfo=zone)
    if local.year not in _YEARS or (time := local.astimezone(UTC)).year not in _YEARS:
        raise ValueError("not a year of Twilio's")
    return time


@lru_cache(maxsize=1024)
def _day(text: str) -> str:
    """`2026-06-10` for `Tue, 10 Jun 2026 `, which is read as any date is."""
    return f"{_parse_any_form(f'{text}00:00:00 +0000'):%F}"

"""Durations and moments as people write them: `90m`, `7d`, `2026-06-01`, `2026-06-01T05:00:00+02:00`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION: Final = re.compile(r"([0-9]{1,9})\s*([smhdw])")
_ONE_DAY: Final = timedelta(days=1)


def parse_duration(text: str) -> timedelta:
    """Read a duration such as `90s`, `15m`, `24h`, `7d` or `2w`.

    Raises:
        ValueError: the text has another form, or the duration is too long.

    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("must be a number and one of s, m, h, d, w, like 90s, 15m, 24h, 7d or 2w")
    try:
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        raise ValueError("must be shorter than the age of mankind") from None


def parse_moment(text: str, *, now: datetime) -> datetime:
    """Read a moment: a duration before `now`, a date (its midnight), or an ISO time (UTC if it has no zone).

    Raises:
        ValueError: the text has another form.

    """
    text = text.strip()
    try:
        if _DURATION.fullmatch(text):
            return now - parse_duration(text)
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("write how long ago, like 90m or 7d, a date like 2026-06-01, or an ISO time") from None


def format_duration(duration: timedelta) -> str:
    """Return the shortest text that `parse_duration` reads as `duration`, rounded to whole seconds."""
    seconds = round(duration.total_seconds())
    for unit, size in (("w", 604_800), ("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def midnight(moment: datetime) -> datetime:
    """Return the start of the UTC day of `moment`."""
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def next_midnight(moment: datetime) -> datetime:
    """Return the end of the UTC day of `moment`; a midnight is the end of the day before it."""
    return midnight(moment) if moment == midnight(moment) else midnight(moment) + _ONE_DAY


def utc_days(since: datetime, until: datetime) -> list[tuple[datetime, datetime]]:
    """Divide `[since, until)` at each UTC midnight; return the half-open windows, oldest first."""
    days = []
    while since < until:
        end = min(midnight(since) + _ONE_DAY, until)
        days.append((since, end))
        since = end
    return days

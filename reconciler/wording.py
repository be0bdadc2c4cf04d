"""The wording of figures for people, the same in the terminal, on the page, in checks and in advice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

_SID: Final = re.compile(r"\b((?:AC|CA)[0-9a-fA-F]{4})[0-9a-fA-F]{24}([0-9a-fA-F]{4})\b")
_A_TRY_TAKES: Final = 20  # seconds, at most: connecting and reading each have a limit
_SIZES: Final = ("kB", "MB", "GB", "TB")  # powers of a thousand


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a count such as `1 dead letter` or `2 dead letters`; `plural` is for irregular nouns."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def imported(calls: int) -> str:
    """Return the sentence that says why some of the calls that were found are no gaps."""
    if calls == 1:
        return "1 call was imported: it is older than the first look after its account."
    return f"{calls:,} calls were imported: they are older than the first look after their account."


def rough(duration: timedelta | float) -> str:
    """Return a duration (seconds or timedelta) as `4 s`, `3 min`, `2 h` or `5 d`, rounded down; `0 s` if negative."""
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    seconds = max(0, int(seconds))
    for unit, size, from_ in (("d", 86_400, 172_800), ("h", 3_600, 7_200), ("min", 60, 120)):
        if seconds >= from_:
            return f"{seconds // size:,} {unit}"
    return f"{seconds} s"


def waiting_for(service: str, reason: str, *, attempt: int, seconds_left: float) -> str:
    """`waiting for Twilio: HTTP 503, try 8, next in 18 s`; `seconds_left` until the next try is negative after it."""
    if seconds_left > 0:
        when = f"next in {seconds_left:.0f} s"
    else:
        when = "trying now" if seconds_left > -_A_TRY_TAKES else "the next run tries again"
    return f"waiting for {service}: {reason}, try {attempt}, {when}"


def byte_size(count: int) -> str:
    """Return a size such as `999 B`, `1.5 kB` or `2.4 GB`: units of a thousand, one decimal above bytes."""
    if count < 1_000:
        return f"{count} B"
    amount, units = count / 1_000, iter(_SIZES)
    unit = next(units)
    # 999,950 bytes would be rounded to 1,000.0 kB.
    while round(amount, 1) >= 1_000 and unit != _SIZES[-1]:
        amount, unit = amount / 1_000, next(units)
    return f"{amount:,.1f} {unit}"


def short_sids(text: str) -> str:
    """Return `text` with each account's and call's SID shortened to its ends: `AC7e57…26c5`."""
    return _SID.sub(r"\1…\2", text)


def differences(counts: Mapping[str, int]) -> str:
    """Return the differences of a day in words: `3 missing, 1 billed not held`."""
    return ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in counts.items())

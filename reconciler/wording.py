"""Numbers, durations and SIDs as people read them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final


def counted(number: int, noun: str) -> str:
    """`1 dead letter`, `2 dead letters`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rough(duration: timedelta) -> str:
    """`duration` for a person: `4 s`, `3 min`, `2 h` or `5 d`, rounded down; what is negative counts as nothing."""
    seconds = max(0, int(duration.total_seconds()))
    for unit, size, from_ in (("d", 86_400, 172_800), ("h", 3_600, 7_200), ("min", 60, 120)):
        if seconds >= from_:
            return f"{seconds // size:,} {unit}"
    return f"{seconds} s"


_SID: Final = re.compile(r"\bAC[0-9a-fA-F]{32}\b")


_UNITS: Final = ("B", "kB", "MB", "GB", "TB")


def _shortened(sid: re.Match[str]) -> str:
    return f"{sid[0][:6]}…{sid[0][-4:]}"


def _age(seconds: float) -> str:
    return rough(timedelta(seconds=seconds))


def _bytes(size: int) -> str:
    amount = float(size)
    for unit in _UNITS[:-1]:
        if amount < 1_000:
            return f"{amount:.0f} {unit}"
        amount /= 1_000
    return f"{amount:,.1f} {_UNITS[-1]}"

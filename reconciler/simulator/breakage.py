"""Broken records: one value that no API should send, in an otherwise good page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

# UTF-8 has no form for a lone surrogate, so its escape is written into the encoded JSON.
_SURROGATE = "@lone-surrogate@"


def _set(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda record: record.update(fields)


def _without(*names: str) -> Callable[[dict[str, Any]], object]:
    return lambda record: [record.pop(name, None) for name in names]


BREAKAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "unknown_status": _set(status="on-hold"),
    "nul_in_string": lambda record: record.update({"from": "+1202\x005550100"}),
    "lone_surrogate": _set(to=f"client:{_SURROGATE}"),
    "huge_sip_uri": _set(to=f"sip:{'x' * 5000}@example.com"),
    "negative_duration": _set(duration="-5"),
    "duration_with_fraction": _set(duration="12.5"),
    "price_with_exponent": _set(price="-1.4E-2"),
    "price_not_a_number": _set(price="NaN"),
    "numbers_not_strings": _set(price=-0.014, duration=30),
    "year_1": _set(start_time="Mon, 01 Jan 0001 00:00:00 +0000"),
    "year_9999": _set(end_time="Fri, 31 Dec 9999 23:59:59 +0000"),
    "bad_date": _set(date_created="yesterday, shortly after lunch"),
    "sid_not_a_sid": _set(sid="call-123"),
    "null_sid": _set(sid=None),
    "missing_keys": _without("status", "from", "date_created"),
}


@dataclass(frozen=True, slots=True)
class Breakage:
    """Breaks one record of a page: the record `sid` if given, else the record at `index`."""

    kind: str
    index: int = 0
    sid: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in BREAKAGES:
            raise ValueError(f"unknown breakage {self.kind!r}; one of {sorted(BREAKAGES)}")

    def encode(self, payload: object) -> bytes:
        """Return the payload as JSON, with its record broken. A payload without that record is unchanged."""
        for record in self._records(payload):
            BREAKAGES[self.kind](record)
        return msgspec.json.encode(payload).replace(_SURROGATE.encode(), rb"\ud800")

    def _records(self, payload: object) -> list[dict[str, Any]]:
        if not isinstance(payload, dict):
            return []
        alone = [payload] if "parent_call_sid" in payload or "media_url" in payload else []
        records: list[dict[str, Any]] = payload.get("calls") or payload.get("recordings") or alone
        if self.sid is not None:
            return [record for record in records if record["sid"] == self.sid]
        return records[self.index : self.index + 1]

"""Answers and webhooks that Twilio really sent, from `tests/data`, with every number and name replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_DATA = Path(__file__).parents[1] / "data"


def _read(name: str) -> Any:
    return json.loads((_DATA / name).read_text(encoding="utf-8"))


REAL_CALLS: list[dict[str, Any]] = [
    json.loads(line) for line in (_DATA / "real_calls.jsonl").read_text(encoding="utf-8").splitlines()
]
REAL_PAGES: list[dict[str, Any]] = _read("real_list_envelopes.json")["pages"]
REAL_WEBHOOKS: list[dict[str, Any]] = _read("webhook_samples.json")["samples"]

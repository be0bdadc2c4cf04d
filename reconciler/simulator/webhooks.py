"""stub"""
from __future__ import annotations

from datetime import datetime

from reconciler.simulator.account import SimulatedAccount
from reconciler.simulator.calls import Record


def events_of(account: SimulatedAccount, sid: str, now: datetime) -> list[Record]:
    return []

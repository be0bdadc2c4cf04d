"""The daemon's state in one word."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """The state that the status page shows first."""

    WORKING = "working"
    WAITING = "waiting"  # for Twilio or the database: it heals by itself
    STANDING_BY = "standing by"  # another daemon leads
    NOT_WORKING = "not working"

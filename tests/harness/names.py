"""The names that all tests share: one account, its token, one moment, and SIDs."""

from __future__ import annotations

from datetime import UTC, datetime

ACCOUNT = "AC" + 32 * "1"
SUBACCOUNT = "AC" + 32 * "2"
TOKEN = "token-of-the-account"

# The time of a simulated clock.
NOW = datetime(2026, 6, 10, 12, tzinfo=UTC)


def sid(call: int) -> str:
    """The SID of a call that a test makes up."""
    return f"CA{call:032x}"

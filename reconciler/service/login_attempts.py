"""How often a refused login is tried again before a person must act."""

from __future__ import annotations

from typing import Final

# A refusal may pass: a directory server restarts, a password is being rotated, a proxy refuses. But servers lock
# accounts that fail often. So there are three tries, and no endless loop.
WAITS: Final = (5.0, 15.0)  # seconds before the second try and the third


class LoginAttempts:
    """The count of consecutive refusals of one login."""

    def __init__(self) -> None:
        self._refusals = 0

    def count_refusal(self) -> float | None:
        """Count a refusal; return the seconds to wait before the next try, or None if that was the last one."""
        self._refusals += 1
        return WAITS[self._refusals - 1] if self._refusals <= len(WAITS) else None

    def reset(self) -> None:
        """Start counting again, because the login worked or has been replaced."""
        self._refusals = 0

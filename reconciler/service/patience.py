"""How often a refusal is borne before a person must act."""

from __future__ import annotations

from typing import Final

# Refusals pass: a directory server that restarts, a password that is being rotated, a proxy. Servers lock accounts that
# fail often: three tries, and never a loop.
WAITS: Final = (5.0, 15.0)  # seconds before the second try and the third


class Patience:
    """Counts refusals in a row of one kind of login."""

    def __init__(self) -> None:
        self._refusals = 0

    def wait(self) -> float | None:
        """Note a refusal. Seconds to wait before the next try; None if it was the last."""
        self._refusals += 1
        return WAITS[self._refusals - 1] if self._refusals <= len(WAITS) else None

    def renew(self) -> None:
        """Begin to count anew: the login worked, or it is another one now."""
        self._refusals = 0

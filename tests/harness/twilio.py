"""A simulated Twilio over HTTP with one account, and retries that do not keep a test waiting."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from reconciler import retry
from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio

from .names import ACCOUNT, NOW, TOKEN


@pytest.fixture
def account() -> SimulatedAccount:
    """An account without calls."""
    return SimulatedAccount(ACCOUNT, TOKEN, seed=7)


@pytest.fixture
def clock() -> Clock:
    """Twilio's clock: it stands at NOW. Tests that start a process override it by one that runs."""
    return Clock(NOW)


@pytest.fixture
def twilio(account: SimulatedAccount, clock: Clock) -> Iterator[SimulatedTwilio]:
    """A simulated Twilio of that account."""
    with SimulatedTwilio([account], clock=clock) as twilio:
        yield twilio


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make waits between repeats a hundred times shorter: tests ask whether there are repeats."""
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.005)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.05)

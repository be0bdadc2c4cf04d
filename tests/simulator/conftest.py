"""What the tests of the simulator share: a clock, an account, a server and a plain HTTP client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from http_client import DATA, NOON, Client

from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio


@pytest.fixture
def clock() -> Clock:
    """A clock that stands at noon of 10 June 2026."""
    return Clock(NOON)


@pytest.fixture
def account() -> SimulatedAccount:
    """An account without calls."""
    return SimulatedAccount(f"AC{1:032x}", "token")


@pytest.fixture
def serve(clock: Clock, account: SimulatedAccount) -> Iterator[Callable[..., tuple[SimulatedTwilio, Client]]]:
    """Starts a server of the account with the options given; returns it and a client signed in as the account."""
    with ExitStack() as stack:

        def start(*, user: str = account.sid, secret: str = account.auth_token, **options: Any) -> Any:
            twilio = stack.enter_context(SimulatedTwilio([account], clock=clock, **options))
            client = Client(twilio.base_url, user, secret)
            stack.enter_context(client.session)
            return twilio, client

        yield start


@pytest.fixture(scope="session")
def real_calls() -> list[dict[str, Any]]:
    """Every real record of tests/data."""
    return [json.loads(line) for line in (DATA / "real_calls.jsonl").read_text(encoding="utf-8").splitlines()]

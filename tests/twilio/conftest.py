"""A simulated Twilio and a source that asks it, with waits too short to notice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from reconciler.settings import Credentials
from reconciler.simulator import Clock, FaultPlan, SimulatedAccount, SimulatedTwilio
from reconciler.twilio.client import Session, TwilioClient
from reconciler.twilio.concurrency import Pacer
from reconciler.twilio.listing import Listing
from reconciler.twilio.transport import Transport
from tests.harness.names import NOW, TOKEN


@pytest.fixture
def account(account: SimulatedAccount) -> SimulatedAccount:
    """An account with 30 calls of the two days before noon."""
    account.generate(30, NOW - timedelta(days=2), NOW - timedelta(hours=1))
    return account


@pytest.fixture
def plan(twilio: SimulatedTwilio) -> FaultPlan:
    """A plan without faults."""
    return twilio.faults


@pytest.fixture
def elsewhere(clock: Clock) -> Iterator[SimulatedTwilio]:
    """Another host, which must not hear of us."""
    with SimulatedTwilio([], clock=clock) as twilio:
        yield twilio
        assert [] == list(twilio.requests)


@pytest.fixture(autouse=True)
def _short_waits(quick_retries: None) -> None:
    """No test of this folder is about the length of waits."""


@pytest.fixture
def make_source(account: SimulatedAccount) -> Iterator[Callable[..., Session]]:
    """Makes sources that are closed with the test; `timeouts` are those of reading and of the whole answer."""
    with ExitStack() as stack:

        def make(
            base_url: str, *, limit: int = 4, timeouts: tuple[float, float] | None = None,
            stop: threading.Event | None = None, credentials: dict[str, Any] | None = None, **options: Any,
        ) -> Session:  # fmt: skip
            signed = {"account_sid": account.sid, "username": account.sid, "secret": TOKEN, "base_url": base_url}
            if timeouts is not None:
                read, total = timeouts
                options["transport"] = Transport(base_url, connections=limit, read_timeout=read, total_timeout=total)
            client = TwilioClient(
                Credentials(**signed | (credentials or {})),
                pacer=options.pop("pacer", None) or Pacer(limit),
                **options,
            )  # fmt: skip
            stack.callback(client.close)
            return client.session(stop)

        yield make


@pytest.fixture
def source(make_source: Callable[..., Session], twilio: SimulatedTwilio) -> Session:
    """A source that asks `twilio` as the account."""
    return make_source(twilio.base_url)


@pytest.fixture
def listing(account: SimulatedAccount) -> Listing:
    """All calls of the account, ten a page."""
    return Listing(account.sid, page_size=10)


@pytest.fixture
def events() -> Iterator[list[Any]]:
    """The events logged, as dictionaries."""
    with capture_logs() as captured:
        yield captured

"""Fixtures of the simulator's tests: a clock, an account, a server and a plain HTTP client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio

NOON = datetime(2026, 6, 10, 12, tzinfo=UTC)
DATA = Path(__file__).parent.parent / "data"


class Client:
    """Asks one server with one pair of credentials, over one kept-alive connection."""

    def __init__(self, base_url: str, user: str, secret: str) -> None:
        self.base_url = base_url
        self.session = requests.Session()
        self.session.auth = (user, secret)
        self.session.trust_env = False  # no proxy and no certificates of the machine's between us
        self.user = user

    def get(self, path: str, **options: Any) -> requests.Response:
        """GET a path or a relative URI below /2010-04-01."""
        uri = path if path.startswith("/2010-04-01") else f"/2010-04-01{path}"
        return self.session.get(self.base_url + uri, timeout=10, allow_redirects=False, **options)

    def page(self, account_sid: str | None = None, /, **params: Any) -> Any:
        """One page of calls; `StartTime_before` and `_after` stand for the operators."""
        named = {name.replace("_before", "<").replace("_after", ">"): value for name, value in params.items()}
        answer = self.get(f"/Accounts/{account_sid or self.user}/Calls.json", params=named)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def pages(self, **params: Any) -> Iterator[Any]:
        """Every page, by next_page_uri."""
        page = self.page(**params)
        yield page
        while uri := page["next_page_uri"]:
            page = self.get(uri).json()
            yield page

    def sids(self, **params: Any) -> list[str]:
        """The SIDs of a whole listing, in order."""
        return [call["sid"] for page in self.pages(**params) for call in page["calls"]]


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

"""A plain HTTP client of the simulator, and the time at which most of its tests stand."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

NOON = datetime(2026, 6, 10, 12, tzinfo=UTC)
DATA = Path(__file__).parent.parent / "data"


class Client:
    """Asks one server with one pair of credentials, over one kept-alive connection."""

    def __init__(self, base_url: str, user: str, secret: str) -> None:
        self.base_url = base_url
        self.session = requests.Session()
        self.session.auth = (user, secret)
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

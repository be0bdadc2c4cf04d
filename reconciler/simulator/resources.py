"""The resources that can be read: from a request to an answer, without sockets."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from reconciler.simulator import messages
from reconciler.simulator.access import Denied, admit, all_accounts
from reconciler.simulator.account import SimulatedAccount
from reconciler.simulator.calls import Record
from reconciler.simulator.clock import Clock
from reconciler.simulator.filters import BadFilter
from reconciler.simulator.listing import (
    BadPageToken,
    OutsideRetention,
    envelope,
    list_calls,
    paging,
)
from reconciler.simulator.messages import Answer, Request
from reconciler.simulator.switches import Switches
from reconciler.simulator.usage import BadDates, daily_usage
from reconciler.simulator.webhooks import events_of
from reconciler.simulator.wire import API

_CREATED = "Thu, 01 Jan 2026 00:00:00 +0000"


class Resources:
    """Answers GET requests on behalf of some accounts, at the time a clock shows."""

    def __init__(self, accounts: Sequence[SimulatedAccount], clock: Clock, switches: Switches) -> None:
        self.accounts = accounts
        self.clock = clock
        self.switches = switches
        self._routes: tuple[tuple[re.Pattern[str], str, Callable[..., Answer]], ...] = (
            (re.compile(rf"{API}/Accounts/AC\w+/Calls\.json"), "calls", self._calls),
            (re.compile(rf"{API}/Accounts/AC\w+/Calls/(\w+)\.json"), "calls", self._call),
            (re.compile(rf"{API}/Accounts/AC\w+/Calls/(\w+)/Events\.json"), "calls", self._events),
            (re.compile(rf"{API}/Accounts\.json"), "accounts", self._accounts),
            (re.compile(rf"{API}/Accounts/AC\w+\.json"), "accounts", self._account),
            (re.compile(rf"{API}/Accounts/AC\w+/Usage/Records/Daily\.json"), "usage", self._usage),
        )

    def answer(self, request: Request) -> Answer:
        """What Twilio says to this request now."""
        for pattern, resource, route in self._routes:
            if match := pattern.fullmatch(request.path):
                break
        else:
            return messages.not_found(request.path)
        if request.method != "GET":
            return messages.error(405, 20004, "Method not allowed")
        try:
            account = admit(
                request, resource, all_accounts(self.accounts), suspended_answer=self.switches.suspended_answer
            )
            return route(account, request, self.clock.now(), *match.groups())
        except Denied as denied:
            return denied.answer
        except (BadFilter, BadPageToken) as bad:
            return messages.error(400, 20001, str(bad) or "Invalid PageToken")
        except OutsideRetention:
            return messages.error(400, 20004, "Date range specified in query is partially or entirely outside of "
                                  f"retention window of {self.switches.retention_days} days")  # fmt: skip
        except BadDates:
            return messages.not_found(request.path)

    def _calls(self, account: SimulatedAccount, request: Request, now: datetime) -> Answer:
        return Answer(payload=list_calls(account, request.params, now, self.switches))

    def _call(self, account: SimulatedAccount, request: Request, now: datetime, sid: str) -> Answer:
        record = account.record(sid, now - self.switches.fetch_lag)
        if record is None:
            return messages.not_found(request.path)
        if self.switches.extra_keys:
            record["ai_summary"] = None
        return Answer(payload=record)

    def _events(self, account: SimulatedAccount, request: Request, now: datetime, sid: str) -> Answer:
        if account.record(sid, now) is None:
            return messages.not_found(request.path)
        return _page("events", events_of(account, sid, now), request)

    def _accounts(self, account: SimulatedAccount, request: Request, now: datetime) -> Answer:
        name, status = request.param("FriendlyName"), request.param("Status")
        found = [
            _account_record(each)
            for each in (account, *account.subaccounts.values())
            if name in (None, each.friendly_name) and status in (None, each.status)
        ]
        return _page("accounts", found, request)

    def _account(self, account: SimulatedAccount, request: Request, now: datetime) -> Answer:
        return Answer(payload=_account_record(account))

    def _usage(self, account: SimulatedAccount, request: Request, now: datetime) -> Answer:
        return _page("usage_records", daily_usage(account, request, now), request)


def _account_record(account: SimulatedAccount) -> Record:
    """The record of an account. It carries the auth token in clear, as Twilio's does."""
    uri = f"{API}/Accounts/{account.sid}"
    return {
        "auth_token": account.auth_token,
        "date_created": _CREATED,
        "date_updated": _CREATED,
        "friendly_name": account.friendly_name,
        "owner_account_sid": (account.owner or account).sid,
        "sid": account.sid,
        "status": account.status,
        "subresource_uris": {"calls": f"{uri}/Calls.json", "usage": f"{uri}/Usage.json"},
        "type": "Full",
        "uri": f"{uri}.json",
    }


def _page(key: str, records: list[Any], request: Request) -> Answer:
    """A page of a short list that does not change while it is read: Page alone counts."""
    page, size, _ = paging(request.params)
    query = [(name, value) for name, value in request.params if not name.startswith("Page")]
    shown = records[page * size : (page + 1) * size]
    return Answer(payload=envelope(key, shown, request.path, query, page, size, None))

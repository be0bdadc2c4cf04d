"""The resources of the API: each turns a request into an answer, without sockets."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from reconciler.simulator import messages
from reconciler.simulator.access import Denied, admit, all_accounts
from reconciler.simulator.account import SimulatedAccount
from reconciler.simulator.calls import Record
from reconciler.simulator.clock import Clock
from reconciler.simulator.filters import BadFilter
from reconciler.simulator.listing import BadPageToken, OutsideRetention, Paging, envelope, list_calls
from reconciler.simulator.messages import Answer, Request
from reconciler.simulator.monitor import list_alerts
from reconciler.simulator.recording_list import fetch_recording, list_recordings
from reconciler.simulator.switches import Switches
from reconciler.simulator.usage import BadDates, daily_usage
from reconciler.simulator.webhooks import events_of
from reconciler.simulator.wire import API

_CREATED = "Thu, 01 Jan 2026 00:00:00 +0000"


@dataclass(frozen=True, slots=True)
class _Question:
    """A request that has been admitted: its account, the time of its answer, and the SID in its path."""

    account: SimulatedAccount
    request: Request
    now: datetime
    sid: str


_Route = Callable[[_Question], Answer]


class Resources:
    """The API of some accounts. It answers GET requests at the time that the clock shows."""

    def __init__(self, accounts: Sequence[SimulatedAccount], clock: Clock, switches: Switches) -> None:
        self.accounts = accounts
        self.clock = clock
        self.switches = switches
        of_account = rf"{API}/Accounts/AC\w+"
        self._routes: tuple[tuple[str, str, _Route], ...] = (
            (rf"{of_account}/Calls\.json", "calls", self._calls),
            (rf"{of_account}/Calls/(\w+)\.json", "calls", self._call),
            (rf"{of_account}/Calls/(\w+)/Events\.json", "calls", self._events),
            (rf"{of_account}/Calls/(\w+)/Recordings\.json", "recordings", self._recordings),
            (rf"{of_account}/Recordings\.json", "recordings", self._recordings),
            (rf"{of_account}/Recordings/(\w+)\.json", "recordings", self._recording),
            (rf"{of_account}/(IncomingPhoneNumbers|SIP/Domains|Applications)\.json", "endpoints", self._endpoints),
            (rf"{API}/Accounts\.json", "accounts", self._accounts),
            (rf"{of_account}\.json", "accounts", self._account),
            (rf"{of_account}/Usage/Records/Daily\.json", "usage", self._usage),
            (r"/v1/Alerts", "alerts", self._alerts),
        )

    def answer(self, request: Request) -> Answer:
        """Return Twilio's answer to this request at this moment."""
        for pattern, resource, route in self._routes:
            if match := re.fullmatch(pattern, request.path):
                return self._routed(request, resource, route, *match.groups())
        return messages.not_found(request.path)

    def _routed(self, request: Request, resource: str, route: _Route, sid: str = "") -> Answer:
        """Return the answer of a route, or Twilio's error for bad credentials and parameters."""
        if request.method != "GET":
            return messages.error(405, 20004, "Method not allowed")
        accounts = all_accounts(self.accounts)
        try:
            account = admit(request, resource, accounts, suspended_answer=self.switches.suspended_answer)
            return route(_Question(account, request, self.clock.now(), sid))
        except Denied as denied:
            return denied.answer
        except BadFilter as bad:
            return messages.error(400, 20001, str(bad))
        except BadPageToken:
            return messages.error(400, 20001, "Invalid PageToken")
        except OutsideRetention:
            days = self.switches.retention_days
            return messages.error(
                400,
                20004,
                f"Date range specified in query is partially or entirely outside of retention window of {days} days",
            )
        except BadDates:
            return messages.not_found(request.path)

    def _calls(self, asked: _Question) -> Answer:
        return Answer(payload=list_calls(asked.account, asked.request.params, asked.now, self.switches))

    def _call(self, asked: _Question) -> Answer:
        record = asked.account.record(asked.sid, asked.now - self.switches.fetch_lag)
        if record is None:
            return messages.not_found(asked.request.path)
        if self.switches.extra_keys:
            record["ai_summary"] = None
        return Answer(payload=record)

    def _events(self, asked: _Question) -> Answer:
        if asked.account.record(asked.sid, asked.now) is None:
            return messages.not_found(asked.request.path)
        return _page("events", events_of(asked.account, asked.sid, asked.now), asked.request)

    def _recordings(self, asked: _Question) -> Answer:
        if asked.sid and asked.account.find(asked.sid) is None:
            return messages.not_found(asked.request.path)
        params, now = asked.request.params, asked.now
        return Answer(payload=list_recordings(asked.account, params, now, self.switches, call_sid=asked.sid or None))

    def _recording(self, asked: _Question) -> Answer:
        record = fetch_recording(asked.account, asked.sid, asked.request.params, asked.now, self.switches)
        return messages.not_found(asked.request.path) if record is None else Answer(payload=record)

    def _endpoints(self, asked: _Question) -> Answer:
        endpoints = asked.account.endpoints
        match asked.sid:
            case "IncomingPhoneNumbers":
                records = [number.render() for number in list(endpoints.numbers.values())]
                return _page("incoming_phone_numbers", records, asked.request)
            case "SIP/Domains":
                return _page("domains", [each.render() for each in list(endpoints.sip_domains.values())], asked.request)
            case _:
                records = [application.render() for application in list(endpoints.applications.values())]
                return _page("applications", records, asked.request)

    def _alerts(self, asked: _Question) -> Answer:
        return Answer(payload=list_alerts(asked.account, asked.request.params, asked.now))

    def _accounts(self, asked: _Question) -> Answer:
        name, status = asked.request.param("FriendlyName"), asked.request.param("Status")
        found = [
            _account_record(each)
            for each in (asked.account, *asked.account.subaccounts.values())
            if name in (None, each.friendly_name) and status in (None, each.status)
        ]
        return _page("accounts", found, asked.request)

    def _account(self, asked: _Question) -> Answer:
        return Answer(payload=_account_record(asked.account))

    def _usage(self, asked: _Question) -> Answer:
        return _page("usage_records", daily_usage(asked.account, asked.request, asked.now), asked.request)


def _account_record(account: SimulatedAccount) -> Record:
    """Return the record of an account. It holds the auth token in clear text, as Twilio's does."""
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
    """Return a page of a short list. The list does not change meanwhile, so Page is enough and no token is needed."""
    paging = Paging.parse(request.params)
    first = paging.page * paging.size
    query = [(name, value) for name, value in request.params if not name.startswith("Page")]
    return Answer(payload=envelope(key, records[first : first + paging.size], request.path, query, paging))

"""GET /v1/Alerts. At Twilio it has a host of its own, monitor.twilio.com; here it shares one with everything else.

Rules:
- dates are ISO 8601, both bounds are inclusive, and no alert is older than 30 days (OpenAPI `ListAlert`);
- the envelope is `meta`, whose URLs are absolute and name Twilio's host;
- the bounds apply to date_created; this is an inference;
- the list holds the caller's own alerts only: this host asks for a subaccount's own credentials
  (https://www.twilio.com/docs/iam/api/subaccounts).
"""

from __future__ import annotations

from datetime import datetime
from urllib.parse import urlencode

from reconciler.simulator.account import SimulatedAccount
from reconciler.simulator.alerts import URL, Alert
from reconciler.simulator.calls import Record
from reconciler.simulator.filters import BadFilter, Span, parse_time
from reconciler.simulator.listing import BadPageToken, Paging, Params
from reconciler.simulator.wire import DAY, seconds

KEPT = 30 * DAY
MOST = 10_000  # alerts that can be fetched (https://www.twilio.com/docs/usage/monitor-alert)


def list_alerts(account: SimulatedAccount, params: Params, now: datetime) -> Record:
    """Return one page of the account's alerts at `now`, newest first.

    Raises:
        BadFilter: a parameter cannot be read.
        BadPageToken: the token names no alert.

    """
    paging = Paging.parse(params)
    given = {name: value for name, value in params if value}
    level = given.get("LogLevel")
    if level not in (None, "error", "warning", "notice", "debug"):
        raise BadFilter("Invalid LogLevel")
    at = seconds(now)
    since = max(at - KEPT, parse_time("StartDate", given["StartDate"]) if "StartDate" in given else 0)
    until = min(at, parse_time("EndDate", given["EndDate"]) if "EndDate" in given else at)
    span = Span(since, until + 1)
    found = sorted(
        (alert for alert in list(account.alerts) if alert.created in span and level in (None, alert.log_level)),
        key=lambda alert: (alert.created, alert.sid),
        reverse=True,
    )[:MOST]
    query = [(name, value) for name, value in params if name in ("LogLevel", "StartDate", "EndDate") and value]
    return _envelope(_page(found, paging), query, paging)


def _page(found: list[Alert], paging: Paging) -> list[Alert]:
    first = paging.page * paging.size
    if paging.token is not None:
        sids = [alert.sid for alert in found]
        if paging.token[:2] != "PA" or paging.token[2:] not in sids:
            raise BadPageToken
        first = sids.index(paging.token[2:]) + 1
    return found[first : first + paging.size]


def _envelope(alerts: list[Alert], query: Params, paging: Paging) -> Record:
    def url(page: int, token: str | None) -> str:
        tokens = [("PageToken", token)] if token else []
        return f"{URL}?{urlencode([*query, ('PageSize', str(paging.size)), ('Page', str(page)), *tokens])}"

    goes_on = len(alerts) >= paging.size
    return {
        "alerts": [alert.render() for alert in alerts],
        "meta": {
            "first_page_url": url(0, None),
            "key": "alerts",
            "next_page_url": url(paging.page + 1, f"PA{alerts[-1].sid}") if goes_on else None,
            "page": paging.page,
            "page_size": paging.size,
            "previous_page_url": url(paging.page - 1, f"PB{alerts[0].sid}") if paging.page and alerts else None,
            "url": url(paging.page, paging.token),
        },
    }

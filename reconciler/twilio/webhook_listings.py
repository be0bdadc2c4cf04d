"""The listings of an account's alerts and endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Final
from urllib.parse import urlencode

from reconciler.twilio.client import Session
from reconciler.twilio.listing import ALERTS_PATH, API_PATH, PAGE_SIZE
from reconciler.twilio.webhook_records import Alert, Endpoint, decode_alerts, decode_endpoints

ALERTS_KEPT: Final = timedelta(days=30)  # https://www.twilio.com/docs/usage/monitor-alert
MOST_ALERTS: Final = 10_000  # in one listing (the same page)


def list_alerts(session: Session, since: datetime, until: datetime) -> Iterator[Alert]:
    """Yield the alerts that were created from `since` to `until`, newest first, each once.

    They belong to the account of the credentials: Twilio shows a subaccount's alerts only to its own credentials
    (https://www.twilio.com/docs/iam/api/subaccounts).
    """
    seen: set[str] = set()
    while True:
        query = {"StartDate": _iso(since), "EndDate": _iso(until), "PageSize": str(PAGE_SIZE)}
        oldest, listed, before = until, 0, seen
        seen, finds_more = set(), False
        for alert in session.records(f"{ALERTS_PATH}?{urlencode(query)}", decode_alerts):
            listed += 1
            oldest = min(oldest, alert.created)
            if alert.sid not in before and alert.sid not in seen:
                finds_more = True
                yield alert
            seen.add(alert.sid)
        if listed < MOST_ALERTS or not finds_more:
            return
        # The listing ends before its window does. Bounds are whole seconds, and both are inclusive.
        until = oldest if oldest < until else until - timedelta(seconds=1)


def list_endpoints(session: Session, account_sid: str, kind: str) -> Iterator[Endpoint]:
    """Yield the endpoints of an account that receive calls, of one of ENDPOINT_LISTS."""
    path = f"{API_PATH}/{account_sid}/{kind}.json?PageSize={PAGE_SIZE}"
    return session.records(path, partial(decode_endpoints, kind))


def _iso(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"

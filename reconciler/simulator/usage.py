"""Usage/Records/Daily.json: totals per UTC day of the calls' start, independent of the list of calls.

Rules (OpenAPI `ListUsageRecordDaily`, https://www.twilio.com/docs/usage/api/usage-record):
- only billed calls count, so unanswered calls add nothing;
- `usage` is in minutes, rounded up for each call; all values are strings;
- IncludeSubaccounts is true by default, and both dates are inclusive;
- a call that was deleted was billed all the same;
- legs to and from clients and SIP have categories of their own; `calls` is the sum of all but trunking.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from reconciler.simulator.account import SimulatedAccount
from reconciler.simulator.calls import Record
from reconciler.simulator.filters import Filters, Span
from reconciler.simulator.messages import Request
from reconciler.simulator.wire import API, DAY, seconds

CATEGORIES = (
    "calls", "calls-inbound", "calls-outbound", "calls-sip", "calls-sip-inbound", "calls-sip-outbound",
    "calls-client", "trunking-origination", "trunking-termination",
)  # fmt: skip

_RELATIVE = re.compile(r"([+-]\d+)days?")


class BadDates(ValueError):
    """A date cannot be read, or the end is before the start. Twilio answers 404/20404."""


@dataclass(slots=True)
class _Total:
    count: int = 0
    minutes: int = 0
    price: Decimal = Decimal(0)


def daily_usage(account: SimulatedAccount, request: Request, now: datetime) -> list[Record]:
    """Return one record for each requested category and UTC day, latest day first; 0 for days without calls.

    Raises:
        BadDates: a date cannot be read, or the end is before the start.

    """
    today = now.astimezone(UTC).date()
    first = _date(request.param("StartDate") or "today", today)
    last = _date(request.param("EndDate") or "today", today)
    if last < first:
        raise BadDates
    wanted = (request.param("Category"),) if request.param("Category") else CATEGORIES
    include = (request.param("IncludeSubaccounts") or "true").lower() != "false"
    totals: dict[tuple[date, str], _Total] = defaultdict(_Total)
    for owner in (account, *(account.subaccounts.values() if include else ())):
        _add_up(owner, first, last, now, totals)
    days = [last - timedelta(days=n) for n in range((last - first).days + 1)]
    return [
        _record(account.sid, day, category, totals[day, category], now)
        for day in days
        for category in wanted
        if category in CATEGORIES
    ]


def _add_up(
    account: SimulatedAccount, first: date, last: date, now: datetime, totals: dict[tuple[date, str], _Total]
) -> None:
    midnight = datetime(first.year, first.month, first.day, tzinfo=UTC)
    begins = seconds(midnight)
    window = Span(begins, begins + DAY * ((last - first).days + 1))
    at = seconds(now)
    for call in account.calls_at(now, Filters(status="completed", start=window), with_deleted=True):
        start, end = call.start_at(at), call.end_at(at)
        if start is None or end is None:
            continue
        day = first + timedelta(days=(start - begins) // DAY)
        record = call.render(at)
        for category in _categories(record):
            total = totals[day, category]
            total.count += 1
            total.minutes += -(-(end - start) // 60)
            total.price += abs(Decimal(record["price"] or 0))


def _categories(record: Record) -> tuple[str, ...]:
    direction, far_end = record["direction"], record["to"]
    if direction == "trunking-originating":
        return ("trunking-origination",)
    if direction == "trunking-terminating":
        return ("trunking-termination",)
    way = "outbound"
    if direction == "inbound":
        way, far_end = "inbound", record["from"]
    if far_end.startswith("client:"):
        return ("calls", "calls-client")
    if far_end.startswith("sip:"):
        return ("calls", "calls-sip", f"calls-sip-{way}")
    return ("calls", f"calls-{way}")


def _record(account_sid: str, day: date, category: str, total: _Total, now: datetime) -> Record:
    path = f"{API}/Accounts/{account_sid}/Usage/Records"
    return {
        "account_sid": account_sid,
        "api_version": "2010-04-01",
        "as_of": now.astimezone(UTC).isoformat(timespec="seconds"),
        "category": category,
        "count": str(total.count),
        "count_unit": "calls",
        "description": category.replace("-", " ").title(),
        "end_date": day.isoformat(),
        "price": str(total.price),
        "price_unit": "usd",
        "start_date": day.isoformat(),
        "subresource_uris": {"daily": f"{path}/Daily.json?Category={category}"},
        "uri": f"{path}/Daily.json?Category={category}&StartDate={day}&EndDate={day}",
        "usage": str(total.minutes),
        "usage_unit": "minutes",
    }


def _date(text: str, today: date) -> date:
    if text in ("today", "yesterday"):
        return today - timedelta(days=text == "yesterday")
    if relative := _RELATIVE.fullmatch(text):
        return today + timedelta(days=int(relative.group(1)))
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise BadDates from None

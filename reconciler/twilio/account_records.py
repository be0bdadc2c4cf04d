"""Twilio's wire form of subaccounts and usage records, decoded strictly; no I/O."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import NamedTuple

import msgspec

from reconciler.errors import Unavailable


class Account(NamedTuple):
    """One account of a list of accounts. The auth token that Twilio sends with it is never read."""

    sid: str
    status: str  # active, suspended or closed


class Usage(NamedTuple):
    """The calls of a day by Twilio's usage records: how many were billed, and what for. The unit is in capitals."""

    calls: int
    price: Decimal | None
    price_unit: str | None


class _Account(msgspec.Struct, gc=False):
    sid: str
    status: str


class _Accounts(msgspec.Struct, gc=False):
    accounts: list[_Account]
    next_page_uri: str | None = None


class _Usage(msgspec.Struct, gc=False):
    start_date: str
    count: str | None = None
    price: Decimal | None = None  # text or a number; neither passes through a float
    price_unit: str | None = None


class _UsageRecords(msgspec.Struct, gc=False):
    usage_records: list[_Usage]
    next_page_uri: str | None = None


_accounts = msgspec.json.Decoder(_Accounts).decode
_usage = msgspec.json.Decoder(_UsageRecords).decode


def decode_accounts(body: bytes) -> tuple[list[Account], str | None]:
    """Return one page of `Accounts.json` and the URI of the next page (OpenAPI `ListAccount`).

    Raises:
        Unavailable: the body is no such page.

    """
    try:
        page = _accounts(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Unavailable("Twilio's answer is not a list of accounts") from None
    return [Account(account.sid, account.status) for account in page.accounts], page.next_page_uri


def decode_usage(body: bytes) -> tuple[dict[date, Usage], str | None]:
    """Return the records of `Usage/Records/Daily.json` by UTC day, and the URI of the next page.

    The form is that of OpenAPI `ListUsageRecordDaily`.

    Raises:
        Unavailable: the body is no such page.

    """
    try:
        page = _usage(body)
        days = {date.fromisoformat(each.start_date): _read_usage(each) for each in page.usage_records}
        return days, page.next_page_uri
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        raise Unavailable("Twilio's answer is not a list of usage records") from None


def _read_usage(record: _Usage) -> Usage:
    if record.price is not None and not record.price.is_finite():
        raise ValueError("the price is no amount")
    unit = record.price_unit.upper() if record.price_unit else None
    return Usage(int(record.count or 0), record.price if unit else None, unit)

"""Twilio's wire form of subaccounts and usage records, decoded strictly; no I/O."""

from __future__ import annotations

from datetime import date
from typing import NamedTuple

import msgspec

from reconciler.errors import Unavailable


class Account(NamedTuple):
    """One account of a list of accounts. The auth token that Twilio sends with it is never read."""

    sid: str
    status: str  # active, suspended or closed


class _Account(msgspec.Struct, gc=False):
    sid: str
    status: str


class _Accounts(msgspec.Struct, gc=False):
    accounts: list[_Account]
    next_page_uri: str | None = None


class _Usage(msgspec.Struct, gc=False):
    start_date: str
    count: str | None = None


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


def decode_usage(body: bytes) -> tuple[dict[date, int], str | None]:
    """Return the counts of `Usage/Records/Daily.json` by UTC day, and the URI of the next page.

    The form is that of OpenAPI `ListUsageRecordDaily`.

    Raises:
        Unavailable: the body is no such page.

    """
    try:
        page = _usage(body)
        return {
            date.fromisoformat(each.start_date): int(each.count or 0) for each in page.usage_records
        }, page.next_page_uri
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        raise Unavailable("Twilio's answer is not a list of usage records") from None

"""Twilio's wire form of what belongs to an account, decoded strictly: its subaccounts, its usage records; no I/O."""

from __future__ import annotations

from datetime import date
from typing import NamedTuple

import msgspec

from reconciler.errors import Unavailable


class Account(NamedTuple):
    """An account that credentials may list. The auth token that Twilio sends with each is never read."""

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


_accounts = msgspec.json.Decoder(_Accounts).decode
_usage = msgspec.json.Decoder(_UsageRecords).decode


def decode_accounts(body: bytes) -> tuple[list[Account], str | None]:
    """One page of `Accounts.json`, and the URI of the page after it (OpenAPI `ListAccount`).

    Raises:
        Unavailable: this is no such page.

    """
    try:
        page = _accounts(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Unavailable("Twilio's answer is not a list of accounts") from None
    return [Account(account.sid, account.status) for account in page.accounts], page.next_page_uri


def decode_usage(body: bytes) -> dict[date, int]:
    """The counts of `Usage/Records/Daily.json` by UTC day (OpenAPI `ListUsageRecordDaily`).

    Raises:
        Unavailable: these are no such records.

    """
    try:
        return {date.fromisoformat(record.start_date): int(record.count or 0) for record in _usage(body).usage_records}
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        raise Unavailable("Twilio's answer is not a list of usage records") from None

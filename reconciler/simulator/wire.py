"""Twilio's wire forms: dates, formatted numbers, URIs.

Sources: tests/data/real_calls.jsonl for values, twilio/twilio-oai `twilio_api_v2010.json` for names. Inside the
simulator an instant is a whole number of seconds since 1970: Twilio sends whole seconds, and a million calls hold
several instants each.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache

API = "/2010-04-01"
DAY = 86_400

_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_NANP = re.compile(r"\+1([2-9]\d\d)([2-9]\d\d)(\d{4})")


def seconds(at: datetime) -> int:
    """Return the whole second since 1970 that contains `at`."""
    return int(at.timestamp() // 1)


def instant(at: int) -> datetime:
    """Return the aware UTC time of a second since 1970."""
    return datetime.fromtimestamp(at, UTC)


@lru_cache(maxsize=100_000)
def rfc2822(at: int) -> str:
    """Return a date of a call, always in UTC and whole seconds: `Tue, 10 Jun 2026 20:11:27 +0000`."""
    return f"{_timestamp(at)} +0000"


def http_date(at: int) -> str:
    """Return the value of a Date header (RFC 9110, 5.6.7): `Tue, 10 Jun 2026 20:11:27 GMT`."""
    return f"{_timestamp(at)} GMT"


def iso8601(at: int) -> str:
    """Return a date as Twilio's newer APIs, such as Monitor, write it: `2026-06-10T20:11:27Z`."""
    return instant(at).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_rfc2822(text: str) -> int:
    """Return the second since 1970 of an RFC 2822 date."""
    return seconds(parsedate_to_datetime(text))


@lru_cache(maxsize=4096)
def formatted(address: str) -> str:
    """Return `from_formatted`: `(205) 555-0123` for North American numbers, the bare name of a client.

    Every other address is returned unchanged. `+15550000001` is one of them: 555 is no area code.
    """
    if number := _NANP.fullmatch(address):
        area, exchange, line = number.groups()
        return address if area == "555" else f"({area}) {exchange}-{line}"
    return address.removeprefix("client:")


def call_uri(account_sid: str, sid: str) -> str:
    """Return the path of a call without `.json`, the base of its subresources."""
    return f"{API}/Accounts/{account_sid}/Calls/{sid}"


def subresource_uris(base: str) -> dict[str, str]:
    """Return the nine subresources of a call record of June 2026; the set grows over the years."""
    return {
        "events": f"{base}/Events.json",
        "notifications": f"{base}/Notifications.json",
        "payments": f"{base}/Payments.json",
        "recordings": f"{base}/Recordings.json",
        "siprec": f"{base}/Siprec.json",
        "streams": f"{base}/Streams.json",
        "transcriptions": f"{base}/Transcriptions.json",
        "user_defined_message_subscriptions": f"{base}/UserDefinedMessageSubscriptions.json",
        "user_defined_messages": f"{base}/UserDefinedMessages.json",
    }


def _timestamp(at: int) -> str:
    days, rest = divmod(at, DAY)
    minutes, second = divmod(rest, 60)
    hour, minute = divmod(minutes, 60)
    return f"{_day(days)} {hour:02d}:{minute:02d}:{second:02d}"


@lru_cache(maxsize=4096)
def _day(days: int) -> str:
    day = date.fromordinal(_EPOCH_ORDINAL + days)
    return f"{_WEEKDAYS[day.weekday()]}, {day.day:02d} {_MONTHS[day.month - 1]} {day.year:04d}"

"""The values in Twilio's records, read strictly: texts, SIDs, seconds, amounts of money and times; no I/O."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Final

from reconciler.errors import BadObservation
from reconciler.masking import mask
from reconciler.twilio.dates import parse_rfc2822

# The widths of the Viewer's columns (sql/004 and before); from and to are text.
_MAX_LENGTH: Final = {"direction": 50, "price_unit": 10, "answered_by": 100, "from": 100_000, "to": 100_000}
_LONGEST: Final = 2_000
_MAX_SECONDS: Final = 2**31 - 1  # messages.duration is an integer
# Decimal also accepts NaN, underscores, digits of other scripts, and any number of decimals.
_PRICE: Final = re.compile(r"[-+.0-9eE]{1,40}")
_PRICE_EXPONENTS: Final = range(-20, 12)


def read_text(value: str | None, field: str) -> str | None:
    """Return a text that PostgreSQL can store; None if it is empty.

    Raises:
        BadObservation: PostgreSQL cannot store it.

    """
    if not value:
        return None
    if len(value) > (longest := _MAX_LENGTH.get(field, _LONGEST)):
        raise BadObservation(f"{field} is longer than {longest} characters")
    if "\0" in value:
        raise BadObservation(f"{field} holds a NUL, which PostgreSQL cannot store")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadObservation(f"{field} holds half of a surrogate pair") from None
    return value


def read_sid(value: object, form: re.Pattern[str], field: str) -> str | None:
    """Return a SID of that form; None if it is empty.

    Raises:
        BadObservation: it has another form.

    """
    if not value:
        return None
    if not isinstance(value, str) or not form.fullmatch(value):
        raise BadObservation(f"{field} is not {form.pattern[:2]} and 32 hexadecimal digits")
    return value


@lru_cache(maxsize=1024)
def read_seconds(value: str | None) -> int | None:
    """Return a duration in seconds; None if it is empty.

    Raises:
        BadObservation: it is no number of seconds that an integer of PostgreSQL can hold.

    """
    if not value:
        return None
    # isdecimal is also true for digits of other scripts, and int() has a limit on length.
    if not (value.isascii() and value.isdecimal() and len(value) <= 10 and int(value) <= _MAX_SECONDS):
        raise BadObservation(f"duration {quoted(value)} is not a number of seconds")
    return int(value)


@lru_cache(maxsize=1024)
def read_price(value: str | None) -> Decimal | None:
    """Return an amount of money; None if it is empty.

    Raises:
        BadObservation: it is no amount of money.

    """
    if not value:
        return None
    try:
        price = Decimal(value) if _PRICE.fullmatch(value) else None
    except InvalidOperation:
        price = None
    if price is None:
        raise BadObservation(f"price {quoted(value)} is not a number")
    if price.adjusted() not in _PRICE_EXPONENTS:
        raise BadObservation(f"price {quoted(value)} is not an amount of money")
    return price


def read_time(value: str | None, field: str) -> datetime | None:
    """Return a time in Twilio's form; None if it is empty.

    Raises:
        BadObservation: it is no time, or not a credible one.

    """
    if not value:
        return None
    try:
        return parse_rfc2822(value)
    except ValueError:
        raise BadObservation(f"{field} {quoted(value)} is not a plausible date") from None


def quoted(value: str) -> str:
    """Return a value for a reason: short, without phone numbers, and safe for logs, terminals and jsonb."""
    return ascii(mask(value[:100])[:31])

"""Parsers of setting values. A value that breaks a rule is a ValueError that names the rule, never the value."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Final
from urllib.parse import unquote, urlsplit

from reconciler.times import format_duration, parse_duration

_PASSWORD: Final = re.compile(r"://[^/?#]*?:([^/?#]*)@|password\s*=\s*(?:'((?:[^'\\]|\\.)*)'|([^\s&]+))")
_SID: Final = re.compile(r"[A-Z]{2}[0-9a-fA-F]{32}")
# The characters that RFC 3986 allows unencoded. libpq allows more: in `a:b@c@host` it looks for a host `c@host`.
_TEXT_OF_URL: Final = r"(?:[^/?#@%\[\]]|%[0-9A-Fa-f]{2})*"
_HOST: Final = r"(?:\[[^/?#@\]]*\]|[^/?#@:,\[\]]*)(?::[0-9]*)?"
_QUERY: Final = r"\?(?:\w+=[^&#]*(?:&|$))*"
_DATABASE_URL: Final = re.compile(
    rf"postgres(?:ql)?://(?:{_TEXT_OF_URL}@)?{_HOST}(?:,{_HOST})*(?:/{_TEXT_OF_URL}(?:{_QUERY})?|(?!.*@){_QUERY})?"
)


def text_of(value: str) -> str:
    """Accept any text."""
    return value


def sid_of_kind(prefix: str) -> Callable[[str], str]:
    """Return a parser of SIDs that begin with `prefix`."""

    def parse(value: str) -> str:
        if not (_SID.fullmatch(value) and value.startswith(prefix)):
            raise ValueError(f"must be {prefix} and 32 hexadecimal digits")
        return value

    return parse


def http_url(value: str) -> str:
    """Read a base URL; the slash at its end is removed."""
    parts = urlsplit(value)
    is_whole = parts.scheme in ("http", "https") and parts.hostname and _has_port_or_none(value)
    if not is_whole or parts.username or parts.query or parts.fragment:
        raise ValueError("must be http:// or https:// and a host, without credentials")
    return value.rstrip("/")


def is_sent_in_the_open(url: str) -> bool:
    """Whether requests to `url` leave this machine without TLS."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost" or host.endswith(".localhost")
    return parts.scheme == "http" and not is_here


def _has_port_or_none(url: str) -> bool:
    """Whether the port is a number, or missing. A bad port may be part of a password, so no message shows it."""
    try:
        _ = urlsplit(url).port
    except ValueError:
        return False
    return True


def database_url(value: str) -> str:
    """Accept a URL that libpq reads as it is meant, or libpq's key=value form."""
    if _DATABASE_URL.fullmatch(value) or ("=" in value and "://" not in value):
        return value
    if "@" in value and re.match(r"postgres(ql)?://", value):
        # Any part between the slashes may now be a piece of the password, so the message shows none of it.
        raise ValueError(
            "cannot be read: a character of the password has to be percent-encoded (@ is %40, / is %2F, # is %23, "
            "? is %3F, % is %25)"
        )
    raise ValueError("must be postgresql://user@host/database, or libpq's key=value form")


def account_list(value: str) -> tuple[str, ...]:
    """Read `this`, `all`, or account SIDs with commas between."""
    if value in ("this", "all"):
        return (value,)
    sids = tuple(part.strip() for part in value.split(",") if part.strip())
    if not sids or not all(_SID.fullmatch(sid) and sid.startswith("AC") for sid in sids):
        raise ValueError("must be `this`, `all`, or account SIDs (AC and 32 hexadecimal digits) with commas between")
    return sids


def one_of(*names: str) -> Callable[[str], str]:
    """Return a parser that accepts these names in any case and returns them in lower case."""

    def parse(value: str) -> str:
        if value.lower() not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return value.lower()

    return parse


def positive_duration(value: str) -> timedelta:
    """Read a duration that is not zero."""
    duration = parse_duration(value)
    if not duration:
        raise ValueError("must be longer than nothing")
    return duration


def duration_from(shortest: timedelta) -> Callable[[str], timedelta]:
    """Return a parser of durations that are at least `shortest`."""

    def parse(value: str) -> timedelta:
        duration = parse_duration(value)
        if duration < shortest:
            raise ValueError(f"must be {format_duration(shortest)} or more")
        return duration

    return parse


def count(value: str) -> int:
    """Read a whole number from 1 to 100."""
    if not value.isdecimal() or not 1 <= int(value) <= 100:
        raise ValueError("must be a whole number from 1 to 100")
    return int(value)


def workers(value: str) -> int:
    """Read a whole number from 3 to 100: hot, bulk work and the other jobs never wait for one another."""
    if not value.isdecimal() or not 3 <= int(value) <= 100:
        raise ValueError("must be a whole number from 3 to 100")
    return int(value)


def address(value: str) -> tuple[str, int]:
    """Read host and port; without a host it is the loopback address."""
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError("must be host:port, like 127.0.0.1:9464")
    return host.strip("[]") or "127.0.0.1", int(port)


def channel(value: str) -> str:
    """Accept an identifier that needs no quotes in PostgreSQL."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", value):
        raise ValueError("must be a plain PostgreSQL identifier of up to 63 lower-case letters, digits and _")
    return value


def passwords_in(url: str) -> list[str]:
    """Return the passwords in a database's URL or key=value form, both as written and decoded."""
    written = [next(filter(None, groups), "") for groups in _PASSWORD.findall(url)]
    return list({form for text in written for form in (text, unquote(text), re.sub(r"\\(.)", r"\1", text))})

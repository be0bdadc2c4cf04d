"""Keeps phone numbers and secrets out of everything that is shown or logged."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

_LONGEST_URL: Final = 500  # characters: an index of PostgreSQL takes no more than 2,700 bytes of a row

# Phone numbers: digits after a plus, or ten bare digits or more. Digits of a SID, a UUID, a time or a fraction are
# none. In a URL the plus is %2B and the colon %3A.
_PHONE: Final = re.compile(r"(?:\+|%2B)\d{5,17}(?!\d)|(?<![\w.+-])\d{10,15}(?!\w|[.:-]\w)", re.IGNORECASE)


_ADDRESS: Final = re.compile(r"\b((?:sips?|client)(?::|%3A))[^\s\"'<>,;&]+", re.IGNORECASE)

_PERSONS_NAMES: Final = {"caller_name", "CallerName"}  # as a record and a webhook name it

secrets: Final[set[str]] = set()  # of the whole process: every output passes through `redact`


def protect(secret: str) -> None:
    """Make `redact` remove `secret` from now on; one of fewer than four characters is ignored."""
    if len(secret) >= 4:
        secrets.add(secret)


def mask(text: str) -> str:
    """Return `text` without phone numbers, SIP users and client names. The last two digits of a number stay."""
    text = _PHONE.sub(lambda match: f"***{match[0][-2:]}", text)
    return _ADDRESS.sub(lambda match: f"{match[1]}***", text)


def mask_field(name: str, text: str) -> str:
    """Return a value of the field `name` without what `mask` hides; of a person's name nothing is left."""
    return "***" if text and name in _PERSONS_NAMES else mask(text)


def printable(text: str) -> str:
    """Return `text` without control characters: they could move the cursor or set a terminal's title."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)


def redact(text: str) -> str:
    """Return `text` without the secrets given to `protect`."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may be part of another
        text = text.replace(secret, "[secret]")
    return text


def bare_url(url: str) -> str:
    """Scheme, host and path of `url`: its login and query may hold secrets. Of what is no URL nothing is left."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return ""
    if not parts.hostname:
        return ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"[:_LONGEST_URL]

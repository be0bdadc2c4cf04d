"""Requests as the server has read them, answers before it sends them, and Twilio's error bodies.

An error's body is `{"code", "message", "more_info", "status"}` and its code also stands in the header
X-Twilio-Error-Code (https://www.twilio.com/docs/usage/twilios-response).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import msgspec

JSON = "application/json;charset=utf-8"

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. Header names are in lower case; `params` keeps order and repetitions."""

    method: str
    path: str
    params: Sequence[tuple[str, str]]
    headers: Mapping[str, str]

    def param(self, name: str) -> str | None:
        """Return the value of a query parameter, the last one if there are several; None if there is none."""
        return dict(self.params).get(name)

    @property
    def account_sid(self) -> str | None:
        """The account SID in the path; None if the path has none."""
        parts = self.path.removesuffix(".json").split("/")
        return parts[3] if len(parts) > 3 and parts[2] == "Accounts" else None

    @property
    def credentials(self) -> tuple[str, str] | None:
        """User and password of Basic authentication; None if they are missing or unreadable."""
        scheme, _, value = self.headers.get("authorization", "").partition(" ")
        try:
            user, colon, secret = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return (user, secret) if scheme.lower() == "basic" and colon else None

    @property
    def charged_to(self) -> str | None:
        """The account whose concurrent requests this one counts among: the one in the path, else the user."""
        return self.account_sid or (self.credentials or (None,))[0]


class Delivery(Enum):
    """How an answer reaches the client: whole, or broken off in one of three ways."""

    WHOLE = "whole"
    RESET = "the connection is reset before anything is sent"
    RESET_MID_BODY = "the connection is reset after half of the body"
    CLOSED_EARLY = "Content-Length gives the whole body, but the connection closes after half of it"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer. `body` holds its bytes; if it is None, `payload` is encoded as JSON."""

    status: int = 200
    payload: object = field(default=None)
    body: bytes | None = None
    content_type: str = JSON
    headers: Headers = ()
    delivery: Delivery = Delivery.WHOLE

    @property
    def record_count(self) -> int:
        """The number of records on a page of a listing; 0 for a single record and for an error."""
        values = self.payload.values() if isinstance(self.payload, dict) else ()
        return sum(len(value) for value in values if isinstance(value, list))

    def encoded(self) -> bytes:
        """The body's bytes."""
        return self.body if self.body is not None else msgspec.json.encode(self.payload)


def error(status: int, code: int | None, message: str, headers: Headers = ()) -> Answer:
    """Return an error in the API's format; without `code` in the format of some gateways."""
    body: dict[str, object] = {"message": message, "status": status}
    if code is not None:
        body = {"code": code, "message": message, "more_info": f"https://www.twilio.com/docs/errors/{code}",
                "status": status}  # fmt: skip
        headers = (("X-Twilio-Error-Code", str(code)), *headers)
    return Answer(status, body=msgspec.json.encode(body), headers=headers)


def not_authenticated() -> Answer:
    """401/20003: wrong SID, token or key."""
    return error(401, 20003, "Authenticate", (("WWW-Authenticate", 'Basic realm="Twilio API"'),))


def forbidden(code: int = 20403) -> Answer:
    """403: an inactive account (20403, 20005), or a key without the permission (70051)."""
    return error(403, code, "Forbidden")


def not_found(path: str) -> Answer:
    """404/20404: the resource does not exist, or these credentials may not see it."""
    return error(404, 20404, f"The requested resource {path} was not found")


def too_many_requests(retry_after: int | None = None) -> Answer:
    """429/20429: too many concurrent requests of the account; the request was not processed."""
    headers = () if retry_after is None else (("Retry-After", str(retry_after)),)
    return error(429, 20429, "Too Many Requests", headers)

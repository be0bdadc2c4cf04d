"""The HTTP client under the official SDK: pooled, with timeouts, and bound to Twilio's hosts.

The SDK's own client has no timeout by default, and returns only text. This one keeps the body as bytes, bounds every
wait, follows no redirect and keeps no cookie. It sends credentials only to the hosts it was made for: it refuses any
other host before sending, even if a `next_page_uri` names it.
"""

from __future__ import annotations

import logging
import re
import socket
import time
from http.cookiejar import DefaultCookiePolicy
from io import BytesIO
from typing import Any, Final
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from twilio.http import HttpClient
from twilio.http.response import Response

from reconciler.errors import ConnectionLost, TwilioAnswerError, Unavailable

CONNECT_TIMEOUT: Final = 5.0  # seconds
READ_TIMEOUT: Final = 30.0  # seconds without a byte; Twilio's own limit for an answer is reported as about 26
TOTAL_TIMEOUT: Final = 90.0  # seconds for a whole answer, so that a slow trickle cannot block a run for ever
_CHUNK: Final = 1 << 16
LARGEST_BODY: Final = 64 << 20  # bytes; a page of 1,000 calls is about 2 MiB

# The status is only in http.client's message, which is in English on every machine.
_TUNNEL_REFUSED: Final = re.compile(r"Tunnel connection failed: (\d{3})")


class Answer(Response):
    """The SDK's response, with the body as bytes."""

    def __init__(self, status_code: int, body: bytes, headers: Any) -> None:
        super().__init__(status_code, "", headers)
        self.body = body

    @property
    def text(self) -> str:
        """The body as text, for error messages."""
        return self.body.decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"<Answer {self.status_code}, {len(self.body)} bytes>"


class Transport(HttpClient):
    """An HTTP client that sends requests to `origins` (scheme, host and port of each) only.

    Raises, from `request`:
        ConnectionLost: the connection was refused, reset or closed.
        Unavailable: there was no answer in time, or a proxy refused.
        TwilioAnswerError: the request was for another host; it was not sent.

    """

    def __init__(
        self,
        *origins: str,
        connections: int,
        read_timeout: float = READ_TIMEOUT,
        total_timeout: float = TOTAL_TIMEOUT,
        largest_body: int = LARGEST_BODY,
    ) -> None:
        # The SDK's request log would hold URLs, with phone numbers in filters.
        super().__init__(logging.getLogger("reconciler.twilio.transport"), is_async=False)
        self._origins = frozenset(map(_origin, origins))
        self._read_timeout = read_timeout
        self._total_timeout = total_timeout
        self._largest_body = largest_body
        self._session = requests.Session()
        for origin in origins:
            self._session.mount(origin, HTTPAdapter(pool_maxsize=connections))
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def request(
        self,
        method: str,
        uri: str,
        params: dict[str, object] | None = None,
        data: dict[str, object] | None = None,
        headers: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout: float | None = None,
        allow_redirects: bool = False,  # noqa: ARG002 -- the SDK's signature; redirects are never followed
    ) -> Answer:
        """Send one request and return its whole answer."""
        origin = _origin(uri)
        if origin not in self._origins:
            raise TwilioAnswerError(f"refused to send credentials to {urlsplit(uri).hostname}")
        deadline = time.monotonic() + self._total_timeout
        try:
            with self._session.request(
                method, uri, params=params, data=data, headers=headers, auth=auth,  # type: ignore[arg-type]
                timeout=(CONNECT_TIMEOUT, timeout or self._read_timeout), allow_redirects=False, stream=True,
            ) as response:  # fmt: skip
                return Answer(response.status_code, self._body(response, deadline), response.headers)
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            raise Unavailable("no answer in time", hint=_whereabouts(origin)) from None
        # The messages of these errors hold the URL, perhaps with a phone number, so only the kind is shown.
        except requests.exceptions.SSLError as exc:
            raise Unavailable(f"TLS failed: {_cause(exc)}", hint=_whereabouts(origin)) from None
        except (requests.ConnectionError, urllib3.exceptions.ProtocolError, urllib3.exceptions.SSLError) as exc:
            if status := _TUNNEL_REFUSED.search(str(exc)):
                raise _refusal_of_proxy(origin, status[1]) from None
            raise ConnectionLost(f"the connection failed: {_cause(exc)}", hint=_whereabouts(origin)) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as exc:
            raise Unavailable(f"the request failed: {type(exc).__name__}") from None

    def close(self) -> None:
        """Close the pooled connections."""
        self._session.close()

    def _body(self, response: requests.Response, deadline: float) -> bytes:
        body = BytesIO()
        # read1 returns the bytes that have arrived. read, and therefore iter_content, waits for a whole chunk: a slow
        # trickle would never reach the deadline check.
        while chunk := response.raw.read1(_CHUNK, decode_content=True):
            body.write(chunk)
            if time.monotonic() > deadline:
                raise Unavailable("the answer did not end in time")
            if body.tell() > self._largest_body:
                raise Unavailable("the answer is larger than any page of Twilio's")
        return body.getvalue()


# The usual reasons why there is no connection.
_IN_WORDS: Final = {
    "ConnectionRefusedError": "connection refused",
    "ConnectionResetError": "connection reset",
    "NameResolutionError": "the name of the host is unknown",
    "RemoteDisconnected": "closed without an answer",
}

_Origin = tuple[str, str | None, int | None]


def _origin(uri: str) -> _Origin:
    parts = urlsplit(uri)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


def _whereabouts(origin: _Origin) -> str:
    host = f"{origin[1]}, by way of {origin[0]}_proxy if it is set"
    return f"can this machine reach {host}? TWILIO_BASE_URL, TWILIO_REGION and TWILIO_EDGE say whom to ask"


def _refusal_of_proxy(origin: _Origin, status: str) -> Unavailable:
    setting = f"{origin[0].upper()}_PROXY"
    login = ": it wants a login" if status == "407" else ""
    return Unavailable(
        f"the proxy in {setting} refused the connection: HTTP {status}{login}",
        hint=f"correct {setting}, or let NO_PROXY name {origin[1]}",
    )


def _cause(exc: BaseException) -> str:
    """Return the innermost cause: `connection reset`, or the kind of an exception without words of ours."""
    inner: BaseException = exc
    while True:
        nested = getattr(inner, "reason", None)
        if not isinstance(nested, BaseException):
            nested = next((a for a in inner.args if isinstance(a, BaseException)), inner.__cause__)
        if nested is None or isinstance(nested, socket.gaierror):  # NameResolutionError says more
            kind = type(inner).__name__
            return _IN_WORDS.get(kind, kind)
        inner = nested

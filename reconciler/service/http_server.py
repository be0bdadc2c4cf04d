"""The HTTP server: `/metrics`, `/healthz` (alive), `/readyz` (working, or why not), and `/`, the status page.

Monitoring is answered from memory: a scrape counts nothing and asks no database. The status page asks the database, at
most once every few seconds, however often it is reloaded.
"""

from __future__ import annotations

import io
import ipaddress
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from reconciler import metrics
from reconciler.errors import ConfigError, ReconcilerError, Unavailable
from reconciler.logs import get_logger
from reconciler.masking import redact
from reconciler.service.http_arrivals import MOST_ARRIVING, Arrivals
from reconciler.status.verdict import Verdict

_TEXT: Final = "text/plain; charset=utf-8"
_PAGE_WAITS: Final = 1.0  # seconds, for another request that makes it
_NO_HEADERS: Final[Mapping[str, str]] = {}

log = get_logger(__name__)


class Health(NamedTuple):
    """The daemon's health: whether it is alive, whether it does its work, and the reason in words."""

    is_alive: bool
    is_ready: bool
    reason: str
    verdict: Verdict = Verdict.NOT_WORKING


class StatusPage(NamedTuple):
    """The functions that make the status page, and its Content-Security-Policy.

    If `read` raises an error, `explain` makes the page for it, which is served with status 503.
    """

    read: Callable[[], str]
    security_policy: str
    explain: Callable[[ReconcilerError], str]
    lasts: float = 5.0  # seconds


class Web:
    """The HTTP server. Each request calls `health`; `status_page` is read at most every few seconds."""

    def __init__(self, address: tuple[str, int], *, health: Callable[[], Health], status_page: StatusPage) -> None:
        """Bind the address.

        Raises:
            ConfigError: the address cannot be bound.

        """
        host, port = address
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server(address, family=family, backlog=MOST_ARRIVING)
        except OSError as exc:
            raise ConfigError(
                f"RECONCILER_HTTP_LISTEN: cannot listen on {host}:{port}: {os.strerror(exc.errno or 0)}",
                hint="another process may use the port; without the setting nothing listens",
            ) from None
        self.port: int = self._listener.getsockname()[1]
        is_local = ipaddress.ip_address(self._listener.getsockname()[0]).is_loopback
        site = _Site(health, _CachedPage(status_page), own_names(host), is_local)
        self._arrivals = Arrivals(self._listener, lambda sock, head: _Handler(sock, head, site).answer())
        self._thread = threading.Thread(target=self._arrivals.serve, name="web", daemon=True)

    def start(self) -> None:
        """Start serving in a thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._arrivals.stop()
        if self._thread.ident is not None:
            self._thread.join()
        self._listener.close()


def own_names(host: str) -> frozenset[str]:
    """Return the host names that a request may use for us; addresses are always allowed.

    A web page can make its own name resolve to 127.0.0.1, so that a browser on this machine reads our answers for it
    (DNS rebinding). It cannot make the browser send another Host header than its own name.
    """
    return frozenset(name.lower() for name in ("localhost", host, socket.gethostname(), socket.getfqdn()))


class _CachedPage:
    """The status page, made again after a few seconds at the earliest: reloading must not load the database."""

    def __init__(self, status_page: StatusPage) -> None:
        self.security_policy = status_page.security_policy
        self.explain = status_page.explain
        self._make = status_page.read
        self._lasts = status_page.lasts
        self._read_at = -math.inf
        self._page: bytes | ReconcilerError = Unavailable("the page is being made: try again")
        self._reading = threading.Lock()

    def read(self) -> bytes:
        """Return the page, at most a few seconds old.

        Raises:
            ReconcilerError: the database does not answer.

        """
        # A slow database occupies one handler. The others show the last page, or answer monitoring.
        if self._reading.acquire(timeout=_PAGE_WAITS):
            try:
                if time.monotonic() - self._read_at > self._lasts:
                    self._page = self._made()
                    self._read_at = time.monotonic()
            finally:
                self._reading.release()
        page = self._page
        if isinstance(page, ReconcilerError):
            raise page
        return page

    def _made(self) -> bytes | ReconcilerError:
        try:
            return self._make().encode()
        except ReconcilerError as exc:
            return exc


class _Site(NamedTuple):
    """The sources of every answer."""

    health: Callable[[], Health]
    page: _CachedPage
    names: frozenset[str]
    is_local: bool  # only this machine can reach us


class _Handler(BaseHTTPRequestHandler):
    """Answers one request that has arrived completely; the answer is sent in one piece."""

    server_version = "reconciler"
    sys_version = ""

    def __init__(self, sock: socket.socket, head: bytes, site: _Site) -> None:
        self._sock, self._site = sock, site
        self._answered = io.BytesIO()
        self.rfile, self.wfile = io.BytesIO(head), self._answered

    def answer(self) -> None:
        """Answer the request within the socket's timeout."""
        self.handle_one_request()
        self._sock.sendall(self._answered.getvalue())

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        # If other machines can reach us anyway, monitoring may use the name of a service or of a load balancer.
        is_checked = self._site.is_local or path == "/"
        if is_checked and not _is_own(self.headers.get("Host"), self._site.names):
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, _TEXT, b"ask by an address or a name of this machine\n")
            return
        health = self._site.health()
        match path:
            case "/metrics":
                self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(metrics.REGISTRY))
            case "/healthz":
                status = HTTPStatus.OK if health.is_alive else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(status, _TEXT, b"alive\n" if health.is_alive else f"{health.reason}\n".encode())
            case "/readyz":
                status = HTTPStatus.OK if health.is_ready else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(status, _TEXT, f"{health.reason}\n".encode())
            case "/":
                self._show_status_page()
            case _:
                self._answer(HTTPStatus.NOT_FOUND, _TEXT, b"there are /, /metrics, /healthz and /readyz\n")

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _show_status_page(self) -> None:
        try:
            page = self._site.page.read()
        except ReconcilerError as exc:
            self._answer_page(HTTPStatus.SERVICE_UNAVAILABLE, redact(self._site.page.explain(exc)).encode())
        except Exception as exc:
            log.exception("program.failed", kind=type(exc).__name__)
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, b"a bug; the log says more\n")
        else:
            self._answer_page(HTTPStatus.OK, page)

    def _answer_page(self, status: HTTPStatus, page: bytes) -> None:
        policy = {"Content-Security-Policy": self._site.page.security_policy}
        self._answer(status, "text/html; charset=utf-8", page, policy)

    def _answer(
        self, status: HTTPStatus, content_type: str, body: bytes, headers: Mapping[str, str] = _NO_HEADERS
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing: a scrape every few seconds is no event."""


def _is_own(host: str | None, names: frozenset[str]) -> bool:
    """Whether a Host header is an address or one of our names. None is allowed: some probes send no Host."""
    if host is None:
        return True
    name = urlsplit(f"//{host}").hostname or ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in names
    return True

"""What is asked over HTTP: `/metrics`, `/healthz` (alive), `/readyz` (working, or why not), and `/` by people.

What monitoring asks is answered from memory: nothing is counted, and no database asked, because somebody scrapes. The
status page asks the database, at most once every few seconds, whoever reloads it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from reconciler import metrics
from reconciler.errors import ConfigError, ReconcilerError
from reconciler.logs import get_logger
from reconciler.masking import mask, redact

_TEXT: Final = "text/plain; charset=utf-8"
_PAGE_LASTS: Final = 5.0  # seconds
_NO_HEADERS: Final[Mapping[str, str]] = {}

log = get_logger(__name__)


class Health(NamedTuple):
    """How the daemon is: whether it turns, whether it does its work, and in words why not."""

    is_alive: bool
    is_ready: bool
    reason: str


class StatusPage(NamedTuple):
    """How to make the page for people, and the Content-Security-Policy it is served with."""

    read: Callable[[], str]
    security_policy: str


class Web:
    """Serves while it is open; `health` is asked for each request, `status_page` at most every few seconds."""

    def __init__(self, address: tuple[str, int], *, health: Callable[[], Health], status_page: StatusPage) -> None:
        """Bind the address.

        Raises:
            ConfigError: it cannot be bound.

        """
        try:
            self._server = _Server(address, health, status_page)
        except OSError as exc:
            host, port = address
            raise ConfigError(
                f"RECONCILER_HTTP_LISTEN: {host}:{port} cannot be listened on: {exc.strerror}",
                hint="another process may have it; or leave the setting out",
            ) from None
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="web", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], health: Callable[[], Health], status_page: StatusPage) -> None:
        self.health = health
        self._status_page = status_page
        self._read_at = -_PAGE_LASTS
        self._page: bytes | ReconcilerError = b""
        self._reading = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    @property
    def security_policy(self) -> str:
        return self._status_page.security_policy

    def status_page(self) -> bytes:
        """The page, or the reason why there is none, of now or a few seconds ago: impatience must not become load.

        Raises:
            ReconcilerError: the database does not answer.

        """
        with self._reading:
            if time.monotonic() - self._read_at > _PAGE_LASTS:
                try:
                    self._page = self._status_page.read().encode()
                except ReconcilerError as exc:
                    self._page = exc
                self._read_at = time.monotonic()
            if isinstance(self._page, ReconcilerError):
                raise self._page
            return self._page

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever hung up in the middle of an answer is no matter of ours."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10  # seconds for a request to arrive
    server_version = "reconciler"
    sys_version = ""

    def do_GET(self) -> None:
        health = self.server.health()
        match self.path.partition("?")[0]:
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
            page = self.server.status_page()
        except ReconcilerError as exc:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{mask(redact(str(exc)))}\n".encode())
        except Exception as exc:
            log.exception("program.failed", kind=type(exc).__name__)
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, b"a bug; the log says more\n")
        else:
            policy = {"Content-Security-Policy": self.server.security_policy}
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", page, policy)

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
        """A scrape every few seconds is no event."""

"""What monitoring asks over HTTP: `/metrics`, `/healthz` (alive) and `/readyz` (working, or why not).

Answers come from memory: nothing is counted, and no database asked, because somebody scrapes.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from reconciler import metrics
from reconciler.errors import ConfigError

_TEXT: Final = "text/plain; charset=utf-8"


class Health(NamedTuple):
    """How the daemon is: whether it turns, whether it does its work, and in words why not."""

    is_alive: bool
    is_ready: bool
    reason: str


class Web:
    """Serves while it is open; `health` is asked for each request."""

    def __init__(self, address: tuple[str, int], *, health: Callable[[], Health]) -> None:
        """Bind the address.

        Raises:
            ConfigError: it cannot be bound.

        """
        try:
            self._server = _Server(address, health)
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

    def __init__(self, address: tuple[str, int], health: Callable[[], Health]) -> None:
        self.health = health
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

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
            case _:
                self._answer(HTTPStatus.NOT_FOUND, _TEXT, b"there are /metrics, /healthz and /readyz\n")

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """A scrape every few seconds is no event."""

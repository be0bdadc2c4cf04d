"""HTTP/1.1 over sockets: reads requests, sends answers, and breaks the connection where a fault asks for it.

The server understands what a client of a JSON API sends: a request line, headers, a body with Content-Length.
"""

from __future__ import annotations

import gzip
import socket
import socketserver
import ssl
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote, urlsplit

from reconciler.simulator.messages import Answer, Delivery, Headers, Request

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
MAX_BODY = 1_000_000

Application = Callable[[Request], tuple[Answer, Headers, bool]]


class HttpServer(socketserver.ThreadingTCPServer):
    """A server of one application on loopback, with a thread for each connection. With `tls` it speaks HTTPS."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, application: Application, tls: ssl.SSLContext | None) -> None:
        self.application = application
        self.tls = tls
        self.errors: list[Exception] = []
        self.connections = 0  # since the start
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Connection)

    def opened(self, connection: socket.socket) -> None:
        """Count a connection and remember it, so that `close_connections` can close it."""
        with self._lock:
            self.connections += 1
            self._open.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """Forget a connection."""
        with self._lock:
            self._open.discard(connection)

    def close_connections(self) -> None:
        """Close every connection, idle or not, so that its thread ends."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):  # the client may have closed it first
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 -- socketserver's
        """Keep an exception for the test to see, except when the client closed its connection."""
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self.errors.append(error)


class _Connection(socketserver.StreamRequestHandler):
    server: HttpServer
    disable_nagle_algorithm = True

    def setup(self) -> None:
        if self.server.tls is not None:
            # In this thread, not where connections are accepted: a slow handshake must not delay other clients.
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        self.server.opened(self.request)
        super().setup()

    def handle(self) -> None:
        while (request := self._read()) is not None:
            answer, headers, compress = self.server.application(request)
            if not self._send(answer, headers, compress, head_only=request.method == "HEAD"):
                return
            if request.headers.get("connection", "").lower() == "close":
                return

    def finish(self) -> None:
        self.server.closed(self.request)
        super().finish()
        self.request.close()

    def _read(self) -> Request | None:
        """Return the next request; None if the client closed the connection or does not speak HTTP."""
        line = self.rfile.readline(65_537).decode("latin-1").split()
        if len(line) != 3:
            return None
        headers: dict[str, str] = {}
        while field := self.rfile.readline(65_537).decode("latin-1").rstrip("\r\n"):
            name, _, value = field.partition(":")
            headers[name.lower()] = value.strip()
        if length := int(headers.get("content-length", 0)):
            self.rfile.read(min(length, MAX_BODY))
        url = urlsplit(line[1])
        return Request(line[0], unquote(url.path), parse_qsl(url.query, keep_blank_values=True), headers)

    def _send(self, answer: Answer, headers: Headers, compress: bool, *, head_only: bool) -> bool:
        """Send an answer; return False if the connection is over."""
        if answer.delivery is Delivery.RESET:
            return self._reset()
        body = answer.encoded()
        if compress and body:
            body = gzip.compress(body, 1, mtime=0)
            headers = (*headers, ("Content-Encoding", "gzip"))
        lines = [f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Status')}"]
        lines.append(f"Content-Type: {answer.content_type}")
        lines.append(f"Content-Length: {len(body)}")
        lines.extend(f"{name}: {value}" for name, value in (*answer.headers, *headers))
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        match answer.delivery:
            case Delivery.RESET_MID_BODY:
                self.wfile.write(body[: len(body) // 2])
                return self._reset()
            case Delivery.CLOSED_EARLY:
                self.wfile.write(body[: len(body) // 2])
                return False
            case _:
                self.wfile.write(b"" if head_only else body)
                return True

    def _reset(self) -> bool:
        """Make the close a reset for the client: SO_LINGER of zero discards the unsent bytes."""
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        return False

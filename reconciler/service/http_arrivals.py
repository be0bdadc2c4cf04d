"""Accepts HTTP connections, and passes on each once its request has arrived: a slow client occupies no thread.

| limit | value | what happens beyond |
| --- | --- | --- |
| connections whose request has not arrived | 128 | the oldest is closed |
| time for the head of a request | 5 s | the connection is closed |
| size of the head | 8 KiB | the connection is closed |
| requests being answered or waiting for that | 32 | the connection is closed |
| requests being answered | 8 | the next ones wait |
| time to take the answer | 5 s | the connection is closed |

Requests have no body here: bytes after the head are not read.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

MOST_ARRIVING: Final = 128
ARRIVES_WITHIN: Final = 5.0  # seconds
LONGEST_HEAD: Final = 8192  # bytes
MOST_QUEUED: Final = 32
HANDLERS: Final = 8
TAKEN_WITHIN: Final = 5.0  # seconds

Answer = Callable[[socket.socket, bytes], None]


class Arrivals:
    """Accepts connections and calls `answer`, in one of a few threads, with each connection and its request's head.

    The connection is closed after `answer` returns.
    """

    def __init__(self, listener: socket.socket, answer: Answer) -> None:
        self._listener = listener
        self._answer = answer
        self._arriving: dict[socket.socket, tuple[float, bytearray]] = {}  # deadline and bytes so far; oldest first
        self._queued = threading.BoundedSemaphore(MOST_QUEUED)
        self._selector = selectors.DefaultSelector()
        self._stopped, self._stop = socket.socketpair()
        self._handlers = ThreadPoolExecutor(HANDLERS, thread_name_prefix="http")

    def serve(self) -> None:
        """Serve until `stop`."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._stopped, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in self._selector.select(timeout=1.0)]
            if self._stopped in ready:
                break
            for found in ready:
                if found is self._listener:
                    self._accept()
                elif isinstance(found, socket.socket) and found in self._arriving:
                    self._read(found)
            self._close_late()
        for sock in [*self._arriving]:
            self._forget(sock).close()
        self._selector.close()
        self._stopped.close()
        self._handlers.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """Make `serve` return; may be called from any thread."""
        self._stop.close()

    def _accept(self) -> None:
        with suppress(OSError):  # the client was gone before we accepted
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            while len(self._arriving) >= MOST_ARRIVING:
                self._forget(next(iter(self._arriving))).close()
            self._arriving[sock] = time.monotonic() + ARRIVES_WITHIN, bytearray()
            self._selector.register(sock, selectors.EVENT_READ)

    def _read(self, sock: socket.socket) -> None:
        head = self._arriving[sock][1]
        try:
            part = sock.recv(LONGEST_HEAD)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        head += part
        if b"\r\n\r\n" in head or b"\n\n" in head:
            self._hand_on(self._forget(sock), bytes(head))
        elif not part or len(head) > LONGEST_HEAD:
            self._forget(sock).close()

    def _hand_on(self, sock: socket.socket, head: bytes) -> None:
        if not self._queued.acquire(blocking=False):
            sock.close()
            return
        sock.settimeout(TAKEN_WITHIN)
        self._handlers.submit(self._handle, sock, head)

    def _handle(self, sock: socket.socket, head: bytes) -> None:
        try:
            with sock, suppress(OSError):  # a client may hang up in the middle of an answer
                self._answer(sock, head)
                sock.shutdown(socket.SHUT_WR)
        finally:
            self._queued.release()

    def _close_late(self) -> None:
        now = time.monotonic()
        for sock in [sock for sock, (deadline, _) in self._arriving.items() if deadline < now]:
            self._forget(sock).close()

    def _forget(self, sock: socket.socket) -> socket.socket:
        del self._arriving[sock]
        self._selector.unregister(sock)
        return sock

"""A proxy before PostgreSQL that counts statements, and kills the process that sends them at a chosen one.

PostgreSQL's protocol ends a statement with Query, Sync or CopyDone. The kill comes at one of these moments:
- before the n-th statement reaches the server;
- right behind it, while the server is at work on it;
- when the server has answered it and the process has not heard of it yet.

The program itself has no code for this.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from psycopg.conninfo import conninfo_to_dict, make_conninfo

Moment = Literal["before", "behind", "answered"]

PATIENCE = 60.0  # seconds until a process that does not end counts as hanging

# One server of processes for all: what it has imported they need not.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([
    "reconciler.cli.main", "reconciler.cli.backfill", "reconciler.cli.jobs", "reconciler.database.migrate",
    "reconciler.service.daemon", "reconciler.service.fleet", "reconciler.service.fleet_backfill",
    "tests.bench.servers", "tests.harness.databases", "tests.database.migration.conftest",
])  # fmt: skip

_ENDS = b"QSc"  # Query, Sync, CopyDone
_PARTS = b"PBDECHdf"  # go with the end that follows


class Proxy:
    """Stands before the server; counts the statements of all its connections, and kills `victim` at the `at`-th.

    Statements that `counts` says no to are let through and not counted: how many there are may be a matter of time.
    """

    def __init__(
        self,
        server_url: str,
        *,
        at: int | None = None,
        moment: Moment = "before",
        counts: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self.statements: list[str] = []
        self.victim: BaseProcess | None = None
        self.victim_known = threading.Event()
        self._at = at
        self._moment = moment
        self._counts = counts
        self._counting = threading.Lock()
        server = conninfo_to_dict(server_url)
        host, port = str(server.get("host") or "localhost"), str(server.get("port") or "5432")
        self._upstream: Any = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = make_conninfo(
            server_url, host="127.0.0.1", port=self._listener.getsockname()[1], sslmode="disable", gssencmode="disable"
        )
        self._connections: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and wait until every connection has ended, which is for its client to do."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._thread, *self._connections):
            thread.join(PATIENCE)

    def kill(self) -> None:
        """Kill the victim. The process that started it waits for its end."""
        assert self.victim_known.wait(PATIENCE)
        assert self.victim is not None
        assert self.victim.pid is not None
        with suppress(ProcessLookupError):  # it came to its end meanwhile
            os.kill(self.victim.pid, signal.SIGKILL)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=_Connection(self, client).relay, daemon=True)
                self._connections.append(thread)
                thread.start()

    def _is_the_one(self, text: str) -> bool:
        """Count a statement; whether it is the one to die at."""
        if not self._counts(text):
            return False
        with self._counting:
            self.statements.append(text)
            return len(self.statements) == self._at


class _Connection:
    """One client and its connection to the server."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = socket.socket(socket.AF_UNIX if isinstance(proxy._upstream, str) else socket.AF_INET)
        self._prepared: dict[bytes, bytes] = {}
        self._text = b""
        self._is_dead = False
        self._dies_when_answered = False

    def relay(self) -> None:
        """Relay until one side ends, or the victim is killed.

        The server's session has ended before its client hears of it: the locks it held are free by then.
        """
        with self._client, self._server:
            self._server.connect(self._proxy._upstream)
            answers = threading.Thread(target=self._relay_answers, daemon=True)
            answers.start()
            with suppress(OSError, EOFError):
                self._relay_questions()
            with suppress(OSError):
                self._server.shutdown(socket.SHUT_WR)
            answers.join(PATIENCE)
            with suppress(OSError):
                self._client.shutdown(socket.SHUT_RDWR)

    def _relay_questions(self) -> None:
        (length,) = struct.unpack("!I", start := _exactly(self._client, 4))
        self._server.sendall(start + _exactly(self._client, length - 4))
        batch = b""
        while True:
            head = _exactly(self._client, 5)
            body = _exactly(self._client, struct.unpack("!I", head[1:])[0] - 4)
            kind = head[:1]
            batch += head + body
            self._note(kind, body)
            if kind in _PARTS:
                continue
            # libpq sends a Sync behind a CopyDone of the extended protocol; there is nothing left to die at.
            text = " ".join(self._text.decode().split())
            if kind in _ENDS and text and self._proxy._is_the_one(text):
                self._dies_when_answered = self._proxy._moment == "answered"
                if self._proxy._moment != "before":
                    self._server.sendall(batch)
                if not self._dies_when_answered:
                    self._is_dead = True
                    self._proxy.kill()
                    while self._client.recv(65_536):  # its end closes the connection
                        pass
                    return
            else:
                self._server.sendall(batch)
            batch, self._text = b"", b""

    def _note(self, kind: bytes, body: bytes) -> None:
        """Know what the batch will execute: a statement prepared before is sent by its name alone."""
        match kind:
            case b"Q":
                self._text = body.rstrip(b"\0")
            case b"P":
                name, query, _ = body.split(b"\0", 2)
                self._prepared[name] = query
            case b"B":
                _, name, _ = body.split(b"\0", 2)
                self._text = self._prepared.get(name, b"")
            case b"c":
                self._text = b"(end of the copy)"
            case _:
                pass

    def _relay_answers(self) -> None:
        with suppress(OSError):
            while (part := self._server.recv(65_536)) and not self._is_dead:
                if self._dies_when_answered:
                    self._proxy.kill()
                    break
                self._client.sendall(part)
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_WR)
            while self._server.recv(65_536):  # its end closes the connection
                pass
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (part := sock.recv(size - len(data))):
            raise EOFError
        data += part
    return data

"""A way to the database that a test can cut."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Link:
    """A way to the database that can be cut: a socket that forwards bytes."""

    def __init__(self, url: str, folder: Path) -> None:
        self.lead_to(url)
        self._path = folder / ".s.PGSQL.5432"
        self.url = make_conninfo(url, host=str(folder), port=5432)
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()

    def lead_to(self, url: str) -> None:
        """Lead new connections to the server of `url`, as an endpoint does after a failover; old ones stay."""
        to = conninfo_to_dict(url)
        host, port = str(to.get("host", "localhost")), int(to.get("port") or 5432)
        self._target: Any = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
        self._family = socket.AF_UNIX if host.startswith("/") else socket.AF_INET

    def up(self) -> None:
        """Make the database reachable."""
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._path.chmod(0o777)
        self._listener.listen(64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def down(self) -> None:
        """Cut every connection and accept no new one."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self._path.unlink(missing_ok=True)
        for sock in list(self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                ours, _ = listener.accept()
            except OSError:
                return
            theirs = socket.socket(self._family)
            theirs.connect(self._target)
            self._open |= {ours, theirs}
            for one, other in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65_536):
                other.sendall(data)
        for sock in (one, other):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._open.discard(one)
        one.close()

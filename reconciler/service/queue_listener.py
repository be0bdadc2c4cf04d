"""The listener of a daemon's engine: PostgreSQL notifies it at once that bulk work was put into the queue.

Design rules
- procrastinate's own listener takes a connection more for each daemon. Ours listens on the engine's one connection.
- psycopg reads a connection only while a statement runs there. Between statements the event loop watches a duplicate of
  the socket's number, because psycopg itself registers and removes the number.
- A notification that is lost does no harm: the daemon asks for tasks every second anyway.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import pq

from reconciler.database import connection as db

_queries = db.load_queries("engine")


class QueueListener:
    """Calls `on_task`, in the event loop, when a task was put into the queue of bulk work. It has one connection."""

    def __init__(self, on_task: Callable[[], None]) -> None:
        self._on_task = on_task
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: int | None = None

    async def listen(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Listen on this connection from now on, in place of the one before.

        Raises:
            psycopg.Error: the connection broke.

        """
        self.close()
        await conn.execute(_queries["listen"])
        conn.add_notify_handler(lambda _: self._on_task())  # for notifications that come with the result of a statement
        self._loop, self._socket = asyncio.get_running_loop(), os.dup(conn.fileno())
        self._loop.add_reader(self._socket, self._read, conn.pgconn)

    def close(self) -> None:
        """Listen no more."""
        socket, self._socket = self._socket, None
        if socket is not None:
            if self._loop is not None:
                self._loop.remove_reader(socket)
            os.close(socket)

    def _read(self, conn: pq.abc.PGconn) -> None:
        if conn.transaction_status == pq.TransactionStatus.ACTIVE:
            return  # psycopg reads the result of a statement
        try:
            conn.consume_input()
            while conn.notifies() is not None:
                self._on_task()
        except psycopg.Error:
            self.close()  # the connection broke: its next user replaces it

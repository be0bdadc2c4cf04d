"""Messages to systemd, as sd_notify(3) defines them: ready, reloading, stopping, alive, and a line of status.

A message is a datagram of `NAME=value` lines to the socket that $NOTIFY_SOCKET names. A process that systemd did not
start has no such socket, and sends nothing. An error in sending is ignored. If the socket has vanished or is full, the
daemon goes on, and systemd notices the missing messages by itself.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Self

from reconciler.masking import printable

_MICROSECOND: Final = timedelta(microseconds=1)
_STATUS_BYTES: Final = 1024  # systemd drops a whole message above PIPE_BUF (4096 bytes), and READY=1 with it


@dataclass(frozen=True, slots=True)
class Notifier:
    """Sends the daemon's state to systemd. Without an `address` every method does nothing. Threads may share one.

    `address` is an absolute path or, after an `@`, a name in the abstract namespace. If systemd receives no `alive` for
    as long as `watchdog`, it takes the daemon for hung; send it every half of that (sd_watchdog_enabled(3)).
    """

    address: str | None
    watchdog: timedelta | None
    send_timeout: timedelta = timedelta(seconds=5)  # for a full socket; the message is then lost, the daemon goes on

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Return the notifier for $NOTIFY_SOCKET (sd_notify(3)) and $WATCHDOG_USEC (sd_watchdog_enabled(3)).

        `watchdog` is None if $WATCHDOG_PID names another process, or if the time cannot be read.
        """
        microseconds = environ.get("WATCHDOG_USEC", "")
        is_ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        is_set = microseconds.isascii() and microseconds.isdecimal() and 0 < int(microseconds) < 2**63
        return cls(
            environ.get("NOTIFY_SOCKET") or None,
            timedelta(microseconds=int(microseconds)) if is_ours and is_set else None,
        )

    def ready(self, status: str) -> None:
        """Report that the start, or a reload, is complete: READY=1. The watchdog runs from now on."""
        self._tell("READY=1", _status(status))

    def status(self, text: str) -> None:
        """Send the line that `systemctl status` shows: STATUS=. A long line is cut."""
        self._tell(_status(text))

    def reloading(self) -> None:
        """Report that the settings are being read again: RELOADING=1. `ready` must follow.

        The message carries the time on CLOCK_MONOTONIC: Type=notify-reload tells reloads apart by it.
        """
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, status: str) -> None:
        """Report that the daemon is stopping: STOPPING=1."""
        self._tell("STOPPING=1", _status(status))

    def alive(self) -> None:
        """Report that the daemon makes progress: WATCHDOG=1."""
        self._tell("WATCHDOG=1")

    def extend_timeout(self, duration: timedelta) -> None:
        """Ask for more time to start or stop: EXTEND_TIMEOUT_USEC=.

        systemd waits at least `duration` from now. Without another message in that time it takes the daemon for hung.
        """
        self._tell(f"EXTEND_TIMEOUT_USEC={duration // _MICROSECOND}")

    def _tell(self, *assignments: str) -> None:
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        # Each message has a socket of its own, as in libsystemd: no state to keep, share or repair.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(self.send_timeout.total_seconds())
            sock.connect(address)
            sock.sendall("\n".join(assignments).encode())


def _status(text: str) -> str:
    """Return `text` as a STATUS= line; a second line would be another assignment."""
    line = printable(" ".join(text.split())).encode(errors="replace")[:_STATUS_BYTES]
    return f"STATUS={line.decode(errors='ignore')}"

"""What a service tells systemd, in the words of sd_notify(3): ready, reloading, stopping, alive, and a line of status.

The protocol is a datagram of `NAME=value` lines to the socket that $NOTIFY_SOCKET names. Who is not started by systemd
has no such socket, and then nothing is said. Telling is a courtesy, never a duty: a socket that vanished or is full
makes nothing fail, and systemd notices by itself whom it does not hear from.
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
_PATIENCE: Final = timedelta(seconds=5)  # with a full socket; then the message is lost, and our work goes on
_STATUS_BYTES: Final = 1024  # systemd drops a whole message above PIPE_BUF (4096 bytes), and READY=1 with it


@dataclass(frozen=True, slots=True)
class Notifier:
    """Tells systemd how we are; without an `address` every method does nothing. Threads may share one.

    `address` is an absolute path or, after an `@`, a name in the abstract namespace. `watchdog` is the time after which
    systemd takes us for hung if it did not hear `alive`: to be said every half of it (sd_watchdog_enabled(3)).
    """

    address: str | None
    watchdog: timedelta | None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """The notifier for $NOTIFY_SOCKET (sd_notify(3)) and $WATCHDOG_USEC (sd_watchdog_enabled(3)).

        A watchdog that $WATCHDOG_PID says is for another process, or whose time cannot be read, is none.
        """
        microseconds = environ.get("WATCHDOG_USEC", "")
        is_ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        is_set = microseconds.isascii() and microseconds.isdecimal() and 0 < int(microseconds) < 2**63
        return cls(
            environ.get("NOTIFY_SOCKET") or None,
            timedelta(microseconds=int(microseconds)) if is_ours and is_set else None,
        )

    def ready(self, status: str) -> None:
        """Started, or done with reloading: READY=1 of sd_notify(3). The watchdog runs from now on."""
        self._tell("READY=1", _status(status))

    def status(self, text: str) -> None:
        """What we are doing, for `systemctl status`: STATUS= of sd_notify(3). One line, cut when it is long."""
        self._tell(_status(text))

    def reloading(self) -> None:
        """The settings are being read again; `ready` follows. RELOADING=1 of sd_notify(3).

        With the time on CLOCK_MONOTONIC, by which Type=notify-reload tells this reload from an earlier one.
        """
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, status: str) -> None:
        """On the way out: STOPPING=1 of sd_notify(3)."""
        self._tell("STOPPING=1", _status(status))

    def alive(self) -> None:
        """Making progress: WATCHDOG=1 of sd_notify(3)."""
        self._tell("WATCHDOG=1")

    def extend_timeout(self, duration: timedelta) -> None:
        """Not yet started, or stopped, but at work: EXTEND_TIMEOUT_USEC= of sd_notify(3).

        systemd waits at least `duration` from now; say it again within that time, or it takes us for hung.
        """
        self._tell(f"EXTEND_TIMEOUT_USEC={duration // _MICROSECOND}")

    def _tell(self, *assignments: str) -> None:
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        # A socket for each message, like libsystemd's own: nothing to keep, to share or to find broken.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(_PATIENCE.total_seconds())
            sock.connect(address)
            sock.sendall("\n".join(assignments).encode())


def _status(text: str) -> str:
    """`text` as one line: a second line would be another assignment."""
    line = printable(" ".join(text.split())).encode(errors="replace")[:_STATUS_BYTES]
    return f"STATUS={line.decode(errors='ignore')}"

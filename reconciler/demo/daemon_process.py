"""The daemon of the live demonstration: `reconcile run` as a process of its own, whose log lines can be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any, Final

from reconciler.demo.ground import ACCOUNT_SID, AUTH_TOKEN, endings_deferred
from reconciler.errors import Unavailable

STOPS_WITHIN: Final = 15.0  # seconds, as systemd waits; then it is killed
STARTS_WITHIN: Final = 60.0  # seconds

# Faster than the defaults, so that there is something to watch. A webhook takes at most two seconds here.
_SETTINGS: Final = {
    "TWILIO_ACCOUNT_SID": ACCOUNT_SID, "TWILIO_AUTH_TOKEN": AUTH_TOKEN, "RECONCILER_HTTP_LISTEN": "127.0.0.1:0",
    "RECONCILER_HOT_INTERVAL": "5s", "RECONCILER_WARM_INTERVAL": "15s", "RECONCILER_FREEZE_INTERVAL": "30s",
    "RECONCILER_WEBHOOK_GRACE": "2s", "RECONCILER_LOG_FORMAT": "json", "RECONCILER_LOG_LEVEL": "info",
}  # fmt: skip


class DaemonProcess:
    """The daemon, from `start` to `stop`.

    Attributes:
        page_url: the URL of its status page, once `wait_until_started` has returned.

    """

    def __init__(self, database_url: str, twilio_url: str) -> None:
        self.page_url = ""
        self._environment = {**os.environ, **_SETTINGS, "DATABASE_URL": database_url, "TWILIO_BASE_URL": twilio_url}
        self._events: SimpleQueue[Mapping[str, Any]] = SimpleQueue()
        self._started = threading.Event()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process."""
        # A session of its own: Ctrl-C in the terminal reaches us alone, and we end the daemon in its turn. Without -P
        # a folder `reconciler` in the caller's folder would be run instead of this package.
        with endings_deferred():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "reconciler", "run"], env=self._environment, text=True, encoding="utf-8",
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        threading.Thread(target=self._read, args=(self._process.stderr,), name="daemon's log", daemon=True).start()

    def stop(self) -> None:
        """End the process, if it was started. Call it also when `start` was interrupted."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def wait_until_started(self) -> None:
        """Wait until the daemon serves its page.

        Raises:
            Unavailable: it ended, or took longer than STARTS_WITHIN.

        """
        deadline = time.monotonic() + STARTS_WITHIN
        while not self._started.wait(0.1):
            if self.exit_code is not None or time.monotonic() > deadline:
                raise Unavailable("the daemon of the demonstration did not start")

    def new_events(self) -> Iterator[Mapping[str, Any]]:
        """Yield the events that the daemon logged since the last call."""
        while True:
            try:
                yield self._events.get_nowait()
            except Empty:
                return

    def _read(self, lines: Iterable[str]) -> None:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:  # a library, or the interpreter itself, wrote to stderr
                continue
            self._events.put(event)
            if event["event"] == "daemon.started":
                self.page_url = f"http://127.0.0.1:{event['http_port']}/"
                self._started.set()

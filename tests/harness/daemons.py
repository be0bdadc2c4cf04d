"""`reconcile run` in a process of its own: its log, its messages to systemd, its answers over HTTP.

Every test waits for events (`Daemon.wait_for`, `Systemd.wait_for`, `eventually`). When the test ends, everything that
a daemon logged is searched for secrets and phone numbers.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .names import TOKEN
from .processes import COMMAND, PLAIN_NUMBER

PATIENCE = 60.0  # seconds for an event that should come at once; on a busy machine a daemon starts in 20

# Of all jobs only hot runs again during a test.
QUIET = {
    "RECONCILER_HOT_INTERVAL": "1s", "RECONCILER_WARM_INTERVAL": "1d", "RECONCILER_COLD_INTERVAL": "1d",
    "RECONCILER_FREEZE_INTERVAL": "1d", "RECONCILER_INBOX_INTERVAL": "1d", "RECONCILER_WEBHOOK_GRACE": "0s",
    "RECONCILER_OVERLAP": "1m", "RECONCILER_HTTP_LISTEN": "127.0.0.1:0",
}  # fmt: skip


def eventually(look: Callable[[], Any], *, within: float = PATIENCE) -> Any:
    """Return the result of `look` as soon as it is true."""
    deadline = time.monotonic() + within
    while not (seen := look()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return seen


class Daemon:
    """A running `reconcile run`."""

    def __init__(self, env: dict[str, str], home: Path) -> None:
        self.env = env
        self.process = subprocess.Popen(
            [COMMAND, "run"], env=env, cwd=home, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        self.lines: list[str] = []
        self._came = threading.Condition()
        self._is_over = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def logs(self) -> list[dict[str, Any]]:
        """Return the log lines so far."""
        with self._came:
            return [json.loads(line) for line in self.lines if line.startswith("{")]

    def said(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The lines of that event whose fields are these."""
        return [line for line in self.logs if line["event"] == event and fields.items() <= line.items()]

    def wait_for(self, event: str, *, count: int = 1, within: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """The `count`th line of that event, once it is there."""
        with self._came:
            came = self._came.wait_for(lambda: len(self.said(event, **fields)) >= count or self._is_over, within)
        found = self.said(event, **fields)
        assert came and len(found) >= count, f"no {event} {fields} among:\n{''.join(self.lines[-20:])}"
        return found[count - 1]

    def mark(self) -> int:
        """How many runs of hot have ended; `wait_for_runs` waits for more."""
        return len(self.said("job.finished", job="hot"))

    def wait_for_runs(self, more: int = 1, *, since: int | None = None, within: float = PATIENCE) -> None:
        """Return when that many more runs of hot have ended."""
        self.wait_for("job.finished", job="hot", count=(self.mark() if since is None else since) + more, within=within)

    def settle(self) -> None:
        """Return when each job has run once; after that only hot runs during the test."""
        for job in ("hot", "warm", "cold", "freeze", "inbox", "housekeeping", "recordings", "webhooks"):
            self.wait_for("job.finished", job=job)

    def tell(self, number: signal.Signals) -> None:
        """Send the daemon a signal."""
        self.process.send_signal(number)

    def wait(self, within: float = PATIENCE) -> int:
        """Wait for the daemon's end and return its exit code."""
        code = self.process.wait(within)
        self._reader.join(PATIENCE)
        return code

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.tell(signal.SIGTERM)
        return self.wait()

    @property
    def port(self) -> int:
        """Where it answers over HTTP."""
        return int(self.wait_for("daemon.started")["http_port"])

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Return the status and body of an answer."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code, answer.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 if there is none."""
        from prometheus_client.parser import text_string_to_metric_families

        samples = (s for family in text_string_to_metric_families(self.get("/metrics")[1]) for s in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def close(self) -> None:
        """Kill it, if it still runs, and search what it said."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.wait()
        assert self.process.stderr
        self.process.stderr.close()
        said = "".join(self.lines)
        assert TOKEN not in said
        assert not PLAIN_NUMBER.search(said), said

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._came:
                self.lines.append(line)
                self._came.notify_all()
        with self._came:
            self._is_over = True
            self._came.notify_all()


class Systemd:
    """The other end of $NOTIFY_SOCKET: every message in its order."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self.messages: list[dict[str, str]] = []
        self._came = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, name: str, value: str | None = None, *, after: int = 0, within: float = PATIENCE) -> int:
        """Where the first message stands that says NAME (=value, or a text that contains it), once it is there."""

        def find() -> int | None:
            for index, message in enumerate(self.messages[after:], after):
                if name in message and (value is None or value in message[name]):
                    return index
            return None

        with self._came:
            assert self._came.wait_for(lambda: find() is not None, within), f"no {name}={value}: {self.messages}"
            found = find()
            assert found is not None
            return found

    def said(self, name: str) -> list[str]:
        """Every value of NAME."""
        return [message[name] for message in list(self.messages) if name in message]

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()

    def _read(self) -> None:
        while True:
            try:
                text = self._socket.recv(65_536).decode()
            except OSError:
                return
            with self._came:
                self.messages.append(dict(line.split("=", 1) for line in text.splitlines()))
                self._came.notify_all()

"""An outage of Twilio as `reconcile status` tells it: `python -m tests.programs.outage [--seconds 300]`.

A daemon with its default settings works beside a simulated Twilio. After a minute Twilio answers 503 to everything, for
so many seconds, and then answers again. `reconcile status --watch 1s` and /readyz are read all the while; each line
printed here says what they said, at the second they began to say it. It ends when all is well again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from reconciler.simulator import Clock, Fault, SimulatedAccount, SimulatedTwilio
from tests.bench.servers import database
from tests.harness.names import ACCOUNT, TOKEN

COMMAND: Final = Path(sys.executable).with_name("reconcile")
BEFORE: Final = 60.0  # seconds
PATIENCE: Final = 600.0  # seconds until all is well again
_COUNTING: Final = re.compile(r"\d+ (s|min|h)\b|\d\d:\d\d(:\d\d)?")  # a time, which changes every second


class Told:
    """Prints what is said, when it changes."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._last: dict[str, str] = {}
        self._lock = threading.Lock()

    def say(self, who: str, what: str) -> None:
        """Print it, unless `who` said the same a moment ago but for the seconds in it."""
        with self._lock:
            if self._last.get(who) != (kind := _COUNTING.sub("…", what)):
                self._last[who] = kind
                print(f"{time.monotonic() - self._begun:6.0f} s  {who:<8}{what}", flush=True)


def watch_status(lines: Iterator[str], told: Told) -> None:
    """Read `status --watch`: the lines above its first heading, and the jobs that failed."""
    shown: list[str] = []
    for line in map(str.strip, lines):
        if line == "Database":
            told.say("status", "; ".join(shown) or "nothing above its jobs")
            shown = []
        if re.search(r" leads|^No daemon|waiting for|failed \d", line):
            shown.append(re.sub(r"\s{2,}", "  ", line))


def ready(port: int) -> str:
    """Return what /readyz says."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://127.0.0.1:{port}/readyz", timeout=5
        ) as answer:
            return f"{answer.status} {answer.read().decode().strip()}"
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.code} {error.read().decode().strip()}"


@contextmanager
def running(*args: str, environ: dict[str, str], reads: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command of ours until the block ends."""
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, reads: subprocess.PIPE}
    with subprocess.Popen([COMMAND, *args], env=environ, text=True, **streams) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.terminate()


def main() -> None:
    """Let Twilio fail for a while, and print what is said of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="how long Twilio fails (default %(default)s)")
    seconds = parser.parse_args().seconds
    account = SimulatedAccount(ACCOUNT, TOKEN, seed=3)
    now = datetime.now(UTC)
    account.generate(2_000, now - timedelta(days=1), now + timedelta(hours=1))
    with SimulatedTwilio([account], clock=Clock.running()) as twilio, database() as url:
        environ = {
            **os.environ, "DATABASE_URL": url, "TWILIO_BASE_URL": twilio.base_url, "TWILIO_ACCOUNT_SID": ACCOUNT,
            "TWILIO_AUTH_TOKEN": TOKEN, "RECONCILER_HTTP_LISTEN": "127.0.0.1:0", "COLUMNS": "200",
        }  # fmt: skip
        with running("run", environ=environ, reads="stderr") as daemon:
            assert daemon.stderr
            events = (json.loads(line) for line in daemon.stderr if line.startswith("{"))
            port = next(event["http_port"] for event in events if event["event"] == "daemon.started")
            next(event for event in events if event["event"] == "job.finished" and event.get("job") == "hot")
            threading.Thread(target=lambda: list(events), daemon=True).start()  # or its pipe fills
            with running("status", "--watch", "1s", environ=environ, reads="stdout") as status:
                assert status.stdout
                told = Told()
                threading.Thread(target=watch_status, args=(iter(status.stdout), told), daemon=True).start()
                tell(told, twilio, port, seconds)


def tell(told: Told, twilio: SimulatedTwilio, port: int, seconds: float) -> None:
    """Play the outage."""
    begun = time.monotonic()
    fails, ends = begun + BEFORE, begun + BEFORE + seconds
    while (now := time.monotonic()) < ends + PATIENCE:
        is_away = fails <= now < ends
        twilio.faults.always(Fault.server_error(503) if is_away else None)
        told.say("Twilio", "answers 503 to everything" if is_away else "answers")
        said = ready(port)
        told.say("readyz", said)
        if now > ends and said.startswith("200 leading"):
            return
        time.sleep(1)


if __name__ == "__main__":
    main()

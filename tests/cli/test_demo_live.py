"""`reconcile demo --live`: on a terminal with keys, in a pipe without, and nothing left behind in either case."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyte
import pytest

from tests.harness.demos import COMMAND, environment, left_in

LIVE = (*COMMAND, "--live")
COLUMNS, ROWS = 80, 50
PATIENCE = 60.0  # seconds
PAGE = re.compile(r"http://127\.0\.0\.1:\d+/")

# Makes its stdin the controlling terminal of its session, so that a typed Ctrl-C sends the signal.
TRAMPOLINE = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Watcher:
    """A person at a terminal: types, and looks at the screen."""

    def __init__(self, temporary: Path, home: Path) -> None:
        self.terminal, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.modes = termios.tcgetattr(self.theirs)
        self.screen = pyte.HistoryScreen(COLUMNS, ROWS, history=10_000)
        self.written = b""
        self._stream = pyte.ByteStream(self.screen)
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAMPOLINE, *LIVE], env={**environment(temporary, str(home)), "TERM": "xterm"},
            stdin=self.theirs, stdout=self.theirs, stderr=self.theirs, start_new_session=True,
        )  # fmt: skip

    def look(self) -> str:
        """Return what the screen shows by now."""
        while select.select([self.terminal], [], [], 0.05)[0]:
            part = os.read(self.terminal, 65_536)
            self.written += part
            self._stream.feed(part)
        return "\n".join(line.rstrip() for line in self.screen.display)

    def wait_for(self, pattern: str) -> None:
        """Return once the screen shows it."""
        wait_until(lambda: re.search(pattern, self.look()), self.look)

    def type(self, keys: str) -> None:
        """Type keys."""
        os.write(self.terminal, keys.encode())

    def end(self) -> int:
        """Wait for its end and return its exit code."""
        wait_until(lambda: self.look() is not None and self.process.poll() is not None, self.look)
        return self.process.wait()

    def close(self) -> None:
        """Kill it, if it still runs."""
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)
        os.close(self.theirs)


def wait_until(look: Callable[[], object], explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < deadline, f"it never came:\n{explain()}"
        time.sleep(0.05)


def page(url: str) -> str:
    """Return the daemon's page, also if its HTTP status is an error."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()


@pytest.fixture
def watcher(temporary, tmp_path) -> Iterator[Watcher]:
    """Somebody who watches on a terminal of 80 columns."""
    made = Watcher(temporary, tmp_path)
    yield made
    made.close()


def test_things_break_and_are_mended_before_ones_eyes(watcher, temporary):
    """Each key breaks one thing and mends it; lines and page say so; Ctrl-C ends it and leaves nothing."""
    watcher.wait_for(PAGE.pattern)
    (url, *_) = PAGE.findall(watcher.look())

    def shows(text: str) -> bool:
        watcher.look()
        return text in page(url)

    def page_shows(text: str) -> None:
        wait_until(lambda: shows(text), lambda: f"{text!r} on the page; the screen:\n{watcher.look()}")

    page_shows("✓ working")
    watcher.wait_for(r"✗ webhook lost on its way: (end|step) of CA\w{4}…\w{4}")
    watcher.type("t")
    watcher.wait_for("You typed t: Twilio answers HTTP 503")
    page_shows("waiting for Twilio: HTTP 503")
    watcher.type("t")
    watcher.wait_for("You typed t: Twilio answers\n")
    page_shows("✓ working")
    watcher.type("d")
    watcher.wait_for("✗ the database server is stopped")
    watcher.wait_for("The database does not answer")
    page_shows("the database is unavailable")
    watcher.type("d")
    watcher.wait_for("✓ the database server runs")
    page_shows("✓ working")
    watcher.type("w")
    watcher.wait_for("✗ every webhook gets lost")
    watcher.wait_for(r"[1-9]\d* gaps? filled")
    watcher.type("\x03")
    assert watcher.end() == 0
    assert "are gone again" in watcher.look()
    assert termios.tcgetattr(watcher.theirs) == watcher.modes
    assert left_in(temporary) == []


def test_no_line_is_longer_than_the_terminal(watcher, temporary):
    """At 80 columns the terminal breaks no line; `q` ends it as Ctrl-C does."""
    watcher.wait_for(r"webhook lost on its way")
    watcher.wait_for(r"hot ACdddd…dddd: \d+ read")
    watcher.type("q")
    assert watcher.end() == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", watcher.written.decode()).split("\n")
    assert max(len(line.rsplit("\r", 1)[-1]) for line in (line.removesuffix("\r") for line in lines)) <= COLUMNS
    assert left_in(temporary) == []


@pytest.fixture
def piped(temporary, tmp_path) -> Iterator[subprocess.Popen[str]]:
    """It runs with pipes, as under a service or in CI."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits it if we ignore it
    try:
        process = subprocess.Popen(
            LIVE, env={**environment(temporary, str(tmp_path)), "PYTHONUNBUFFERED": "1"}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        yield process
        process.kill()


def test_without_a_terminal_it_needs_no_keys(piped, temporary):
    """Lines of at most 80 columns without colours, the numbers now and then, and no word of keys."""
    seen = []
    for line in piped.stdout:
        seen.append(line.rstrip("\n"))
        if re.search(r"Webhooks: [\d,]+ arrived", line):
            break
    os.killpg(piped.pid, signal.SIGINT)
    out, err = piped.communicate(timeout=PATIENCE)
    seen += out.splitlines()
    assert piped.returncode == 0, err
    assert any(PAGE.search(line) for line in seen)
    assert any(re.search(r"\d calls?( since the start|: )", line) for line in seen)
    assert "\x1b" not in "".join(seen) and "You typed" not in "".join(seen)
    assert not [line for line in seen if len(line) > COLUMNS]
    assert not re.search(r"\+?\d{7,}|Traceback", "\n".join(seen) + err)
    assert left_in(temporary) == []


@pytest.mark.parametrize(
    ("after", "ending", "code"),
    [
        ("Nothing of yours", signal.SIGINT, 130),
        ("migrations applied", signal.SIGHUP, 129),
        ("the last 2 days", signal.SIGINT, 130),
        ("the last 2 days", signal.SIGTERM, 143),
    ],
)
def test_it_leaves_nothing_behind_when_ended_early(piped, temporary, after, ending, code):
    """No server, no daemon and no file stays, whichever of them was just starting."""
    assert any(after in line for line in piped.stdout)
    os.killpg(piped.pid, ending)  # to its children as well, as a terminal does
    _, err = piped.communicate(timeout=PATIENCE)
    assert "Traceback" not in err
    assert piped.returncode == code
    assert left_in(temporary) == []


def test_it_ends_with_the_terminal(watcher, temporary):
    """A terminal that is closed ends it too."""
    watcher.wait_for(PAGE.pattern)
    os.close(watcher.terminal)
    os.close(watcher.theirs)
    watcher.process.wait(PATIENCE)
    watcher.terminal, watcher.theirs = pty.openpty()  # for the fixture to close
    assert left_in(temporary) == []


def test_a_daemon_that_ends_by_itself_ends_it(piped, temporary):
    """Exit code 1, and the last lines say so."""
    assert any(PAGE.search(line) for line in piped.stdout)
    (daemon,) = [each for each in psutil.Process(piped.pid).children() if "run" in each.cmdline()]
    daemon.kill()
    out, _ = piped.communicate(timeout=PATIENCE)
    assert piped.returncode == 1
    assert "The daemon has ended by itself" in out
    assert left_in(temporary) == []

"""The installed command in a process of its own, with an environment of its own, against a simulated Twilio."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from reconciler.cli.main import main
from reconciler.database import connection as db
from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio
from tests.harness.coverage import coverage_environment
from tests.harness.done import Done
from tests.harness.equality import differences, records_of
from tests.harness.names import ACCOUNT, TOKEN

COMMAND = Path(sysconfig.get_path("scripts")) / "reconcile"
PATIENCE = 60.0  # seconds until a command that does not end fails its test

_PLAIN_NUMBER = re.compile(r"\+\d{7,}")


@dataclass
class Command:
    """Runs `reconcile` with nothing in the environment but PATH, HOME and what a test sets."""

    home: Path
    stack: ExitStack
    env: dict[str, str] = field(default_factory=dict)

    def start(self, *args: str, argv: tuple[str, ...] = (), **env: str) -> subprocess.Popen[str]:
        """Start it; it is killed with the test at the latest. `argv` replaces the command itself."""
        process = subprocess.Popen(
            [*(argv or (str(COMMAND),)), *args], env=self.environment(env), cwd=self.home, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.stack.callback(self._end, process)
        return process

    def run(self, *args: str, argv: tuple[str, ...] = (), **env: str) -> Done:
        """Run it to its end; whatever it says holds no secret, no phone number and no traceback."""
        process = self.start(*args, argv=argv, **env)
        return self.wait(process)

    def wait(self, process: subprocess.Popen[str]) -> Done:
        """Wait for its end."""
        out, err = process.communicate(timeout=PATIENCE)
        done = Done(process.returncode, out, err)
        assert "Traceback" not in err, err
        assert TOKEN not in out + err
        assert not _PLAIN_NUMBER.search(err), err
        return done

    def on_terminal(self, *args: str, end_after: tuple[str, ...] = (), **env: str) -> tuple[int, str]:
        """Run it with a terminal as stdin, stdout and stderr; returns exit code and what was written there.

        It is told to end (SIGTERM) once all patterns of `end_after` were seen.

        Raises:
            AssertionError: after PATIENCE seconds it has not ended or not written what it is waited for.

        """
        terminal, theirs = pty.openpty()
        environment = self.environment({"TERM": "xterm", "COLUMNS": "120", **env})
        process = subprocess.Popen(
            [COMMAND, *args], env=environment, cwd=self.home, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        written: list[bytes] = []
        deadline = time.monotonic() + PATIENCE
        try:
            while True:
                if not select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0]:
                    process.kill()
                    raise AssertionError(f"still waiting for {end_after} after:\n{b''.join(written).decode()}")
                written.append(os.read(terminal, 65_536))
                if end_after and all(re.search(pattern, b"".join(written).decode()) for pattern in end_after):
                    process.send_signal(signal.SIGTERM)
                    end_after = ()
        except OSError:  # Linux says EIO when the other side is gone
            pass
        os.close(terminal)
        return process.wait(PATIENCE), b"".join(written).decode().replace("\r\n", "\n")

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """PATH, HOME, what all commands of this test share, and `env`; an empty value takes a name away."""
        made = {"PATH": os.defpath, "HOME": str(self.home), **coverage_environment(), **self.env, **env}
        return {name: value for name, value in made.items() if value}

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """`reconcile` with no settings at all."""
    assert COMMAND.exists(), "install the package into this environment first: pip install -e '.[test]'"
    with ExitStack() as stack:
        yield Command(tmp_path, stack)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `reconcile ARGS` prints, run in this process."""

    def run(*words: str) -> str:
        assert main(words) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


@pytest.fixture
def clock() -> Clock:
    """The machine's clock, as commands use it."""
    return Clock.running()


@pytest.fixture
def cli(command: Command, twilio: SimulatedTwilio) -> Command:
    """`reconcile` with the settings of the simulated Twilio, and none of a database."""
    command.env |= {
        "TWILIO_BASE_URL": twilio.base_url, "TWILIO_ACCOUNT_SID": ACCOUNT, "TWILIO_AUTH_TOKEN": TOKEN,
        # A test that forgets DATABASE_URL must not start the user's own embedded server.
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
    }  # fmt: skip
    return command


@pytest.fixture
def run(cli: Command, database_url: str) -> Callable[..., Done]:
    """Runs `reconcile ARGS` with a migrated database of its own."""
    cli.env["DATABASE_URL"] = database_url
    return cli.run


@pytest.fixture
def look(cli: Command, shared_database_url: str) -> Callable[..., Done]:
    """Runs `reconcile ARGS` with a migrated database that all tests share: for runs that end before they write."""
    cli.env["DATABASE_URL"] = shared_database_url
    return cli.run


@pytest.fixture
def calls(account: SimulatedAccount) -> SimulatedAccount:
    """The account with 300 calls of the last two days, all over for an hour and more."""
    now = datetime.now(UTC)
    account.generate(300, now - timedelta(days=2), now - timedelta(hours=3))
    return account


@pytest.fixture
def not_equal(account: SimulatedAccount, twilio: SimulatedTwilio) -> Callable[[db.Connection], list[str]]:
    """Return the differences between the database and Twilio's present records."""
    return lambda conn: differences(conn, records_of(account, twilio.clock.now()))


def wait_for_requests(twilio: SimulatedTwilio, count: int, process: subprocess.Popen[str]) -> None:
    """Return once Twilio has seen so many requests."""
    deadline = time.monotonic() + PATIENCE
    while len(twilio.requests) < count:
        assert process.poll() is None, f"it ended after {len(twilio.requests)} requests"
        assert time.monotonic() < deadline
        time.sleep(0.001)

"""The command `reconcile`, with an environment of its own: installed in a process of its own, or in this process."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from reconciler.cli.main import main
from reconciler.terminal import console

from .daemons import Daemon
from .done import Done
from .names import TOKEN
from .processes import COMMAND, PLAIN_NUMBER, coverage_environment

PATIENCE = 60.0  # seconds until a command that does not end fails its test


RunHere = Callable[..., Done]


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str]) -> RunHere:
    """Runs `reconcile ARGS` in this process, with these environment variables and no others.

    For tests of results and messages: to start a process takes half a second of a core.
    """

    def run(environment: Mapping[str, str], *words: str) -> Done:
        with pytest.MonkeyPatch.context() as patch:
            for name in set(os.environ) - set(environment):
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            # The console of the module would write to the stdout of the test that imported it first.
            patch.setattr(console, "out", Console(highlight=False, width=1_000))
            try:
                code = main(words)
            except SystemExit as exc:
                code = int(exc.code or 0)
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return run


def checked(done: Done) -> Done:
    """Return how a command ended; its output must hold no secret, no phone number and no traceback."""
    assert "Traceback" not in done.err, done.err
    assert TOKEN not in done.out + done.err
    assert not PLAIN_NUMBER.search(done.err), done.err
    return done


@dataclass
class Command:
    """Runs `reconcile` with nothing in the environment but PATH, HOME and the variables that a test sets."""

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
        """Run it to its end, and check that its output holds no secret, no phone number and no traceback."""
        process = self.start(*args, argv=argv, **env)
        return self.wait(process)

    def daemon(self, **env: str) -> Daemon:
        """Start `reconcile run`; it is killed at the end of the test."""
        daemon = Daemon(self.environment(env), self.home)
        self.stack.callback(daemon.close)
        return daemon

    def wait(self, process: subprocess.Popen[str]) -> Done:
        """Wait for its end."""
        out, err = process.communicate(timeout=PATIENCE)
        return checked(Done(process.returncode, out, err))

    def on_terminal(self, *args: str, end_after: tuple[str, ...] = (), **env: str) -> tuple[int, str]:
        """Run the command with a terminal as stdin, stdout and stderr. Return its exit code and its output.

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
        """PATH, HOME, the variables that all commands of this test share, and `env`. An empty value removes a name."""
        made = {"PATH": os.defpath, "HOME": str(self.home), **coverage_environment(), **self.env, **env}
        return {name: value for name, value in made.items() if value}

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()

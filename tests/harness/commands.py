"""The installed command `reconcile` in a process of its own, with an environment of its own."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from .daemons import Daemon
from .done import Done
from .names import TOKEN
from .processes import COMMAND, PLAIN_NUMBER, coverage_environment

PATIENCE = 60.0  # seconds until a command that does not end fails its test


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
        done = Done(process.returncode, out, err)
        assert "Traceback" not in err, err
        assert TOKEN not in out + err
        assert not PLAIN_NUMBER.search(err), err
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
        """PATH, HOME, the variables that all commands of this test share, and `env`. An empty value removes a name."""
        made = {"PATH": os.defpath, "HOME": str(self.home), **coverage_environment(), **self.env, **env}
        return {name: value for name, value in made.items() if value}

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()

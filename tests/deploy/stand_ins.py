"""Programs that README's service lines call, for a machine without systemd and without a person.

`install(folder)` writes an executable for each name. What a person would type is taken from the environment:
TYPED_DATABASE_URL and TYPED_TWILIO_AUTH_TOKEN at `systemd-ask-password`, EDITED (lines of NAME=value) in `sudoedit`.
`systemctl` starts units as systemd would: the unit's user, its Environment= and nothing else, its ExecStart.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

UNITS = Path("/etc/systemd/system")
NAMES = ("sudo", "sudoedit", "systemctl", "systemd-ask-password")
PATIENCE = 30.0  # seconds until a process that was told to end must have ended


def install(folder: Path, python: str) -> None:
    """Write an executable for each name into `folder`."""
    for name in NAMES:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {python} {Path(__file__).resolve()} {name} "$@"\n', encoding="utf-8")
        path.chmod(0o755)


def sudo(words: list[str]) -> int:
    """Run a command, as root or with `-u USER`; NAME=value before it is its only environment."""
    user = words[1] if words[0] == "-u" else None
    words = words[2:] if user else words
    environment = {"PATH": os.environ["PATH"]} if user else dict(os.environ)
    while words and re.match(r"\w+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    return subprocess.run(as_user(user) + words, env=environment, check=False).returncode


def as_user(user: str | None) -> list[str]:
    """Return the beginning of a command that another user runs."""
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []


def sudoedit(words: list[str]) -> int:
    """Uncomment and fill in the lines that a person would."""
    path = Path(words[0])
    text = path.read_text(encoding="utf-8")
    for line in os.environ["EDITED"].splitlines():
        name = line.partition("=")[0]
        text, count = re.subn(rf"^#?{name}=.*$", line, text, flags=re.MULTILINE)
        assert count == 1, f"{path} has no line for {name}"
    path.write_text(text, encoding="utf-8")
    return 0


def ask_password(words: list[str]) -> int:
    """Print what a person would type."""
    sys.stdout.write(os.environ[f"TYPED_{words[-1].rstrip(':')}"])
    return 0


def systemctl(words: list[str]) -> int:
    """start, enable --now, reload, restart, disable --now, daemon-reload: what README uses."""
    verb, *units = (word for word in words if word != "--now")
    for unit in units:
        if verb in ("reload", "restart", "disable"):
            end(unit, signal.SIGHUP if verb == "reload" else signal.SIGTERM)
        if verb in ("start", "enable", "restart"):
            start(unit)
    return 0


def start(unit: str) -> None:
    """Judge the unit as systemd does, and start its program; what it says goes to a log beside its process id."""
    template, _, instance = unit.partition("@")
    path = UNITS / (f"{template}@.service" if instance else f"{template}.service")
    if shutil.which("systemd-analyze"):
        whole = UNITS / f"{unit}.service"
        subprocess.run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(whole)], check=True)
    pairs = [line.split("=", 1) for line in path.read_text(encoding="utf-8").splitlines() if re.match(r"\w+=", line)]
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value.replace("%i", instance))
    environment = {"PATH": os.defpath, **dict(value.split("=", 1) for value in values["Environment"])}
    (user,), (program,) = values["User"], values["ExecStart"]
    with Path(os.environ["LOGS"], f"{unit}.jsonl").open("ab") as log:
        process = subprocess.Popen(
            as_user(user) + shlex.split(program), env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True,
        )  # fmt: skip
    Path(os.environ["LOGS"], f"{unit}.pid").write_text(str(process.pid), encoding="ascii")
    if instance:  # a one-off: its end is what counts
        Path(os.environ["LOGS"], f"{unit}.code").write_text(str(process.wait()), encoding="ascii")


def end(unit: str, number: signal.Signals) -> None:
    """Send the main process a signal; after SIGTERM wait for its end."""
    pid = int(Path(os.environ["LOGS"], f"{unit}.pid").read_text(encoding="ascii"))
    os.kill(pid, number)
    until = time.monotonic() + PATIENCE
    while (
        number is signal.SIGTERM and Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()
    ):
        assert time.monotonic() < until, f"{unit} did not end"
        time.sleep(0.05)


if __name__ == "__main__":
    ACTS = {"sudo": sudo, "sudoedit": sudoedit, "systemctl": systemctl, "systemd-ask-password": ask_password}
    sys.exit(ACTS[sys.argv[1]](sys.argv[2:]))

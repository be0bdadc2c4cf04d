"""What the tests of `reconcile demo` share: a hostile environment, and what a run has left."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil

COMMAND = (sys.executable, "-m", "reconciler", "demo")

# None of it may be listened to: these would each make the demonstration fail, or worse, touch something real.
HOSTILE = {
    "DATABASE_URL": "postgresql://nobody@db.invalid/precious",
    "TWILIO_ACCOUNT_SID": "AC" + 32 * "0",
    "TWILIO_AUTH_TOKEN": "somebodys-own-token",
    "TWILIO_BASE_URL": "http://127.0.0.1:9",
    "RECONCILER_LOG_LEVEL": "debug",
    "RECONCILER_NO_SUCH_SETTING": "1",
    "PGHOST": "db.invalid",
    "PGPORT": "9",
    "PGSERVICE": "nowhere",
    "PGOPTIONS": "-c no_such_setting=1",
    "http_proxy": "http://127.0.0.1:9",
    "LC_ALL": "xx_XX.UTF-8",
}


def environment(temporary: Path, home: str) -> dict[str, str]:
    """Return the environment of a run whose temporary files go into `temporary`."""
    return {"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": str(temporary), **HOSTILE}


def left_in(folder: Path) -> list[object]:
    """Return the files in the folder for temporary files, and the processes that have it in argv or environment."""
    return [*folder.iterdir(), *(process for process in psutil.process_iter() if str(folder) in _words(process))]


def _words(process: psutil.Process) -> str:
    try:
        return " ".join((*process.cmdline(), *process.environ().values()))
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return ""

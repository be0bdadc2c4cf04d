"""The ground of both demonstrations: a database in a temporary folder, and nothing of the caller's environment.

Design rules
- The environment has no influence. A demonstration is a process of its own and begins by removing the variables that
  libpq, initdb, the HTTP client and our own settings read.
- Nothing is left behind, however the run ends: the folder is deleted at the interpreter's exit, after its server.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

from reconciler.database import embedded
from reconciler.errors import ConfigError

ACCOUNT_SID: Final = f"AC{'d' * 32}"
AUTH_TOKEN: Final = "opens-nothing-but-the-simulator"  # noqa: S105 -- no secret

_ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def start_database() -> embedded.EmbeddedServer:
    """Start a server in a temporary folder. Both are gone when this process ends.

    Raises:
        ConfigError: the `embedded` extra is not installed.
        Unavailable: PostgreSQL did not start.

    """
    folder = Path(tempfile.mkdtemp(prefix="reconcile-"))
    # Exit handlers run last in, first out: the server stops before its folder goes.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _put_environment_aside()
    tempfile.tempdir = str(folder)  # the server's other files go into the same folder, and with it
    try:
        return embedded.start(folder / "pg", keep=False)
    except ConfigError:
        raise ConfigError(
            "the demo needs the embedded PostgreSQL, which is not installed", hint=embedded.INSTALL
        ) from None


def _put_environment_aside() -> None:
    for name in list(os.environ):
        if name.startswith(("PG", "TWILIO_", "RECONCILER_")) or name == "DATABASE_URL":
            del os.environ[name]
    os.environ.update(NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")


@contextmanager
def endings_held() -> Iterator[None]:
    """Delay Ctrl-C and the like: a server whose start is interrupted would stay, and nobody would know of it.

    The signals are blocked, not only caught, because children inherit that. A terminal sends Ctrl-C to initdb too.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS)


@contextmanager
def endings_deferred() -> Iterator[None]:
    """Delay Ctrl-C and the like while a child is started that must not inherit blocked signals."""
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in _ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])


def leave_on_signals() -> None:
    """Make SIGTERM and SIGHUP end the process as Ctrl-C does: through every `finally` and exit handler."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)


def ignore_endings() -> None:
    """From here on no signal keeps us from stopping the server and deleting its folder."""
    for number in _ENDINGS:
        signal.signal(number, signal.SIG_IGN)


def _leave(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)

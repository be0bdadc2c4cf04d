"""Fixtures for tests of `reconcile run`: the command, systemd's end of the socket, a way to the database."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from reconciler.simulator import Clock, SimulatedTwilio
from tests.harness.commands import Command
from tests.harness.daemons import QUIET, Systemd
from tests.harness.link import Link
from tests.harness.names import ACCOUNT, TOKEN


@pytest.fixture
def clock() -> Clock:
    """The machine's clock, which commands use."""
    return Clock.running()


@pytest.fixture
def command(tmp_path: Path, twilio: SimulatedTwilio, database_url: str) -> Iterator[Command]:
    """`reconcile` with the simulated Twilio and a migrated database of its own."""
    with ExitStack() as stack:
        yield Command(tmp_path, stack, {
            **QUIET, "TWILIO_BASE_URL": twilio.base_url, "TWILIO_ACCOUNT_SID": ACCOUNT, "TWILIO_AUTH_TOKEN": TOKEN,
            "DATABASE_URL": database_url,
        })  # fmt: skip
        twilio.faults.clear()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="rd"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def systemd(short_folder: Path, command: Command) -> Iterator[Systemd]:
    """The messages to systemd from the daemons of this test, with a watchdog of two seconds."""
    systemd = Systemd(short_folder)
    command.env |= {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "2000000"}
    yield systemd
    systemd.close()


@pytest.fixture
def database(short_folder: Path, command: Command, database_url: str) -> Iterator[Link]:
    """The way to the database, up."""
    link = Link(database_url, short_folder)
    command.env["DATABASE_URL"] = link.url
    link.up()
    yield link
    link.down()

"""The installed command in a process of its own, with an environment of its own, against a simulated Twilio."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from reconciler.cli.main import main
from reconciler.database import connection as db
from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio
from tests.harness.commands import Command, RunHere, checked
from tests.harness.done import Done
from tests.harness.equality import differences, records_of
from tests.harness.names import ACCOUNT, TOKEN
from tests.harness.processes import COMMAND


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """`reconcile` with no settings at all."""
    assert COMMAND.exists(), "install the package into this environment first: pip install -e '.[test]'"
    with ExitStack() as stack:
        yield Command(tmp_path, stack)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files, with a path short enough for a socket in it."""
    with tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `reconcile ARGS` in this process, and returns its output."""

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
def here(cli: Command, run_here: RunHere) -> Callable[..., Done]:
    """Runs `reconcile ARGS` as `cli` does, in this process."""
    return lambda *words, **env: checked(run_here(cli.environment(env), *words))


@pytest.fixture
def run(cli: Command, database_url: str, here: Callable[..., Done]) -> Callable[..., Done]:
    """Runs `reconcile ARGS` in this process, with a migrated database of its own."""
    cli.env["DATABASE_URL"] = database_url
    return here


@pytest.fixture
def look(cli: Command, shared_database_url: str, here: Callable[..., Done]) -> Callable[..., Done]:
    """Runs `reconcile ARGS` in this process, with a database that all tests share: for runs that write nothing."""
    cli.env["DATABASE_URL"] = shared_database_url
    return here


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

"""The fixtures of all tests: the harness of `tests/harness`, and logging that no module leaves changed."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator

import hypothesis
import pytest
import structlog

from reconciler import masking

pytest_plugins = [
    "tests.harness.commands",
    "tests.harness.databases",
    "tests.harness.strangers",
    "tests.harness.twilio",
    "tests.harness.world",
]


def pytest_configure() -> None:
    """Hear SIGINT, and give property tests no deadline for one example.

    - A shell that starts tests in the background ignores SIGINT, and every child would inherit that.
    - An example takes long when the machine is busy. That is no fault of the code.
    """
    hypothesis.settings.register_profile("ours", deadline=None)
    hypothesis.settings.load_profile("ours")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_secret_of_another_test() -> None:
    """Begin without secrets: a secret that an earlier test made known would be removed from this test's output."""
    masking.secrets.clear()


@pytest.fixture(scope="module", autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Restore logging after each module of tests."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level, warnings.showwarning)
    yield
    logging.captureWarnings(False)
    root.handlers[:], root.level, warnings.showwarning = before
    structlog.reset_defaults()

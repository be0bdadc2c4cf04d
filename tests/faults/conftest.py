"""Fixtures for several of the fault tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.server import Server, folder


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of their own, that may be broken, and that the user of PgBouncer can reach."""
    with folder() as home:
        server = Server(home)
        yield server
        server.stop()

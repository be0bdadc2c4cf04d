"""Fixtures for tests of the jobs: an account with calls."""

from __future__ import annotations

import pytest

from tests.harness.names import NOW
from tests.harness.world import World, day


@pytest.fixture
def busy(world: World) -> World:
    """600 calls of all kinds in the days that the usual sweep reads."""
    world.account.generate(600, day(3), NOW)
    return world

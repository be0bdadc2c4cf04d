"""Fixtures for tests of backfills: an account with calls."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.harness.names import NOW
from tests.harness.world import World


@pytest.fixture
def world(world: World) -> World:
    """An account of 3,000 calls in the week before NOW."""
    world.account.generate(3_000, NOW - timedelta(days=7), NOW)
    return world

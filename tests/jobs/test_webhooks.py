"""The webhooks job, and what `reconcile why` makes of it: a simulated day whose webhooks are lost by order."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest

from reconciler.simulator import Outage, Road
from reconciler.simulator.road import causes_of_gaps
from reconciler.simulator.viewer import receive, work
from reconciler.simulator.webhooks import Channel
from reconciler.status.why import Cause, Why, read_why
from tests.jobs.world import World, day

GRACE = timedelta(seconds=60)
HOUR = timedelta(hours=1)
MORNING = day(1)
CALLS = 3_000
AT_TWO = Outage(MORNING + 14 * HOUR, MORNING + 15 * HOUR + HOUR / 2)

# The words of the simulator's journal for what `why` calls otherwise.
WORDS = {"chance": "unexplained", "child_leg": "no_callback"}


def why(world: World, **more) -> Why:
    """What is known of the last two days."""
    now = world.now()
    return read_why(world.conn, since=now - timedelta(days=2), now=now, webhook_grace=GRACE, **more)


def shares(found: Why) -> dict[str, float]:
    """The share of all calls of the day that each cause lost."""
    calls: Counter[str] = Counter()
    for cause in found.causes:
        calls[cause.cause.value] += cause.gaps
    return {cause: number / CALLS for cause, number in calls.items()}


@pytest.fixture
def lossy(world: World) -> World:
    """A day that lost a third of its callbacks by four causes, and 5 % by chance; the Viewer is done with the rest."""
    account = world.account
    account.generate(CALLS, MORNING, MORNING + timedelta(days=1), trunk_share=0.1)
    for number in list(account.endpoints.numbers)[:2]:
        account.endpoints.add_number(number, status_callback="")
    road = Road(Channel(seed=1, loss=0.05), outages=(AT_TWO,), inbox_failures=0.08, child_callbacks=True)
    receive(world.conn, road.deliver(account, MORNING, world.now()))
    work(world.conn, now=world.now(), batch=1_000_000)
    return world


def test_a_day_is_explained(lossy: World) -> None:
    """Each of the four causes and chance, with its share of the day within five points of the truth."""
    lossy.cold()
    lossy.webhooks()
    found = why(lossy)
    truth = Counter(WORDS.get(cause, cause) for cause in causes_of_gaps(lossy.account).values())
    expected = {cause: number / CALLS for cause, number in truth.items()}
    seen = shares(found)
    print(expected, seen, [(c.reason, c.gaps) for c in found.causes])
    assert seen.keys() == expected.keys() == set(Cause)
    for cause, share in expected.items():
        assert seen[cause] == pytest.approx(share, abs=0.05), cause
    assert found.gaps == sum(cause.gaps for cause in found.causes)

"""Which tasks the leader defers, and which a worker takes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from reconciler.database.engine_schema import SILENT_AFTER
from reconciler.database.store import _MERGE_SESSION
from reconciler.jobs.registry import KINDS
from reconciler.model import JobName
from reconciler.service.fleet import HELD_FOR, HELD_TRIES, decide_again
from reconciler.service.queues import BULK, HOT, LEADER, PLACES, USUAL, Pending, decide_deferrals, open_queues
from reconciler.service.runner import Ended

JOBS = [JobName(kind) for kind in ("hot", "warm", "cold", "inbox")]


def test_a_job_is_deferred_unless_it_has_a_task():
    """A task that waits makes the run late, one at work makes it overrun; one that was put off is neither."""
    pending = {
        "warm": Pending(is_at_work=False, is_put_off=False), "cold": Pending(is_at_work=True, is_put_off=False),
        "inbox": Pending(is_at_work=False, is_put_off=True),
    }  # fmt: skip
    found = decide_deferrals(JOBS, pending)
    assert found.wanted == [JobName("hot")]
    assert found.missed == [(JobName("warm"), "late"), (JobName("cold"), "overrun")]


def test_every_job_has_a_place_and_hot_comes_first():
    """Hot before warm before cold before backfill."""
    assert PLACES.keys() == KINDS.keys() | {"backfill"}
    order = sorted(PLACES, key=lambda kind: -PLACES[kind][1])
    assert order[0] == "hot"
    assert order.index("warm") < order.index("cold") < order.index("backfill")


def test_only_the_leader_works_what_asks_the_database_alone():
    """Monitoring takes these numbers from the daemon that leads."""
    assert {kind for kind, place in PLACES.items() if place[0] == LEADER} == {
        kind for kind, job in KINDS.items() if not job.asks_twilio
    }
    assert LEADER not in open_queues([], 16, leads=False)
    assert LEADER in open_queues([], 16, leads=True)


@pytest.mark.parametrize("leads", [False, True])
@pytest.mark.parametrize("slots", [3, 4, 5, 7, 8, 16, 100])
def test_no_kind_of_work_waits_for_another(slots, leads):
    """Under any amount of bulk work warm finds a slot. Under any amount of both, hot finds a quarter."""
    running: list[str] = []
    while BULK in open_queues(running, slots, leads=leads):
        running.append(BULK)
    assert running
    assert open_queues(running, slots, leads=leads) == [HOT, USUAL] + [LEADER] * leads
    while USUAL in open_queues(running, slots, leads=leads):
        running.append(USUAL)
    assert slots - len(running) >= max(1, slots // 4)
    assert open_queues(running, slots, leads=leads) == [HOT]


def test_a_run_that_was_cut_short_is_worked_again_at_once():
    """Its daemon was told to stop."""
    assert decide_again(Ended(was_cut_short=True), 0) == timedelta(0)


def test_a_locked_job_is_tried_again_for_a_while_and_then_skipped():
    """A machine that was cut off keeps its session, and the lock with it, for a while."""
    again = [decide_again(Ended(is_held="another process"), attempts) for attempts in range(HELD_TRIES)]
    assert again == [HELD_FOR] * (HELD_TRIES - 1) + [None]


def test_a_locked_job_is_tried_until_the_server_has_ended_the_session_of_a_machine_that_was_cut_off():
    """The task is taken back, which counts as a try, when the machine has been silent for SILENT_AFTER."""
    ended_after = float(_MERGE_SESSION["idle_session_timeout"].removesuffix("s"))
    last_try = SILENT_AFTER + (HELD_TRIES - 2) * HELD_FOR.total_seconds()
    assert last_try >= ended_after + HELD_FOR.total_seconds()


def test_a_failed_run_is_put_off_and_a_good_one_done():
    """The runner decides how long."""
    assert decide_again(Ended(timedelta(minutes=15)), 7) == timedelta(minutes=15)
    assert decide_again(Ended(), 0) is None

"""When jobs are due, on a clock that stands still."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from freezegun import freeze_time

from reconciler.model import JobName
from reconciler.service.schedule import Due, Schedule
from tests.harness.names import NOW

HOUR = timedelta(hours=1)
HOT, WARM = JobName("hot"), JobName("warm")


@pytest.fixture
def schedule() -> Iterator[Schedule]:
    """A paused schedule."""
    schedule = Schedule(lambda _: None, pools={"main": 1}, on_missed=lambda *_: None)
    yield schedule
    schedule.shut_down()


def due(schedule: Schedule, job: JobName) -> datetime:
    """Return when the job is due next."""
    at = schedule.next_run(job)
    assert at is not None
    return at


@freeze_time(NOW)
def test_the_first_job_of_a_kind_is_due_at_once(schedule: Schedule) -> None:
    """After the start nobody has to wait for an interval."""
    schedule.set([Due(HOT, HOUR, "main"), Due(WARM, 24 * HOUR, "main")])
    assert (due(schedule, HOT), due(schedule, WARM)) == (NOW, NOW)


@freeze_time(NOW)
def test_further_accounts_are_spread_over_the_interval(schedule: Schedule) -> None:
    """A hundred accounts do not ask Twilio in one second, and none waits longer than its interval."""
    jobs = [JobName("hot", str(number)) for number in range(100)]
    schedule.set([Due(job, HOUR, "main") for job in jobs])
    first, *others = [due(schedule, job) for job in jobs]
    assert first == NOW
    assert all(NOW <= at < NOW + HOUR for at in others)
    assert len({at.replace(second=0, microsecond=0) for at in others}) > 30


def test_an_unchanged_job_keeps_its_time(schedule: Schedule) -> None:
    """A reload that changes one interval restarts only that job."""
    with freeze_time(NOW) as clock:
        schedule.set([Due(HOT, HOUR, "main"), Due(WARM, HOUR, "main")])
        clock.tick(timedelta(minutes=7))
        schedule.set([Due(HOT, HOUR, "main"), Due(WARM, 2 * HOUR, "main")])
        assert (due(schedule, HOT), due(schedule, WARM)) == (NOW, NOW + timedelta(minutes=7))


def test_a_postponed_job_is_due_after_its_delay(schedule: Schedule) -> None:
    """The delay counts from the refusal, however often the job ran before."""
    with freeze_time(NOW) as clock:
        schedule.set([Due(HOT, timedelta(seconds=30), "main")])
        clock.tick(timedelta(seconds=90))
        schedule.postpone(HOT, HOUR)
        assert due(schedule, HOT) == NOW + timedelta(seconds=90) + HOUR


@pytest.mark.parametrize("step", [-HOUR, timedelta(seconds=20)])
@freeze_time(NOW)
def test_what_is_planned_moves_with_a_clock_that_is_set(schedule: Schedule, step: timedelta) -> None:
    """Otherwise a clock set back by an hour would stop all jobs for an hour."""
    schedule.set([Due(HOT, HOUR, "main")])
    schedule.postpone(HOT, HOUR)
    schedule.shift(step)
    assert due(schedule, HOT) == NOW + HOUR + step


@freeze_time(NOW)
def test_a_job_that_is_gone_is_never_due(schedule: Schedule) -> None:
    """A closed account's job is removed, and postponing it has no effect."""
    schedule.set([Due(HOT, HOUR, "main")])
    schedule.set([])
    schedule.postpone(HOT, HOUR)
    assert schedule.next_run(HOT) is None

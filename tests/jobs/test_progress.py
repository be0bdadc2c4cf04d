"""A long run reports its progress in the log, as the runbook says of cold and hot."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.harness.names import NOW
from tests.harness.world import World, day


@pytest.fixture
def talkative(world: World) -> World:
    """Each page of a sweep is reported, not only one every few seconds."""
    world.page_size = 25
    world.progress_every = timedelta(0)
    return world


def test_cold_reports_its_slices(talkative):
    """The last report counts all slices as done."""
    talkative.account.generate(600, day(3), NOW)
    talkative.cold()
    reports = talkative.said("job.progressed")
    assert len(reports) > 600 / 25
    assert [report["slices_done"] for report in reports] == sorted(report["slices_done"] for report in reports)
    assert 0 < reports[-1]["slices_done"] <= reports[-1]["slices"]
    assert reports[-1]["calls_seen"] >= 600


def test_hot_reports_a_backlog_of_days(talkative):
    """It does not report the newest calls, of which each run has a few."""
    talkative.hot()
    assert talkative.said("job.progressed") == []
    talkative.account.generate(600, NOW, NOW + timedelta(days=3))
    talkative.hot_after(timedelta(days=3))
    reports = talkative.said("job.progressed")
    assert reports
    assert reports[-1]["slices_done"] <= reports[-1]["slices"]


def test_a_short_run_reports_nothing(busy):
    """Its result comes soon enough."""
    busy.cold()
    assert busy.said("job.progressed") == []

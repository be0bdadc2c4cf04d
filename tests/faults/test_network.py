"""A backfill over a network on which everything goes wrong at once: equal at the end, and at little cost.

`python -m tests.faults.network --runs 200` tries many more seeds.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.network import ignored_once, in_a_hurry, try_seed


@pytest.fixture(scope="module", autouse=True)
def _in_a_hurry() -> Iterator[None]:
    with in_a_hurry():
        yield


@pytest.fixture(scope="module")
def undisturbed(server_url: str, template: str) -> int:
    """How many requests it takes when nothing goes wrong."""
    from tests.harness.databases import new_database

    with new_database(server_url, template) as url:
        outcome = try_seed(None, url)
    assert outcome.problems == []
    assert not outcome.faults
    return outcome.requests


@pytest.mark.parametrize("seed", [*range(6), 1202])  # 1202: an ignored filter after another one, and a clock ahead
def test_nothing_is_lost_or_doubled_on_a_bad_network(seed, undisturbed, database_url):
    """Every field is as Twilio says, and each event is there once.

    Besides the failed requests there are at most a tenth more, and never more at once than the pacer allowed.
    """
    outcome = try_seed(seed, database_url, undisturbed=undisturbed)
    assert outcome.problems == []
    assert len(outcome.faults) > 5


def test_nothing_is_lost_or_doubled_by_a_fleet_on_a_bad_network(server_url, template, database_url, undisturbed):
    """Two machines read the slices. Without faults they ask for as many pages, within a twentieth, as one process."""
    from tests.harness.databases import new_database

    with new_database(server_url, template) as url:
        by_fleet = try_seed(None, url, by_fleet=True)
    assert by_fleet.problems == []
    assert by_fleet.requests <= 1.05 * undisturbed
    outcome = try_seed(0, database_url, undisturbed=by_fleet.requests, by_fleet=True)
    assert outcome.problems == []
    assert len(outcome.faults) > 5


def test_the_pages_of_an_ignored_filter_are_left_again(database_url, undisturbed):
    """Twilio ignores a filter once, in an answer that looks right, so the next pages are those of the whole log.

    No repeat and no later run could mend that: the day is begun anew.
    """
    outcome = try_seed(None, database_url, planned=ignored_once)
    assert outcome.problems == []
    assert outcome.faults == {"ignored filter": outcome.runs}
    assert outcome.runs == 2

"""Two hundred histories: nothing is lost and nothing doubled. `python -m tests.faults.history` tries thousands."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from reconciler.database.store import Store
from reconciler.database.transaction import Rules
from reconciler.jobs import hot, inbox
from reconciler.sync import lookup as recheck
from tests.faults.history import Ground, known_seeds, shrink
from tests.faults.lives import draw

A_GROUP = 20


@pytest.fixture(scope="module")
def ground(server_url: str, template: str) -> Iterator[Ground]:
    from tests.harness.databases import new_database

    with new_database(server_url, template) as url, Ground.on(url) as ground:
        yield ground


@pytest.mark.parametrize("first", range(0, 200, A_GROUP))
def test_nothing_is_lost_or_doubled_in_any_history(ground, first):
    """In every history of calls, webhooks and runs, each promise of promises.py holds."""
    for seed in range(first, first + A_GROUP):
        broken = ground.live(draw(seed))
        assert broken is None, f"python -m tests.faults.history --histories 1 --seed {seed}\n{broken}"


@pytest.mark.parametrize("seed", known_seeds())
def test_a_history_that_failed_once_does_not_fail_again(ground, seed):
    assert ground.live(draw(seed)) is None


@pytest.fixture(scope="module")
def fleets_ground(server_url: str, template: str) -> Iterator[Ground]:
    from tests.harness.databases import new_database

    with new_database(server_url, template) as url, Ground.on(url, by_fleet=True) as ground:
        yield ground


def test_nothing_is_lost_or_doubled_in_a_fleet(fleets_ground):
    """Tasks are put into the queue, taken, taken back from dead machines, and worked twice: each promise holds."""
    for seed in range(A_GROUP):
        broken = fleets_ground.live(draw(seed))
        where = f"python -m tests.faults.history --engine procrastinate --histories 1 --seed {seed}"
        assert broken is None, f"{where}\n{broken}"
    assert fleets_ground.ran["killed"] > 0
    assert fleets_ground.ran["held"] > 0


# Mistakes in the code under test. They replace parts of it on purpose, private ones too.


def lose_an_observation(monkeypatch, _ground):
    commit_page = Store.commit_page
    monkeypatch.setattr(Store, "commit_page", lambda self, said, **rest: commit_page(self, said[:2], **rest))


def pass_unread_pages(monkeypatch, _ground):
    def look_away(this, place, seen):
        place.cursor.read_until = this.now()
        this.keep_cursor(place.cursor)
        return True

    monkeypatch.setattr(hot, "_list_newest", look_away)


def complete_without_merging(monkeypatch, _ground):
    monkeypatch.setattr(inbox, "_apply", lambda *_: [])


def overlook_trunks(monkeypatch, _ground):
    monkeypatch.setattr(hot, "_read_ended", lambda *_: None)


def forget_what_ended(monkeypatch, _ground):
    monkeypatch.setattr(recheck, "ask_each", lambda *_: [])


def freeze_too_soon(monkeypatch, ground):
    monkeypatch.setattr(ground, "rules", Rules(freeze_after=timedelta(0)))


@pytest.mark.parametrize(
    "mistake",
    [
        lose_an_observation,
        pass_unread_pages,
        complete_without_merging,
        overlook_trunks,
        forget_what_ended,
        freeze_too_soon,
    ],
    ids=lambda mistake: mistake.__name__,
)
def test_a_mistake_is_found(ground, monkeypatch, mistake):
    """Within a group of histories."""
    mistake(monkeypatch, ground)
    assert any(ground.live(draw(seed)) for seed in range(A_GROUP))


def test_a_history_that_fails_is_made_small(ground, monkeypatch):
    """One call and a few steps are left of it."""
    complete_without_merging(monkeypatch, ground)
    seed, broken = next((seed, broken) for seed in range(50) if (broken := ground.live(draw(seed))))
    small = shrink(ground, draw(seed), broken)
    assert len(small.lives) <= 2
    assert len(small.steps) <= 4

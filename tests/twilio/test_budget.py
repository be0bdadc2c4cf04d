"""The shares of processes in one budget, and the effect of a 429, of other programs and of a killed process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.twilio.budget import GONE_AFTER, START, Budget, Process, Report, Share, dump, load

BACKFILL = Report(16, is_hot=False, is_bulk=True)
HOT = Report(16, is_hot=True, is_bulk=False)
BOTH = Report(16, is_hot=True, is_bulk=True)


def grown(limit: int = 16) -> Budget:
    """A budget that grew to its ceiling, with nobody about."""
    return Budget(
        limit=limit,
        processes={"somebody": Process(0, 0, is_hot=False, is_bulk=False, seen_at=0, session=0, ceiling=16)},
    )


def test_a_budget_begins_small_and_grows_with_the_answers():
    """Each answer raises it by one, up to the setting: it has doubled when all places have been used once."""
    budget = Budget()
    assert START == budget.revise("a", BACKFILL, 0).limit
    assert START + 1 == budget.revise("a", BACKFILL._replace(answers=1), 1).limit
    assert 2 * START == budget.revise("a", BACKFILL._replace(answers=START - 1), 1).limit
    assert 16 == budget.revise("a", BACKFILL._replace(answers=10_000), 2).limit


def test_after_a_429_a_round_is_an_answer_for_each_place():
    """From then on each try above what was answered may be refused."""
    budget = grown(8)
    assert 4 == budget.revise("a", BACKFILL._replace(throttled=0), 0).limit
    assert 4 == budget.revise("a", BACKFILL._replace(answers=3), 1).limit
    assert 5 == budget.revise("a", BACKFILL._replace(answers=1), 2).limit


def test_a_limit_is_remembered_for_an_hour():
    """Then the account may be another one's as much as ours, and the search begins anew."""
    budget = grown()
    budget.revise("a", BACKFILL, 0)
    budget.leave("a")
    assert 16 == budget.revise("b", BACKFILL, 3600).limit
    budget.leave("b")
    assert START == budget.revise("c", BACKFILL, 7201).limit


def test_two_backfills_share_alike():
    """The second one waits until the first gave up its half."""
    budget = grown()
    assert 16 == budget.revise("a", BACKFILL, 0).most
    assert 0 == budget.revise("b", BACKFILL, 0).most
    assert 8 == budget.revise("a", BACKFILL._replace(running=16, running_in_bulk=16), 1).most
    assert 0 == budget.revise("b", BACKFILL, 1).most  # its sixteen are still under way
    assert 8 == budget.revise("a", BACKFILL._replace(running=8, running_in_bulk=8), 2).most
    assert 8 == budget.revise("b", BACKFILL, 2).most


def test_a_backfill_takes_no_more_than_it_asks_for():
    """So each worker of a fleet finds a place. A process that asks for more has the rest."""
    budget = grown()
    assert 16 == budget.revise("a", BACKFILL, 0).most  # of an older version
    for name in "bcd":
        assert 0 == budget.revise(name, BACKFILL, 0).most
    assert 2 == budget.revise("a", BACKFILL._replace(running=2, running_in_bulk=2, bulk_wanted=2), 1).most
    assert 3 == budget.revise("b", BACKFILL._replace(bulk_wanted=3), 1).most
    assert 6 == budget.revise("c", BACKFILL._replace(bulk_wanted=9), 1).most
    assert 5 == budget.revise("d", BACKFILL._replace(bulk_wanted=9), 1).most


def test_what_a_backfill_does_not_ask_for_is_not_given_to_hot():
    """Hot gets a quarter, as if the backfill asked for its whole part. When the backfill asks, its part is free."""
    budget = grown()
    budget.revise("a", BACKFILL._replace(bulk_wanted=1), 0)
    assert 4 == budget.revise("daemon", HOT, 0).most
    assert 12 == budget.revise("a", BACKFILL._replace(bulk_wanted=16), 1).most


def test_hot_finds_a_place_beside_a_backfill_at_once():
    """Where a daemon is, a backfill leaves a quarter alone."""
    budget = grown()
    budget.revise("daemon", HOT, 0)
    budget.leave("daemon")
    assert Share(16, 0, 12, 12) == budget.revise("a", BACKFILL, 60)
    assert 4 == budget.revise("daemon", HOT, 61).most


def test_a_backfill_finds_a_place_beside_hot():
    """Hot had everything, and gives up what is not its quarter."""
    budget = grown()
    assert 16 == budget.revise("daemon", HOT, 0).most
    assert 0 == budget.revise("a", BACKFILL, 0).most
    assert 4 == budget.revise("daemon", HOT, 1).most
    assert 12 == budget.revise("a", BACKFILL, 1).most


def test_at_one_request_at_a_time_hot_goes_first():
    """The backfill goes on when hot is done."""
    budget = grown(1)
    assert 1 == budget.revise("a", BACKFILL, 0).most
    assert 0 == budget.revise("daemon", HOT, 0).most
    assert 0 == budget.revise("a", BACKFILL, 1).most
    assert 1 == budget.revise("daemon", HOT, 1).most
    budget.leave("daemon")
    assert 1 == budget.revise("a", BACKFILL, 2).most


def test_a_429_halves_once_for_all_processes():
    """Both drew it with the same limit: that is one sign."""
    budget = grown()
    for name in ("a", "b"):
        budget.revise(name, BACKFILL, 0)
    assert (8, 1) == budget.revise("a", BACKFILL._replace(throttled=0), 1)[:2]
    assert (8, 1) == budget.revise("b", BACKFILL._replace(throttled=0), 1)[:2]
    assert (4, 2) == budget.revise("b", BACKFILL._replace(throttled=1), 2)[:2]


def test_a_limit_that_was_refused_is_tried_again_later():
    """Sixteen rounds below it cost nothing; each try above costs a refused request."""
    budget = grown(7)
    assert 3 == budget.revise("a", BACKFILL._replace(throttled=0), 0).limit
    assert 6 == budget.revise("a", BACKFILL._replace(answers=3 + 4 + 5), 1).limit
    assert 6 == budget.revise("a", BACKFILL._replace(answers=6 * 16 - 1), 2).limit
    assert 7 == budget.revise("a", BACKFILL._replace(answers=1), 3).limit
    assert 8 == budget.revise("a", BACKFILL._replace(answers=7), 4).limit


@pytest.mark.parametrize("later", [False, True])
def test_the_number_of_429s_shows_what_the_account_allows(later):
    """Two of eight were refused, in one report or two. So seven are too many, and six are kept for sixteen rounds."""
    budget = grown(8)
    assert 4 == budget.revise("a", BACKFILL._replace(throttled=0, refused=1 if later else 2), 0).limit
    if later:
        assert 4 == budget.revise("a", BACKFILL._replace(throttled=0, refused=1), 0).limit
    assert 6 == budget.revise("a", BACKFILL._replace(answers=4 + 5), 1).limit
    assert 6 == budget.revise("a", BACKFILL._replace(answers=6 * 16 - 1), 2).limit
    assert 7 == budget.revise("a", BACKFILL._replace(answers=1), 3).limit


def test_where_all_are_refused_the_next_higher_limit_is_tried_late():
    """The limit does not fall below half of the refused requests."""
    budget = grown(8)
    assert 4 == budget.revise("a", BACKFILL._replace(throttled=0, refused=8), 0).limit
    assert 4 == budget.revise("a", BACKFILL._replace(answers=4 * 16 - 1), 1).limit
    assert 5 == budget.revise("a", BACKFILL._replace(answers=1), 2).limit


def test_what_others_have_under_way_is_left_to_them():
    """Our other processes own their share of the requests that Twilio counts."""
    budget = grown()
    budget.revise("daemon", HOT, 0)
    budget.revise("daemon", HOT._replace(others=10), 1)
    assert 10 == budget.others
    assert 6 == budget.revise("daemon", HOT, 2).limit
    assert 16 == budget.revise("daemon", HOT._replace(others=0), 3).limit


def test_the_share_of_a_killed_process_is_free_again():
    """It is free at once if its session ended, else after some seconds of silence."""
    budget = grown()
    budget.revise("killed", BACKFILL, 0)
    budget.revise("a", BACKFILL, 1)
    assert 0 == budget.revise("a", BACKFILL, GONE_AFTER).most
    assert 16 == budget.revise("a", BACKFILL, GONE_AFTER + 1).most
    budget.revise("killed", BACKFILL, GONE_AFTER + 2, session=1)
    budget.forget_all_but([0])
    assert ["a"] == list(budget.processes)


def test_the_smallest_ceiling_counts():
    """Where two processes are configured otherwise, they are still one budget, and both find a place in it."""
    budget = grown()
    backfill, daemon = BACKFILL._replace(ceiling=4), HOT._replace(ceiling=2)
    assert 4 == budget.revise("a", backfill, 0).most
    assert 0 == budget.revise("daemon", daemon, 1).most
    assert 1 == budget.revise("a", backfill, 2).most
    assert 1 == budget.revise("daemon", daemon, 2).most


@pytest.mark.parametrize("value", [None, {}, {"limit": "many"}, [1], {"processes": {"a": 1}}])
def test_a_budget_that_cannot_be_read_is_made_anew(value):
    """It is of use for seconds; nothing is lost with it."""
    assert Budget() == load(value)


def test_a_budget_is_read_as_it_was_kept():
    """Another process reads it."""
    budget = grown()
    budget.revise("a", BOTH._replace(others=3), 0)
    assert budget == load(dump(budget))


REPORTS = st.tuples(
    st.sampled_from("abcd"), st.sampled_from([BACKFILL, HOT, BOTH, None]), st.integers(0, 40), st.booleans(),
    st.none() | st.integers(0, 20), st.none() | st.integers(1, 20), st.floats(0, 3),
)  # fmt: skip


@given(st.lists(REPORTS, max_size=60))
def test_together_they_never_exceed_the_ceiling(steps):
    """Processes come, go and report in any order, and each sends as much as it may."""
    budget, now = Budget(), 0.0
    running: dict[str, Share] = {}
    for name, report, answers, is_throttled, others, wanted, pause in steps:
        now += min(pause, 1)
        if report is None:
            running.pop(name, None)
            budget.leave(name)
            continue
        before = running.get(name, Share(0, 0, 0, 0))
        said = report._replace(
            running=before.most, running_in_bulk=before.bulk, answers=answers, others=others,
            bulk_wanted=wanted, throttled=before.lowerings if is_throttled else None,
        )  # fmt: skip
        share = budget.revise(name, said, now)
        assert share.bulk <= share.most <= share.limit <= 16
        # Requests under way end one after another; as many as allowed are under way.
        running[name] = share._replace(most=min(share.most, 16), bulk=share.bulk)
        for other in list(running):  # all of them keep their shares alive
            budget.processes[other].seen_at = now
        assert sum(process.most for process in running.values()) <= 16

"""Killed at some of the boundaries; `python -m tests.faults.crash --every` kills at all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from tests.faults.crash import Account, at_random

COMMANDS = ("backfill", "hot", "warm", "cold", "freeze", "inbox", "recordings")
IN_A_FLEET = ("hot", "cold", "inbox", "slices", "backfill")
DEATHS = {"before": 2, "behind": 1, "answered": 1, "asked": 1}


@pytest.fixture(scope="module")
def account(server_url: str, template: str) -> Iterator[Account]:
    with Account.behind(server_url, template) as account:
        account.learn()
        yield account


@pytest.mark.parametrize("command", COMMANDS)
def test_whoever_dies_goes_on_to_the_same_end(account, command):
    """At each kind of moment (crash.py) rows, events, inbox, cursors and proofs end as those of an undisturbed run.

    A backfill reads at most one page again.
    """
    assert die_of(account, command) == []


def test_a_backfill_on_several_connections_goes_on_to_the_same_end(server_url, template):
    """Three slices are read and merged at once: of each at most one page is read again."""
    with Account.behind(server_url, template, at_once=3) as account:
        account.learn("backfill")
        assert die_of(account, "backfill") == []


@pytest.fixture(scope="module")
def fleet(server_url: str, template: str) -> Iterator[Account]:
    with Account.behind(server_url, template, by_fleet=True) as account:
        account.learn(*IN_A_FLEET)
        yield account


@pytest.mark.parametrize("command", IN_A_FLEET)
def test_another_daemon_takes_up_what_a_dead_one_was_at(fleet, command):
    """The dead one had fetched the task, was working it, or had worked it and not deleted it: the end is the same.

    `slices` are the workers of a backfill, and `backfill` is its command.
    """
    assert die_of(fleet, command, {"before": 1, "answered": 2, "asked": 1}) == []


def die_of(account: Account, command: str, kinds: Mapping[str, int] = DEATHS) -> list[str]:
    """Kill the command at some boundaries of each moment; returns what is wrong in the end."""
    found = []
    for moment, deaths in kinds.items():
        boundaries = [b for b in account.boundaries if (b.command, b.moment) == (command, moment)]
        # Spread over the run, and never at its very beginning, where there is nothing to lose.
        chosen = [boundaries[len(boundaries) * part // (deaths + 1)] for part in range(1, deaths + 1) if boundaries]
        found += [account.die(boundary) for boundary in chosen]
    problems = [problem for one in found if one is not None for problem in one]
    # How often some statements are sent is a matter of time, so some processes may come to their end first.
    if found.count(None) == len(found):
        problems.append(f"{command}: no process was killed")
    print(*problems, sep="\n")  # pytest cuts them short
    return problems


def test_killed_at_any_moment_of_mixed_work(server_url, template):
    """At the end all rows equal Twilio. Calls begin meanwhile, so the test has an account of its own."""
    with Account.behind(server_url, template) as account:
        killed, problems = at_random(account, 8, seed=2)
    assert (killed, problems) == (8, [])

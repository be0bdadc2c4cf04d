"""Several processes that share one budget through a database, against a Twilio that counts what is under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from reconciler.database.budgets import Budgets
from reconciler.twilio.client import Session
from reconciler.twilio.concurrency import REVISED_AT_ONCE, REVISED_SOON, Gate, Pacer, Ticket
from tests.harness.names import ACCOUNT

CEILING = 8


@pytest.fixture
def make_process(make_source, twilio, database_url) -> Callable[..., Session]:
    """Makes sessions with a client each, as if each was a process of its own that shares the database."""

    def make(*, is_bulk: bool = False, ceiling: int = CEILING, url: str = database_url) -> Session:
        pacer = Pacer(ceiling)
        pacer.share_through(Budgets(url))
        client = make_source(twilio.base_url, pacer=pacer, limit=ceiling).client
        return client.session(is_bulk=is_bulk)

    return make


@contextmanager
def asking(session: Session, listing, *, at_once: int) -> Iterator[threading.Event]:
    """Ask in so many threads, until the context ends."""
    stop = threading.Event()

    def ask(_: int) -> None:
        while not stop.is_set():
            session.page(listing)

    with ThreadPoolExecutor(at_once) as pool:
        done = [pool.submit(ask, number) for number in range(at_once)]
        try:
            yield stop
        finally:
            stop.set()
    for each in done:
        each.result()


def until(condition: Callable[[], bool], *, within: float) -> float:
    """Wait until something is so; returns how long that took, in seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + within, "it did not come to pass"
        time.sleep(0.01)
    return time.monotonic() - began


def test_a_late_429_hides_no_new_one(database_url):
    """The late one is of the burst that halved the limit. The new one halves it again before the next report."""
    gate, before, after = Gate(CEILING, account_sid=ACCOUNT), Ticket(lowerings=0, running=1), Ticket(1, running=1)
    gate.share()
    gate.throttled(before)
    with closing(Budgets(database_url)) as ledger:
        gate.revise(ledger)
    gate.throttled(before)
    assert CEILING // 2 == gate.limit
    gate.throttled(after)
    assert CEILING // 4 == gate.limit


def test_together_they_ask_no_more_at_once_than_is_configured(make_process, twilio, account, listing):
    """Three processes begin one after another and all come to ask."""
    twilio.page_delay = timedelta(seconds=0.05)
    with ExitStack() as processes:
        sessions = [make_process(is_bulk=True), make_process(), make_process(is_bulk=True)]
        for session in sessions:
            processes.enter_context(asking(session, listing, at_once=CEILING))
            time.sleep(0.5)  # it takes up what it may
        before = [session.requests for session in sessions]
        until(
            lambda: all(session.requests > then + 5 for session, then in zip(sessions, before, strict=True)), within=10
        )
    assert CEILING == twilio.requests.max_in_flight_of(account.sid)


def test_a_429_of_one_lowers_all_within_a_second(make_process, twilio, plan, account, listing):
    """The other process learns it from the database."""
    one, other = make_process(is_bulk=True), make_process(is_bulk=True)
    twilio.page_delay = timedelta(seconds=0.05)
    with asking(one, listing, at_once=CEILING), asking(other, listing, at_once=CEILING):
        gates = [session.client.pacer.gate(account.sid) for session in (one, other)]
        until(lambda: all(gate._share.most == CEILING // 2 for gate in gates), within=10)
        plan.max_concurrent = 2
        until(lambda: one.throttles + other.throttles > 0, within=10)
        assert until(lambda: all(gate.limit <= CEILING // 2 for gate in gates), within=10) < 1.5


def test_a_share_is_given_back_at_the_end(make_process, account, listing, conn):
    """The next process has the whole budget at once."""
    session = make_process()
    session.page(listing)
    assert 1 == number_of_processes(conn, account.sid)
    session.client.close()
    assert 0 == number_of_processes(conn, account.sid)


def test_who_does_not_ask_gives_the_share_back_and_leaves_the_database_alone(make_process, account, listing, conn):
    """Between two runs the daemon writes nothing."""
    session = make_process()
    session.page(listing)
    until(lambda: number_of_processes(conn, account.sid) == 0, within=10)
    until(lambda: session.client.pacer.gate(account.sid).due_at is None, within=10)
    before = row_version(conn)
    time.sleep(1.5)  # longer than the time between two looks at the budget
    assert before == row_version(conn)
    session.page(listing)
    assert 1 == number_of_processes(conn, account.sid)


@pytest.mark.parametrize("trouble", ["DROP TABLE twilio_budgets", "ALTER TABLE twilio_budgets RENAME budget TO other"])
def test_without_a_budget_in_the_database_each_works_alone(make_process, listing, conn, events, trouble):
    """It says so once, and tries again while it asks."""
    conn.execute(trouble)
    session = make_process()
    for _ in range(3):
        session.page(listing)
    assert ["budget.unshared"] == [event["event"] for event in events if event["event"].startswith("budget")]


def test_while_the_database_is_away_the_last_share_counts(make_process, account, listing, conn):
    """The process takes no more: the others may still send requests."""
    session = make_process()
    session.page(listing)
    gate = session.client.pacer.gate(account.sid)
    before = gate._share
    conn.execute("DROP TABLE twilio_budgets")
    with asking(session, listing, at_once=2):
        failed = threading.Event()
        ledger = session.client.pacer._ledger
        assert ledger is not None
        close = ledger.close

        def note() -> None:
            failed.set()
            close()

        ledger.close = note
        assert failed.wait(10)
        before_that = session.requests
        until(lambda: session.requests > before_that + 3, within=10)
    assert before.most == gate._share.most


def number_of_processes(conn: psycopg.Connection, account_sid: str) -> int:
    """How many processes have a share."""
    row = conn.execute(
        "SELECT count(*) FROM twilio_budgets, jsonb_object_keys(budget -> 'processes') WHERE account_sid = %s",
        (account_sid,),
    ).fetchone()
    assert row is not None
    return int(row[0])


def row_version(conn: psycopg.Connection) -> list[tuple[object, ...]]:
    """Changes with each write."""
    return conn.execute("SELECT xmin::text, ctid::text FROM twilio_budgets").fetchall()


def test_the_share_of_a_killed_process_is_free_at_once(make_process, twilio, account, listing, conn):
    """Its session with the database ended with it."""
    twilio.page_delay = timedelta(seconds=0.05)
    killed, other = make_process(is_bulk=True), make_process(is_bulk=True)
    killed.page(listing)
    gate = killed.client.pacer.gate(account.sid)
    gate.revise = lambda _: setattr(gate, "due_at", None)  # it says nothing more, and is not asked to
    conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'reconciler: budget'")
    began = time.monotonic()
    other.page(listing)
    assert time.monotonic() - began < 5


def test_a_first_share_is_for_all_that_is_asked_while_the_ledger_opens(database_url, monkeypatch):
    """It is for no more, so that others that begin now find places; and for no less, so that nobody waits again."""
    gate = Gate(CEILING, account_sid=ACCOUNT)
    gate.share()

    def ask() -> None:
        with gate.slot(is_bulk=True):
            pass

    with closing(Budgets(database_url)) as ledger, ThreadPoolExecutor(2) as pool:
        revise = ledger.revise

        def revise_later(*args: Any) -> None:
            asked.append(pool.submit(ask))
            until(lambda: gate._waiting[True] == 2, within=10)
            revise(*args)

        monkeypatch.setattr(ledger, "revise", revise_later)
        asked = [pool.submit(ask)]
        until(lambda: gate._waiting[True] == 1, within=10)
        gate.revise(ledger)
        assert gate._share.most == 2
        for each in asked:
            each.result(10)


def test_a_request_that_comes_while_the_share_is_revised_is_counted_soon(database_url, monkeypatch):
    """The report did not have it, so the share is too small for it; it does not wait until the next regular report."""
    gate = Gate(CEILING, account_sid=ACCOUNT)
    gate.share()
    with closing(Budgets(database_url)) as ledger, ThreadPoolExecutor(2) as pool, ExitStack() as places:
        revise = ledger.revise
        asked = [pool.submit(places.enter_context, gate.slot(is_bulk=True))]
        until(lambda: gate._waiting[True] == 1, within=10)

        def revise_early(*args: Any) -> None:
            revise(*args)
            asked.append(pool.submit(places.enter_context, gate.slot(is_bulk=True)))
            until(lambda: gate._waiting[True] == 2, within=10)

        monkeypatch.setattr(ledger, "revise", revise_early)
        gate.revise(ledger)
        assert gate.due_at is not None
        assert gate.due_at - time.monotonic() <= REVISED_SOON
        monkeypatch.setattr(ledger, "revise", revise)
        gate.revise(ledger)
        for each in asked:
            each.result(10)


def test_a_share_for_few_grows_at_once_with_the_requests(database_url):
    """A day that is cut into parts asks for sixteen pages where one was under way. They need not wait for the limit."""
    gate = Gate(CEILING, account_sid=ACCOUNT)
    gate.share()
    with closing(Budgets(database_url)) as ledger, ThreadPoolExecutor(2) as pool, ExitStack() as places:
        asked = [pool.submit(places.enter_context, gate.slot(is_bulk=True))]
        until(lambda: gate._waiting[True] == 1, within=10)
        gate.revise(ledger)
        asked[0].result(10)
        assert gate._share.bulk == 1
        asked.append(pool.submit(places.enter_context, gate.slot(is_bulk=True)))
        until(lambda: gate._waiting[True] == 1, within=10)
        assert gate.due_at is not None
        assert gate.due_at - time.monotonic() <= REVISED_AT_ONCE
        gate.revise(ledger)
        asked[1].result(10)

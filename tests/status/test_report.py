"""`reconcile report`: the proof of each day, and the losses of webhooks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count

import pytest
from psycopg.types.json import Jsonb

from reconciler.cli.report import show_report
from reconciler.database.store import Store
from reconciler.database.transaction import Origin, Rules
from reconciler.model import Status
from reconciler.status import report
from tests.harness.names import ACCOUNT, NOW, sid
from tests.harness.rows import make_observation, make_webhook

GRACE = timedelta(seconds=60)
NONE = {"missing": 0, "stale": 0, "incomplete": 0, "conflict": 0}


@pytest.fixture
def made(conn):
    """The report of so many days."""
    return lambda days=30, **more: report.read_report(
        conn, **{"since": NOW - timedelta(days=days), "now": NOW, "webhook_grace": GRACE, **more}
    )


def test_each_event_is_its_kind_of_gap(made, add_event):
    """A row has the UTC day on which a job found it, and the job. Another day has another row."""
    for number, (event, payload) in enumerate(
        [("call.created", {}), ("call.status_changed", {}), ("call.corrected", {}), ("call.enriched", {"price": -1})]
    ):
        add_event(event, call=number, payload=Jsonb(payload))
    add_event("call.created", call=9, created_at=NOW - timedelta(hours=12, seconds=1), source="reconcile_cold")
    older, newer = made().gaps
    assert (newer.day, newer.kinds, newer.jobs) == (
        NOW.date(), {"missing": 1, "stale": 1, "incomplete": 1, "conflict": 1}, {"hot": 4},
    )  # fmt: skip
    assert (older.day, older.kinds, older.jobs) == (
        NOW.date() - timedelta(days=1), NONE | {"missing": 1}, {"cold": 1},
    )  # fmt: skip


@pytest.mark.parametrize(
    "event",
    [
        {"event_time": NOW - GRACE + timedelta(seconds=1)},  # its webhook may be on its way
        {"source": "webhook"},
        {"source": "reconcile_inbox"},  # a webhook too
        {"source": "reconcile_freeze"},
        {"dedupe_key": None},  # written before us
        {"created_at": NOW - timedelta(days=31)},
        {"created_at": NOW + timedelta(seconds=1)},
        {"event_type": "call.enriched", "payload": Jsonb({"answered_by": "human"})},
        {"event_type": "call.enriched", "payload": Jsonb({"price": 1}), "event_status": "in-progress"},
        {"event_type": "call.frozen"},
    ],
)
def test_what_is_no_gap(made, add_event, event):
    """Beside one that is."""
    add_event("call.created", call=1)
    add_event(**{"event_type": "call.created", "call": 2, **event})
    (day,) = made().gaps
    assert day.kinds == NONE | {"missing": 1}


def test_it_counts_what_the_merge_calls_a_gap(conn, database_url, made):
    """The same gaps as those the merge reports, for each kind."""
    found = dict.fromkeys(NONE, 0)
    minutes = count(70)
    with Store(database_url, rules=Rules(GRACE)) as store:
        for source, observation in [
            ("webhook", make_webhook(Status.RINGING, call=2)),
            ("webhook", make_webhook(Status.COMPLETED, call=3)),
            ("webhook", make_webhook(Status.BUSY, call=4)),
            ("reconcile_hot", make_observation(Status.IN_PROGRESS, call=1)),  # missing
            ("reconcile_hot", make_observation(Status.COMPLETED, call=2, minute=20)),  # stale
            ("reconcile_warm", make_observation(Status.COMPLETED, call=3, minute=30)),  # incomplete
            ("reconcile_cold", make_observation(Status.NO_ANSWER, call=4, minute=40)),  # conflict
        ]:
            merged = store.commit_page(
                [observation], origin=Origin(source, "run"), now=make_observation(minute=next(minutes)).observed_at
            )
            for kind, number in merged.gaps.items():
                found[kind.value] += number
    now = make_observation(minute=next(minutes)).observed_at
    (day,) = made(since=now - timedelta(days=1), now=now).gaps
    assert day.kinds == found == {"missing": 1, "stale": 1, "incomplete": 1, "conflict": 1}


def test_the_share_that_webhooks_lost(made, add_call, add_event):
    """Each call of the time counts once. A lacking price does not count: no webhook carries it."""
    for number in range(10):
        add_call(number, account_sid=f"AC{number % 3}", date_created=NOW - timedelta(days=number))
    add_call(90, account_sid="AC0", date_created=NOW - timedelta(days=31))
    add_event("call.created", call=0)
    add_event("call.status_changed", call=0)
    add_event("call.enriched", call=1, payload=Jsonb({"price": -1}))
    add_event("call.created", call=90, event_time=NOW - timedelta(days=31))
    made = made()
    assert (made.calls, made.calls_with_losses, made.share_lost) == (10, 1, 0.1)


def test_days_of_each_account(made, add_day):
    """They come in order, with their differences. The window has whole UTC days, whichever hour `since` names."""
    add_day(1, account="AC" + 32 * "2")
    add_day(2, is_complete=False, held=98, billed=101, differences=Jsonb({"missing": 2}))
    add_day(7)
    add_day(8)
    days = made(since=NOW - timedelta(days=7)).days
    assert [(day.account_sid[-1], (NOW.date() - day.day).days) for day in days] == [("1", 7), ("1", 2), ("2", 1)]
    assert (days[1].listed, days[1].held, days[1].billed, days[1].differences) == (100, 98, 101, {"missing": 2})


def test_the_json_is_a_contract(run, add_day, add_event):
    """Its keys, dates in ISO form, counts as numbers."""
    add_day(1, differences=Jsonb({"missing": 2}))
    add_event("call.created")
    done = run("report", "--since", "2026-05-11", "--json")
    assert (done.code, done.err) == (0, "")
    result = done.result
    assert list(result) == ["since", "until", "days", "gaps", "calls", "calls_with_losses", "share_lost", "imported"]
    assert result["since"] == "2026-05-11T00:00:00+00:00"
    assert result["days"] == [
        {
            "account_sid": ACCOUNT, "day": "2026-06-09", "listed": 100, "held": 100, "billed": None,
            "differences": {"missing": 2}, "is_complete": True, "verified_at": "2026-06-10T12:00:00+00:00",
            "billed_price": None, "held_price": None, "price_unit": None, "unsettled": None,
            "recordings_listed": None, "recordings_held": None,
        }
    ]  # fmt: skip
    assert result["gaps"] == [{"day": "2026-06-10", "kinds": NONE | {"missing": 1}, "jobs": {"hot": 1}}]
    assert (result["calls"], result["share_lost"]) == (0, None)


def test_a_first_import_lost_nothing(signed_in, account):
    """No gap and no share: in words, in JSON and on the page the calls are imported."""
    account.generate(40, datetime.now(UTC) - timedelta(days=2), datetime.now(UTC) - timedelta(hours=1))
    assert signed_in("--since", "3d").code == 0
    result = signed_in("report", "--json").result
    assert (result["gaps"], result["calls_with_losses"], result["share_lost"], result["imported"]) == ([], 0, None, 40)
    told = signed_in("report").out
    assert "None was found." in told
    assert "40 calls were imported: they are older than the first look after their account." in " ".join(told.split())
    assert "webhooks lost something" not in told
    assert "None was found." in signed_in("report", "--html", "-").out


@pytest.mark.parametrize(("encoding", "shapes"), [("utf-8", "█░·"), ("latin-1", "#-.")])
def test_a_calendar_of_days(made, add_day, paper, encoding, shapes):
    """A line a month, a column a day: complete, incomplete, not proven; also where there are no blocks."""
    written = paper(80, encoding)
    complete, incomplete, unknown = shapes
    for days in range(1, 13):
        add_day(days, is_complete=days != 3)
    show_report(made(days=14))
    lines = [line.rstrip() for line in written.getvalue().splitlines()]
    assert f"  2026-05  {26 * ' '}{2 * unknown}{3 * complete}" in lines
    assert f"  2026-06  {6 * complete}{incomplete}{2 * complete}{unknown}" in lines
    assert "  Of 14 days that are over, 11 proven complete, 1 incomplete." in lines
    (day,) = [line for line in lines if line.startswith("  2026-06-07")]
    assert day.split() == ["2026-06-07", "AC1111…1111", "100", "100"]


@pytest.mark.parametrize("width", [30, 60, 80])
def test_every_width_shows_everything(made, add_day, add_event, paper, width):
    """Nothing is wider than the terminal."""
    written = paper(width)
    for days in range(1, 5):
        add_day(days, is_complete=False, differences=Jsonb({"missing": 2, "stale": 1}))
        add_event("call.created", created_at=NOW - timedelta(days=days))
    show_report(made())
    text = written.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "".join(text.split()).count("2missing") == 4 or width < 60


def test_what_the_calls_cost(run, add_day):
    """Of each account and currency, and the days that differ; in JSON each day, its money as text."""
    dollars = {"price_unit": "USD", "unsettled": 0}
    add_day(1, billed_price=Decimal("1.5"), held_price=Decimal("1.49000"), price_unit="USD", unsettled=2)
    add_day(2, billed_price=Decimal("1000.25"), held_price=Decimal("1000.25000"), **dollars)
    add_day(3, billed_price=Decimal(3), held_price=Decimal("2.75000"), differences=Jsonb({"price_drift": 1}), **dollars)
    add_day(4)
    lines = [line.split() for line in run("report", "--since", "2026-05-11").out.splitlines()]
    account = "AC1111…1111"
    assert [
        account,
        "3",
        "1,004.75",
        "1,004.49000",
        "USD",
        "prices",
        "missing",
        "on",
        "1",
        "day",
    ] in lines
    assert ["2026-06-07", account, "3", "2.75000", "+0.25000", "USD"] in lines
    days = {day["day"]: day for day in run("report", "--since", "2026-05-11", "--json").result["days"]}
    assert [days["2026-06-07"][name] for name in ("billed_price", "held_price", "price_unit")] == [
        "3",
        "2.75000",
        "USD",
    ]


def test_without_prices_nothing_is_said_of_money(run, add_day):
    """This is so where the credentials may not read usage records."""
    add_day(1)
    assert "cost" not in run("report", "--since", "2026-05-11").out


def test_nothing_proven_yet(run):
    """The output says how to prove days."""
    done = run("report")
    assert done.code == 0
    assert "No day is proven: run `reconcile once cold` to prove days." in done.out
    assert "None was found." in done.out


@pytest.mark.parametrize("since", ["soon", "2999-01-01"])
def test_a_since_that_makes_no_sense(run, since):
    """64, naming it."""
    done = run("report", "--since", since)
    assert (done.code, done.out) == (64, "")
    assert since in done.err


def test_the_gaps_of_a_call_are_told_apart_by_day(made, add_event, paper):
    """A bar a day, as long as there were gaps."""
    written = paper(80)
    for number in range(10):
        add_event("call.created", call=number)
    add_event("call.created", call=11, created_at=NOW - timedelta(days=1))
    show_report(made())
    lines = [line for line in written.getvalue().splitlines() if line.startswith("  2026-06-")]
    bars = {line.split()[0]: line.count("█") for line in lines}
    assert bars == {"2026-06-10": 10, "2026-06-09": 1}
    assert sid(1) not in written.getvalue()

"""The cost of a merge depends on the page and not on the table, by its plan and by the blocks it reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from reconciler.database import connection as db
from reconciler.database import staging
from reconciler.database.store import _MERGE_SESSION, Store
from reconciler.database.transaction import Rules
from reconciler.model import Observation, Status
from tests.harness.daemons import eventually
from tests.harness.names import ACCOUNT, sid
from tests.harness.rows import ORIGIN, T0, make_observation, make_webhook

ROWS = 30_000
MERGE = db.load_queries("merge")


@pytest.fixture(params=["never analysed", "analysed", "analysed when empty"])
def full(request, conn) -> str:
    """A table of many rows, with each state of statistics that a merge may meet."""
    if request.param == "analysed when empty":
        conn.execute("ANALYZE messages")
    conn.execute("ALTER TABLE messages SET (autovacuum_enabled = off)")
    conn.execute(
        "INSERT INTO messages (twilio_sid, account_sid, direction, status, from_number, to_number, start_time)"
        " SELECT 'CA' || lpad(to_hex(n), 32, '0'), %s, 'inbound', 'ringing', '', '',"
        " %s::timestamp - n::float8 * interval '1 second'"
        " FROM generate_series(1, %s) AS n",
        (ACCOUNT, T0.replace(tzinfo=None), ROWS),
    )
    if request.param == "analysed":
        conn.execute("ANALYZE messages")
    return str(request.param)


def began(call: int, seconds_ago: int) -> Observation:
    """The record of a call that began so long before T0."""
    return make_observation(call=call, start_time=T0 - timedelta(seconds=seconds_ago))


# The calls of a page, whose rows began as many seconds before T0 as their number says: the page, the rows that the
# index on account and time yields, and how many calls are looked up by their SID.
PAGES: dict[str, tuple[list[Observation], int, int]] = {
    "neighbours in time": ([began(n, n) for n in range(1_000, 1_100)], 100, 0),
    "half of them new": ([began(n + ROWS * (n % 2), n) for n in range(1_000, 1_100)], 100, 50),
    "far apart": ([began(n, n) for n in range(1, ROWS, 300)], 100, 99),
    "with another time than their rows": ([began(n, -n) for n in range(1, 101)], 0, 100),
    "of an account without rows": (
        [began(n, n)._replace(account_sid="AC" + 32 * "f") for n in range(1_000, 1_100)], 0, 100,
    ),
    "without any time": (
        [began(n, n)._replace(start_time=None, date_created=None) for n in range(1_000, 1_100)], 0, 100,
    ),
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.usefixtures("full")
def test_the_merge_reads_no_more_rows_than_the_page_has_calls(page, connect, database_url):
    """With any statistics: at most as many by time, then one probe for each call that is not among them.

    The update goes by row address.
    """
    observations, by_time, by_sid = PAGES[page]
    plan = _plan(connect(database_url, **_MERGE_SESSION), observations)
    reads: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for node in _nodes(plan):
        if node.get("Relation Name") == "messages" and node["Actual Loops"]:
            name = node.get("Index Name", node["Node Type"])
            reads[name] += node["Actual Loops"]
            rows[name] += round(node["Actual Rows"] * node["Actual Loops"])
    known = sum(o.call_sid <= sid(ROWS) for o in observations)
    assert rows["messages_account_time"] == by_time
    assert reads["messages_twilio_sid_key"] == by_sid
    # Each call is fetched by its address, and each that has a row is updated. Three statements write: an INSERT, and an
    # UPDATE each for calls that changed and for frozen calls that are listed again.
    assert reads["Tid Scan"] == len(observations) + known
    assert reads["ModifyTable"] == 3
    assert reads.keys() <= {"messages_account_time", "messages_twilio_sid_key", "Tid Scan", "ModifyTable"}
    (join,) = (node for node in _nodes(plan) if node.get("Join Type") == "Full")
    assert join["Node Type"] in ("Hash Join", "Merge Join")


@pytest.mark.usefixtures("full")
def test_the_plan_that_the_store_keeps_reads_no_more_either(connect, database_url):
    """It was made without the values of a page. An index tells how many of its entries were read, whatever the plan."""
    page, by_time, by_sid = PAGES["far apart"]
    with Store(database_url) as store:
        with store.session() as conn:
            pid = conn.info.backend_pid
        store.commit_page(page, origin=ORIGIN, now=T0 + timedelta(hours=1))
    conn = connect(database_url)
    # The session has told its counts when it is gone.
    eventually(lambda: not conn.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchall())
    read = conn.execute(
        "SELECT indexrelname, idx_tup_read, idx_scan FROM pg_stat_user_indexes"
        " WHERE relname = 'messages' AND idx_scan > 0"
    ).fetchall()
    assert sorted(read) == [("messages_account_time", by_time, 1), ("messages_twilio_sid_key", by_sid, by_sid)]
    scans = conn.execute("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'messages'").fetchone()
    assert scans == (0,)


@pytest.mark.parametrize("analysed", [False, True])
def test_no_event_is_read_to_write_others(analysed, conn, connect, database_url):
    """Also by a plan that was made while there were none, and knew it: a first backfill keeps its plan for many pages.

    The pages hold new calls, webhooks of a status that has passed, and drift, which is looked up among the events.
    """
    if analysed:
        conn.execute("VACUUM ANALYZE call_events")
    with Store(database_url) as store:
        with store.session() as merging:
            pid = merging.info.backend_pid
        for first in range(0, 300, 100):
            page = [make_observation(call=n, price=Decimal("-0.0085")) for n in range(first, first + 100)]
            store.commit_page(page, origin=ORIGIN, now=T0)
        for n in range(0, 300, 100):
            late = make_webhook(Status.RINGING, call=n)
            drift = make_observation(call=n + 1, price=Decimal(-1), minute=11)
            store.commit_page([late, drift], origin=ORIGIN, now=T0)
    eventually(lambda: not conn.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchall())
    ((read,),) = connect(database_url).execute(
        "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'call_events_facts'"
    )
    assert read <= 6 * 4  # the first event of each of these six calls, a few times
    (scans,) = connect(database_url).execute("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'call_events'")
    assert scans == (0,)


def test_an_unchanged_frozen_row_leaves_the_merge_behind_its_look_up(store, connect, database_url):
    """Most rows of a time that is read again are such rows. Only the one that changed goes through the rules."""
    page = [make_observation(call=n, price=Decimal("-0.0085")) for n in range(100)]
    store.commit_page(page, origin=ORIGIN, now=T0)
    page[7] = page[7]._replace(duration=61)
    plan = _plan(connect(database_url, **_MERGE_SESSION), page)
    loops = Counter(node["Actual Loops"] for node in _nodes(plan) if node["Node Type"] == "Result")
    assert loops.keys() <= {0, 1}
    assert loops[1] > 5


def _plan(merging: db.Connection, page: list[Observation]) -> dict[str, Any]:
    """The plan by which PostgreSQL merged a page, with what each of its nodes did; nothing is written."""
    staging.create(merging)
    with merging.transaction(force_rollback=True):
        staging.stage(merging, page)
        now = T0 + timedelta(hours=1)
        how = {"now": now, "apply": True, "explain": False, "brief": False}
        params = {**Rules()._asdict(), **ORIGIN._asdict(), **how, **staging.neighbourhood(page)}
        row = merging.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + MERGE["merge_staged"], params).fetchone()
    assert row is not None
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)

"""The cost of a merge depends on the page and not on the table, by its plan and by the blocks it reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from reconciler.database import connection as db
from reconciler.database.store import _MERGE_SESSION
from reconciler.database.transaction import _STAGED_TYPES, Rules
from reconciler.model import Observation
from tests.harness.rows import ORIGIN, T0, make_observation

ROWS = 30_000
MERGE = db.load_queries("merge")


@pytest.fixture(params=["never analysed", "analysed", "analysed when empty"])
def full(request, conn) -> str:
    """A table of many rows, with each state of statistics that a merge may meet."""
    if request.param == "analysed when empty":
        conn.execute("ANALYZE messages")
    conn.execute("ALTER TABLE messages SET (autovacuum_enabled = off)")
    conn.execute(
        "INSERT INTO messages (twilio_sid, direction, status, from_number, to_number)"
        " SELECT 'CA' || lpad(to_hex(n), 32, '0'), 'inbound', 'ringing', '', '' FROM generate_series(1, %s) AS n",
        (ROWS,),
    )
    if request.param == "analysed":
        conn.execute("ANALYZE messages")
    return str(request.param)


@pytest.mark.usefixtures("full")
def test_the_merge_probes_the_unique_index_and_scans_no_table(connect, database_url):
    """With any statistics there is one index probe for each staged row, and the update goes by row address."""
    page = [make_observation(call=n) for n in (*range(1, 100), *range(ROWS + 1, ROWS + 100))]
    plan = _plan(connect(database_url, **_MERGE_SESSION), page)
    on_messages = [node for node in _nodes(plan) if node.get("Relation Name") == "messages"]
    probes: Counter[str] = Counter()
    for node in on_messages:
        probes[node["Node Type"]] += node["Actual Loops"]
    # Each staged call is looked up once, and each that has a row is updated once. Three statements write: an
    # INSERT, and an UPDATE each for calls that changed and for frozen calls that are listed again.
    assert probes == {"Index Scan": len(page), "Tid Scan": 99, "ModifyTable": 3}


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
    merging.execute(MERGE["create_staging"])
    with merging.transaction(force_rollback=True):
        with merging.cursor().copy(MERGE["copy_into_staging"]) as copy:
            copy.set_types(_STAGED_TYPES)
            for observation in page:
                copy.write_row(observation)
        now = T0 + timedelta(hours=1)
        params = {**Rules()._asdict(), **ORIGIN._asdict(), "now": now, "apply": True, "explain": False, "brief": False}
        row = merging.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + MERGE["merge_staged"], params).fetchone()
    assert row is not None
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)

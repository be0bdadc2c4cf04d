"""The freeze job freezes calls that have waited long enough, without Twilio, and names each stuck call once."""

from __future__ import annotations

from datetime import timedelta

import pytest
from psycopg.types.json import Jsonb

from reconciler.database import connection as db
from reconciler.jobs import freeze
from reconciler.metrics import REGISTRY
from reconciler.sync.counts import Outcome
from reconciler.twilio.listing import RETENTION
from tests.harness.equality import versions
from tests.harness.names import ACCOUNT, NOW, sid

HOUR = timedelta(hours=1)


def hear(world):
    """Let Twilio have answered hot just now: its clock is the one that deadlines pass on."""
    world.set_cursor({"account": ACCOUNT, "read_until": world.clock.now().isoformat()})


@pytest.fixture(autouse=True)
def heard(world):
    hear(world)


@pytest.fixture
def put(world):
    """Puts a row into messages as some writer left it."""

    def put_one(number, *, ended=None, began=None, via="rest", gone=None, status=None, sync_state="active"):
        world.conn.execute(
            "INSERT INTO messages (twilio_sid, account_sid, direction, status, from_number, to_number, date_created,"
            " is_final, finalized_at, observed_via, gone_at, sync_state) VALUES (%s, %s, 'inbound', %s, '', '', %s, %s,"
            " %s, %s, %s, %s)",
            (
                sid(number), ACCOUNT, status or ("completed" if ended else "ringing"), began or ended,
                ended is not None, ended, via, gone, sync_state,
            ),
        )  # fmt: skip
        return sid(number)

    return put_one


def frozen(world):
    rows = world.conn.execute("SELECT twilio_sid FROM messages WHERE sync_state = 'frozen' ORDER BY 1")
    return [row[0] for row in rows]


def reasons(world):
    rows = world.conn.execute(
        "SELECT call_sid, payload ->> 'reason', source FROM call_events WHERE event_type = 'call.frozen' ORDER BY 1"
    )
    return rows.fetchall()


def test_a_call_freezes_when_its_deadline_has_passed(world, put):
    """24 hours after its end, not a second before; the reason is in its event."""
    late, early = put(1, ended=NOW - 24 * HOUR), put(2, ended=NOW - 24 * HOUR + timedelta(seconds=1))
    totals = world.freeze()
    assert totals.frozen == 1
    assert [late] == frozen(world)
    assert [(late, "deadline", "reconcile_freeze")] == reasons(world)
    world.clock.advance(timedelta(seconds=1))
    hear(world)
    world.freeze()
    assert [late, early] == frozen(world)


def test_nothing_freezes_before_a_job_has_asked_twilio(world, put):
    """Our clock may be ahead: only an answer tells that a deadline has passed."""
    put(1, ended=NOW - 24 * HOUR)
    put(2, ended=NOW - 500 * 24 * HOUR, via="webhook")
    put(3, ended=NOW - 24 * HOUR, gone=NOW - HOUR)
    world.conn.execute("DELETE FROM sync_state")
    assert world.freeze().frozen == 0
    hear(world)
    assert world.freeze().frozen == 3


def test_a_call_waits_for_warm_to_look_past_its_deadline(world, put):
    """After downtime Twilio may have its price. Another account's warm job does not matter."""

    def warm_looked(at, account=ACCOUNT, job="warm"):
        world.conn.execute(
            "INSERT INTO sync_state (job_name, cursor) VALUES (%s, %s)"
            " ON CONFLICT (job_name) DO UPDATE SET cursor = EXCLUDED.cursor",
            (job, Jsonb({"account": account, "settled_until": NOW.isoformat(), "looked_at": at.isoformat()})),
        )

    call, gone = put(1, ended=NOW - 30 * HOUR), put(2, ended=NOW - 30 * HOUR, gone=NOW - 29 * HOUR)
    warm_looked(NOW, "AC" + 32 * "9", "warm:AC" + 32 * "9")
    warm_looked(NOW - 6 * HOUR - timedelta(seconds=1))
    assert world.freeze().frozen == 1
    assert [gone] == frozen(world)
    warm_looked(NOW - 6 * HOUR)
    assert world.freeze().frozen == 1
    assert [call, gone] == frozen(world)


@pytest.mark.parametrize(
    ("scheduled_accounts", "waits"), [((), False), ((ACCOUNT,), True), (("AC" + 32 * "9",), False), (None, True)]
)
def test_a_call_waits_for_the_first_look_of_a_warm_job_that_runs_beside(world, put, scheduled_accounts, waits):
    """The first freeze of a daemon must not be faster than its first warm, also while not all accounts are known."""
    put(1, ended=NOW - 30 * HOUR)
    assert world.freeze(scheduled_accounts=scheduled_accounts).frozen == (not waits)
    world.warm()
    assert world.freeze(scheduled_accounts=scheduled_accounts).frozen == waits


@pytest.mark.parametrize("looked_at", ["never", "2026-06-10T12:00:00", "2026-99-99T00:00:00+00:00"])
def test_a_cursor_of_warm_that_cannot_be_read_keeps_nothing_open(world, put, looked_at):
    """Warm itself complains of it."""
    call = put(1, ended=NOW - 30 * HOUR)
    cursor = Jsonb({"account": ACCOUNT, "looked_at": looked_at})
    world.conn.execute("INSERT INTO sync_state (job_name, cursor) VALUES ('warm', %s)", (cursor,))
    world.freeze()
    assert [call] == frozen(world)


def test_a_call_that_twilio_no_longer_keeps_waits_for_nobody(world, put):
    """Its account may be served no more."""
    call = put(1, ended=NOW - RETENTION - 25 * HOUR)
    cursor = Jsonb({"account": ACCOUNT, "looked_at": (NOW - RETENTION - 48 * HOUR).isoformat()})
    world.conn.execute("INSERT INTO sync_state (job_name, cursor) VALUES ('warm', %s)", (cursor,))
    world.freeze()
    assert [call] == frozen(world)


def test_a_call_known_from_webhooks_alone_waits_for_rest(world, put):
    """It has no price and no true times yet; it freezes when Twilio cannot tell them any more."""
    webhook_only = put(1, ended=NOW - 30 * 24 * HOUR, via="webhook")
    unknown = put(2, ended=NOW - 30 * 24 * HOUR, via=None)
    assert world.freeze().frozen == 0
    world.clock.set(NOW - 30 * 24 * HOUR + RETENTION + timedelta(days=1))
    assert world.freeze().frozen == 0
    world.clock.advance(timedelta(seconds=1))
    hear(world)
    assert world.freeze().frozen == 2
    assert [(webhook_only, "retention", "reconcile_freeze"), (unknown, "retention", "reconcile_freeze")] == reasons(
        world
    )


def test_a_call_that_is_gone_freezes_like_a_confirmed_one(world, put):
    """Twilio has no more to tell of it."""
    gone = put(1, ended=NOW - 25 * HOUR, via="webhook", gone=NOW - HOUR)
    world.freeze()
    assert [(gone, "gone", "reconcile_freeze")] == reasons(world)


def test_a_call_that_has_not_ended_never_freezes(world, put):
    """Its age does not matter."""
    put(1, began=NOW - 500 * 24 * HOUR)
    assert world.freeze().frozen == 0


def test_batches_follow_one_another_until_nothing_is_due(world, put):
    """Each of them a commit of its own; a second run writes nothing."""
    for number in range(7):
        put(number, ended=NOW - 30 * HOUR)
    assert world.freeze(batch=3).frozen == 7
    commits = world.conn.execute("SELECT count(DISTINCT xmin::text) FROM messages").fetchone()[0]
    assert commits == 3
    before = versions(world.conn)
    assert world.freeze(batch=3).frozen == 0
    assert versions(world.conn) == before


def test_a_stopped_run_leaves_what_it_committed(world, put):
    """The rest is the next run's."""
    for number in range(7):
        put(number, ended=NOW - 30 * HOUR)
    world.stop.set()
    totals = world.freeze(batch=3)
    assert (totals.outcome, totals.frozen) == (Outcome.INTERRUPTED, 0)
    assert world.state("freeze").get("last_success_at") is None
    world.stop.clear()
    assert world.freeze(batch=3).frozen == 7


def test_whoever_listens_is_told_which_calls_froze(world, put):
    """The job notifies the channel, as a merge does."""
    from reconciler.database.store import Store
    from tests.harness.contexts import make_context

    frozen_sid = put(1, ended=NOW - 30 * HOUR)
    world.conn.execute("LISTEN calls_changed")
    with Store(world.database_url, channel="calls_changed") as store:
        freeze.freeze(make_context("freeze", store, clock=world.clock.now))
    (notice,) = world.conn.notifies(timeout=10, stop_after=1)
    assert frozen_sid in notice.payload


# Stuck calls


def test_a_stuck_call_is_named_once(world, put):
    """The log line has all that a person needs to look for it. The next call is named when it is due."""
    first = put(1, began=NOW - 25 * HOUR)
    second = put(2, began=NOW - 23 * HOUR, status="in-progress")
    put(3, began=NOW - 30 * HOUR, gone=NOW)
    world.freeze()
    expected = {"call_sid": first, "account": ACCOUNT, "status": "ringing", "open_seconds": 25 * 3600}
    assert [expected] == world.said("call.stuck")
    world.log.clear()
    world.freeze()
    assert [] == world.said("call.stuck")
    world.clock.advance(HOUR)
    world.freeze()
    expected = {"call_sid": second, "account": ACCOUNT, "status": "in-progress", "open_seconds": 24 * 3600}
    assert [expected] == world.said("call.stuck")


def test_a_sid_that_is_no_calls_is_neither_open_nor_stuck(world, put):
    """The Viewer also keeps rows of its own and messages. Nobody can ask about them, so the alert would never end."""
    for number, own in enumerate(("local_1700000000_abc", "SM" + 32 * "0", "TJS" + 32 * "0", "vapi:1"), start=1):
        for call, ended in ((put(number, began=NOW - 30 * HOUR), None), (put(number + 10, ended=NOW - HOUR), "ended")):
            world.conn.execute(
                "UPDATE messages SET twilio_sid = %s WHERE twilio_sid = %s", (f"{own}{ended or ''}", call)
            )
    world.freeze()
    assert [] == world.said("call.stuck")
    gauges = ("open_calls", "stuck_calls", "unfrozen_calls")
    assert [0, 0, 0] == [REGISTRY.get_sample_value(f"reconciler_{name}") for name in gauges]


def test_of_many_stuck_calls_each_is_named_in_the_end(world, put, monkeypatch):
    """A run names a few of them. Each is named once, also if two calls began in the same second."""
    monkeypatch.setattr(freeze, "NAMED_AT_MOST", 4)
    began = [0, 1, 2, 3, 3, 3, 4]
    for number, hours in enumerate(began):
        put(number, began=NOW - 60 * HOUR + hours * HOUR)
    counts = []
    for _ in range(4):
        world.log.clear()
        world.freeze()
        counts.append([line["call_sid"] for line in world.said("call.stuck")])
    assert [3, 3, 1, 0] == [len(names) for names in counts]
    assert [sid(number) for number in range(7)] == sorted(name for names in counts for name in names)


# Metrics and query plans


def test_the_gauges_count_what_is_open_stuck_and_unfrozen(world, put):
    """Counts stuck calls after the run, without a scan of settled ones."""
    put(1, began=NOW - 25 * HOUR)
    put(2, began=NOW - HOUR)
    put(3, ended=NOW - HOUR)
    put(4, ended=NOW - 30 * HOUR)
    world.freeze()
    names = ("reconciler_open_calls", "reconciler_stuck_calls", "reconciler_unfrozen_calls")
    assert [2, 1, 1] == [REGISTRY.get_sample_value(name) for name in names]
    assert (25 * HOUR).total_seconds() == REGISTRY.get_sample_value("reconciler_oldest_open_call_seconds")


def test_what_is_frozen_already_costs_nothing(conn):
    """The statement reads none of 20,000 frozen rows: it uses the indexes of rows that are not frozen."""
    conn.execute(
        "INSERT INTO messages (twilio_sid, direction, status, from_number, to_number, is_final, finalized_at,"
        " sync_state, observed_via) SELECT 'CA' || lpad(to_hex(n), 32, '0'), 'inbound', 'completed', '', '', true,"
        " %s - n * interval '1 minute', 'frozen', 'rest' FROM generate_series(1, 20000) AS n",
        (NOW - 48 * HOUR,),
    )
    conn.execute("ANALYZE messages")
    due = {
        "now": NOW, "ended_before": NOW - 24 * HOUR, "freeze_after": 24 * HOUR,
        "kept_since": NOW - 401 * 24 * HOUR, "batch": 1000,
        "source": "reconcile_freeze", "run_id": "r", "accounts": [ACCOUNT], "looked_at": [NOW],
        "is_anywhere": False,
    }  # fmt: skip
    statement = db.load_queries("messages")["freeze_due"]
    ((plan,),) = conn.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", due).fetchall()
    scans = list(scans_of(plan[0]["Plan"]))
    assert {"messages_freezable", "messages_unfrozen"} <= {scan.get("Index Name") for scan in scans}
    assert "Seq Scan" not in {scan["Node Type"] for scan in scans if scan.get("Relation Name") == "messages"}
    assert 0 == sum(scan["Actual Rows"] for scan in scans if scan.get("Relation Name") == "messages")


def scans_of(node):
    if node["Node Type"].endswith("Scan"):
        yield node
    for child in node.get("Plans", ()):
        yield from scans_of(child)


def test_the_cursor_is_plain(world, put):
    """When the last call that was named began."""
    put(1, began=NOW - 25 * HOUR)
    world.freeze()
    assert world.state("freeze")["cursor"] == {"named_since": (NOW - 25 * HOUR).isoformat()}
    world.conn.execute("UPDATE sync_state SET cursor = %s", (Jsonb({"named_since": (NOW - 26 * HOUR).isoformat()}),))
    world.log.clear()
    world.freeze()
    assert len(world.said("call.stuck")) == 1

"""`reconcile --since` makes the database equal to Twilio, even after lost webhooks and over a bad network."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from reconciler.database.store import Store
from reconciler.errors import ExitCode, Refused, Unavailable
from reconciler.jobs.backfill import BackfillCounts, Window, backfill_accounts
from reconciler.simulator import Clock, Fault, SimulatedAccount, SimulatedTwilio
from reconciler.simulator.viewer import Habits, receive, work
from reconciler.simulator.webhooks import Channel, webhooks
from reconciler.sync.counts import Outcome
from reconciler.sync.fetch import Failed
from reconciler.sync.slices import NEVER_DIALLED, OPEN, slice_of_days
from reconciler.times import next_midnight
from tests.harness.equality import differences, doubled_events, expected_row, records_of, versions
from tests.harness.names import ACCOUNT, NOW
from tests.harness.world import BACKFILL, World

REAL = Path(__file__).parents[2] / "data" / "real_calls.jsonl"


def test_an_empty_database_becomes_equal(world):
    """Every call of the window lands, field by field as Twilio says."""
    summary = world.backfill(days=8)
    assert world.differences() == []
    assert (summary.seen, summary.inserted) == (3_000, 3_000)
    assert summary.exit_code is ExitCode.DONE
    assert world.state(BACKFILL)["last_success_at"] is not None


def test_the_same_again_writes_nothing(world):
    """No row version and no event changes, and every call counts as unchanged."""
    world.backfill(days=8)
    before = versions(world.conn), world.conn.execute("SELECT count(*), max(id) FROM call_events").fetchone()
    summary = world.backfill(days=8)
    assert (summary.inserted, summary.updated, summary.unchanged) == (0, 0, 3_000)
    assert (versions(world.conn), world.conn.execute("SELECT count(*), max(id) FROM call_events").fetchone()) == before


def test_a_database_fed_by_lossy_webhooks_becomes_equal(world):
    """A third of the webhooks lost, doubled, late and out of order; the Viewer with every bad habit."""
    sent = webhooks(world.account, NOW - timedelta(days=7), NOW, child_callbacks=True)
    deliveries = Channel(seed=1, loss=0.33, duplicate=0.1, late=0.1, reorder=0.2).deliver(sent)
    receive(world.conn, deliveries)
    work(world.conn, Habits(regress_statuses=True, seal_wrongly=True, overwrite_metadata=True), now=NOW)
    assert world.differences() != []
    summary = world.backfill(days=8)
    # direction of an existing row is the Viewer's; and a webhook's CallDuration 0 stays where Twilio has null (rule 5).
    assert [x for x in world.differences() if " direction: " not in x and not x.endswith("duration: 0, not None")] == []
    assert doubled_events(world.conn) == []
    assert summary.imported > 0
    assert summary.exit_code is ExitCode.DONE


def test_every_real_record_lands_as_it_is(database_url, conn):
    """Records that Twilio really sent: SIP URIs, client names, five decimals, nulls, forms of sixteen years."""
    records = [json.loads(line) for line in REAL.read_text().splitlines()]
    by_account: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_account.setdefault(record["account_sid"], []).append(record)
    accounts = [SimulatedAccount(sid, "token-of-the-account") for sid in by_account]
    clock = Clock(NOW)
    with SimulatedTwilio(accounts, clock=clock) as twilio:
        for account in accounts:
            account.load(by_account[account.sid])
            times = [expected_row(record)["date_created"] or NOW for record in by_account[account.sid]]
            clock.set(max(times) + timedelta(hours=1))
            world = World(clock, account, twilio, database_url, conn)
            world.backfill(days=(max(times) - min(times)) / timedelta(days=1) + 1)
    assert differences(conn, records) == []
    assert len(records) == 95
    # date_updated, which has no column: the end of a final call.
    updated = {
        record["sid"]: record["date_updated"] and parsedate_to_datetime(record["date_updated"]) for record in records
    }
    for call_sid, last_event_time in conn.execute("SELECT twilio_sid, last_event_time FROM messages WHERE is_final"):
        assert last_event_time == updated[call_sid]


def test_calls_that_live_are_read_and_read_again(world, account):
    """A queued, a ringing and an answered call are rows at once. The next run finds them final."""
    account.call(NOW - timedelta(minutes=5), direction="outbound-api", queued_for=None)
    account.call(NOW - timedelta(minutes=5), rings_for=None)
    account.call(NOW - timedelta(minutes=5), rings_for=4, talks_for=1_800, price="-0.01300", priced_after=30)
    world.backfill(days=8)
    assert world.differences() == []
    statuses = world.conn.execute("SELECT status, count(*) FROM messages WHERE NOT is_final GROUP BY 1").fetchall()
    assert {"queued", "ringing", "in-progress"} <= {status for status, _ in statuses}
    world.clock.advance(timedelta(hours=1))
    world.backfill("8d", days=8)
    assert world.differences() == []


def test_a_call_that_was_never_dialled_is_found_by_its_status(world, account):
    """It has no start_time, so no time filter shows it."""
    account.call(NOW - timedelta(days=3), status="canceled", never_dialled=True, direction="outbound-api")
    world.backfill(days=8)
    assert world.differences() == []


@pytest.mark.parametrize("time_filters", ["instant", "day"])
@pytest.mark.parametrize("inclusive", [False, True])
def test_whatever_a_time_filter_means(world, time_filters, inclusive):
    """Instants or whole days, `<` with or without its midnight: no call is lost, none outside the window comes in."""
    world.twilio.switches = replace(world.twilio.switches, time_filters=time_filters, before_is_inclusive=inclusive)
    since = NOW - timedelta(days=3.3)
    until = NOW - timedelta(days=1.2)
    world.backfill("3.3d", days=3.3, until=until)
    held = {sid for (sid,) in world.conn.execute("SELECT twilio_sid FROM messages").fetchall()}
    wanted, living = set(), set()
    for record in records_of(world.account, NOW):
        row = expected_row(record)
        if not row["is_final"]:
            living.add(record["sid"])
        elif since <= (row["start_time"] or row["date_created"]) < until:
            wanted.add(record["sid"])
    assert wanted <= held
    assert held - wanted <= living


def test_duplicates_inside_a_listing_are_harmless(world):
    """A listing may contain a call twice; it is one call."""
    world.twilio.switches = replace(world.twilio.switches, duplicates_in_listing=0.2)
    world.backfill(days=8)
    assert world.differences() == []
    assert doubled_events(world.conn) == []


def test_a_page_token_that_died_begins_its_slice_anew(world):
    """A token names a call and may die with it: the slice is read again from its first page, and nothing is missing."""
    world.page_size = 100
    world.twilio.faults.when(
        lambda request: "PageToken" in dict(request.params), Fault.error(400, 20001, "Invalid PageToken"), times=1
    )
    summary = world.backfill(days=8)
    assert not summary.failed
    assert world.differences() == []


def test_an_ignored_filter_is_noticed(world, quick_retries):
    """The whole log instead of a day is not merged page by page for ever: those slices fail, loudly."""
    world.twilio.switches = replace(world.twilio.switches, ignore_filters=True)
    summary = world.backfill(days=8)
    assert summary.exit_code is ExitCode.TRY_AGAIN
    assert "filter" in world.state(BACKFILL)["last_error"]
    assert world.state(BACKFILL)["last_success_at"] is None


def test_a_bad_network_changes_nothing_but_the_time(world, quick_retries):
    """429, 5xx, resets, cut bodies and HTML: equal at the end, and each bad answer cost one repeat."""
    world.twilio.faults.rates({
        Fault.too_many_requests(): 0.1, Fault.server_error(503, html=True): 0.05, Fault.reset(): 0.05,
        Fault.truncated_json(): 0.05, Fault.html_with_200(): 0.05,
    })  # fmt: skip
    summary = world.backfill(days=8)
    assert world.differences() == []
    assert summary.exit_code is ExitCode.DONE
    failed = sum(1 for request in world.twilio.requests if request.fault)
    assert summary.retries == failed > 0
    assert summary.requests == len(world.twilio.requests)


def test_a_hanging_answer_is_given_up_and_asked_again(world, quick_retries):
    """Our own timeout ends the wait."""
    world.twilio.faults.next(Fault.hang())
    summary = world.backfill(days=8, read_timeout=2.0)
    assert world.differences() == []
    assert summary.retries == 1


def test_wrong_credentials_end_the_run_at_once(world):
    """401 is not retried: one round of requests, and the message names the setting."""
    world.twilio.faults.always(Fault.unauthorized())
    with pytest.raises(Refused, match="credentials"):
        world.backfill(days=8)
    assert len(world.twilio.requests) <= 4


def test_a_broken_record_is_kept_and_the_rest_lands(world, conn):
    """One record nobody can read among thousands: a dead letter, exit code 1, everything else equal."""
    sid = records_of(world.account, NOW)[100]["sid"]
    world.twilio.faults.always(Fault.broken_record("unknown_status", sid=sid))
    summary = world.backfill(days=8)
    assert summary.dead_letters >= 1
    assert summary.exit_code is ExitCode.UNRECONCILED
    assert [line for line in world.differences() if not line.startswith(sid)] == []
    letters = conn.execute("SELECT call_sid, processing_status FROM twilio_webhook_inbox").fetchall()
    assert letters == [(sid, "dead_letter")]


def test_drift_on_a_frozen_row_is_reported_and_nothing_is_changed(world, account):
    """A price that changes after all was settled is for a person to decide."""
    world.backfill(days=8)
    (sid,) = world.conn.execute("SELECT twilio_sid FROM messages WHERE price < 0 LIMIT 1").fetchone()
    before = versions(world.conn)
    account.change(sid, price="-9.99000")
    summary = world.backfill(days=8)
    assert (summary.drifted, summary.exit_code) == (1, ExitCode.UNRECONCILED)
    assert versions(world.conn) == before


def test_a_dry_run_tells_and_writes_nothing(world):
    """The differences come out field by field; rows, events and cursors stay."""
    world.backfill(days=3)
    world.account.call(NOW - timedelta(hours=1), status="completed", rings_for=2, talks_for=60)
    before = versions(world.conn), world.state(BACKFILL)
    summary = world.backfill(days=8, dry_run=True)
    assert summary.inserted == len([d for d in world.watched.decisions if d.action == "insert" and d.theirs])
    assert summary.inserted > 0
    assert (versions(world.conn), world.state(BACKFILL)) == before


def test_a_dry_run_tells_each_call_once(world, account):
    """A call that lives is listed by its status, and in its day when it has been answered."""
    account.call(NOW - timedelta(minutes=5), rings_for=4, talks_for=1_800)
    summary = world.backfill(days=8, dry_run=True)
    told = [decision.call_sid for decision in world.watched.decisions]
    assert len(told) == len(set(told)) == summary.inserted == summary.seen == 3_001


def test_a_stopped_backfill_goes_on_where_it_stopped(world):
    """After a stop the next run asks for no merged page again, and ends with the same rows."""
    pages = {"left": 7}

    def stop_soon() -> None:
        pages["left"] -= 1
        if not pages["left"]:
            world.stop.set()

    world.watched.on_page = stop_soon
    first = world.backfill(days=8, concurrency=2)
    assert first.outcome is Outcome.INTERRUPTED
    assert first.exit_code is ExitCode.INTERRUPTED
    asked = {(r.path, tuple(r.params)) for r in world.twilio.requests}
    world.twilio.requests.clear()
    world.stop.clear()
    world.watched.on_page = lambda: None
    second = world.backfill(days=8, concurrency=2)
    assert second.resumed
    assert world.differences() == []
    assert first.seen + second.seen == 3_000
    assert asked.isdisjoint({(r.path, tuple(r.params)) for r in world.twilio.requests})


def test_a_backfill_begun_while_the_clock_was_ahead_goes_on(world):
    """The person's window lies in the past, and the backfill reads no part of it again."""
    since, until = NOW - timedelta(days=8), NOW - timedelta(days=1)
    world.watched.on_page = world.stop.set
    world.twilio.switches = replace(world.twilio.switches, date_header=False)  # nobody knows Twilio's clock
    world.behind = timedelta(hours=-5)
    world.backfill("2026-06-02", days=(world.now() - since) / timedelta(days=1), until=until, concurrency=1)
    asked = set(world.asked())
    world.twilio.requests.clear()
    world.stop.clear()
    world.watched.on_page, world.behind = lambda: None, timedelta(0)
    assert world.backfill("2026-06-02", days=8, until=until, concurrency=1).resumed
    assert asked.isdisjoint(world.asked())


def test_what_happens_while_a_backfill_lies_still_is_added_to_its_end(world, account):
    """The window that was begun is finished, and extended to the time of the second run."""
    world.watched.on_page = world.stop.set
    world.backfill(days=8, concurrency=1)
    world.stop.clear()
    world.watched.on_page = lambda: None
    world.clock.advance(timedelta(hours=2))
    account.call(
        NOW + timedelta(hours=1), status="completed", rings_for=3, talks_for=30, price="-0.02000", priced_after=5
    )
    assert world.backfill(days=8).resumed
    assert world.differences() == []


def test_a_finished_backfill_starts_anew(world):
    """The same words the next day are a new question."""
    world.backfill(days=8)
    assert not world.backfill(days=8).resumed


def test_a_database_that_goes_away_for_a_moment_does_not_end_the_run(world, quick_retries, conn):
    """The session is killed under a page: a new one is opened and the page merged again."""
    killed: list[Any] = []

    def kill_once() -> None:
        if not killed:
            killed.append(
                conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name LIKE 'reconciler: backfill:%' AND datname = current_database()"
                ).fetchall()
            )

    world.watched.on_page = kill_once
    world.backfill(days=8)
    assert killed != [[]]
    assert world.differences() == []


def test_no_more_requests_at_once_than_allowed(world):
    """The configured concurrency is a ceiling."""
    world.twilio.page_delay = timedelta(milliseconds=20)
    world.backfill(days=8, concurrency=3)
    assert 1 < world.twilio.requests.max_in_flight <= 3


def test_a_window_before_retention_is_no_failure(world):
    """Twilio's error 20004 means that nothing is left there to reconcile with."""
    world.twilio.switches = replace(world.twilio.switches, retention_days=5)
    summary = world.backfill(days=8)
    assert not summary.failed
    assert summary.exit_code is ExitCode.DONE


def test_the_backfill_names_its_account(world):
    """Cursor and lock carry the account, so that two accounts do not meet."""
    world.backfill(days=8)
    assert world.state(BACKFILL)["job_name"] == f"backfill:{ACCOUNT}"


@pytest.fixture
def quiet(account: SimulatedAccount, world: World) -> World:
    """The week of 3,000 calls, and eight before it of thirty."""
    account.generate(240, NOW - timedelta(days=60), NOW - timedelta(days=7))
    return world


def test_quiet_days_are_read_together(quiet):
    """A request that brings a few calls costs as much as one that brings a thousand."""
    summary = quiet.backfill(days=61)
    assert quiet.differences() == []
    assert (summary.slices_done, summary.slices) == (62 + 5 + 1, 62 + 5 + 1)
    assert summary.requests < 30


def test_a_stopped_backfill_of_quiet_days_goes_on_where_it_stopped(quiet):
    """The days that are read together are under way together; their pages read are not asked for again."""
    quiet.page_size = 50
    asked: set[Any] = set()
    runs = 0
    quiet.watched.on_page = lambda: quiet.stop.set() if quiet.watched.pages % 9 == 0 else None
    while quiet.backfill("61d", days=61).outcome is Outcome.INTERRUPTED:
        quiet.stop.clear()
        again = {(request.path, tuple(request.params)) for request in quiet.twilio.requests}
        assert asked.isdisjoint(again)
        asked |= again
        quiet.twilio.requests.clear()
        runs += 1
    assert runs > 3
    assert quiet.differences() == []


def test_days_that_are_kept_are_read_though_others_beside_them_are_not(quiet):
    """Twilio refuses a window of which it keeps only a part. The backfill reads that part all the same."""
    quiet.twilio.switches = replace(quiet.twilio.switches, retention_days=30)
    summary = quiet.backfill(days=61)
    assert not summary.failed
    missing = {line.split()[0] for line in quiet.differences()}
    kept_since = next_midnight(NOW - timedelta(days=30))
    times = {record["sid"]: expected_row(record)["start_time"] for record in records_of(quiet.account, NOW)}
    assert missing
    assert all(times[sid] < kept_since for sid in missing)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_day_that_cannot_be_read_keeps_no_other_from_it(quiet, quick_retries, concurrency):
    """Read with it they fail once. From then on the backfill tries each day alone, after all new ones."""
    poison = NOW - timedelta(days=30)
    quiet.twilio.faults.when(
        lambda request: str(request.param("StartTime>")) <= f"{poison:%FT%TZ}" < str(request.param("StartTime<")),
        Fault.server_error(503),
    )
    first = quiet.backfill("61d", days=61, concurrency=concurrency)
    second = quiet.backfill("61d", days=61, concurrency=concurrency)
    assert second.resumed
    (failed,) = second.failed
    assert failed.slice.since.date() == poison.date()
    assert (first.slices, second.slices - second.slices_done) == (second.slices, 1)
    times = {record["sid"]: expected_row(record)["start_time"] for record in records_of(quiet.account, NOW)}
    assert {times[line.split()[0]].date() for line in quiet.differences()} == {poison.date()}


def test_a_backfill_begun_a_day_ago_is_begun_anew(world):
    """This holds for a --since with a date too: calls that were open then have ended."""
    since = NOW - timedelta(days=8)
    world.watched.on_page = world.stop.set
    world.backfill("2026-06-02", days=8)
    world.stop.clear()
    world.watched.on_page = lambda: None
    world.clock.advance(timedelta(hours=25))
    assert not world.backfill("2026-06-02", days=(world.clock.now() - since) / timedelta(days=1)).resumed
    assert world.differences() == []


def test_an_account_with_days_unread_is_read_again_after_an_interruption(world, database_url):
    """The backfill passes over the accounts that it read to their end, and over no other."""
    accounts = ("AC" + 32 * "2", "AC" + 32 * "3", "AC" + 32 * "4")
    window = Window(NOW - timedelta(days=7), NOW, {"since": "7d", "until": None})
    asked: list[tuple[str, datetime]] = []
    failed = Failed(slice_of_days(accounts[1], NOW - timedelta(days=3), NOW), Unavailable("HTTP 503"))

    def read(account_sid: str, of: Window) -> BackfillCounts:
        asked.append((account_sid, of.since))
        if account_sid == accounts[2]:
            world.stop.set()
        return BackfillCounts(pages=1, failed=[failed] if account_sid == accounts[1] else [])

    with Store(database_url) as store:
        for _ in range(2):
            world.stop.clear()
            backfill_accounts(
                accounts, window, read, store=store, watcher=world.watched, stop=world.stop, has_worked=lambda: True
            )
    assert [since for _, since in asked] == [window.since] * 3 + [NOW, window.since, window.since]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_days_are_read_though_no_listing_by_status_is_answered(world, concurrency):
    """400 is an answer: Twilio is there. The statuses are named as not read, and nothing is left out in silence."""
    world.twilio.faults.when(lambda request: "Status" in dict(request.params), Fault.error(400, 20001, "No"))
    counts = world.backfill(concurrency=concurrency)
    assert {failure.slice.listing.status for failure in counts.failed} == {*OPEN, *NEVER_DIALLED}
    assert counts.slices_done == counts.slices - len(counts.failed)
    assert counts.seen > 2_000

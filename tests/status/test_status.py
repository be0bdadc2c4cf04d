"""`reconcile status`: how things stand, in words and as JSON."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from reconciler.cli.status import show_status
from reconciler.database import connection as db
from reconciler.database import engine_schema, locks
from reconciler.database.migration_files import TABLES, load_migrations
from reconciler.database.store import Store
from reconciler.model import JobName
from reconciler.service.leadership import Leadership
from reconciler.settings import Settings
from reconciler.status import snapshot as report
from reconciler.status.check_work import check_work
from reconciler.status.html_page import render
from reconciler.status.verdict import Verdict
from tests.harness.daemons import eventually
from tests.harness.names import ACCOUNT, NOW, sid

from .pages import make_job, make_report, make_status

RULES: dict[str, Any] = {"stuck_after": timedelta(hours=24), "inbox_grace": timedelta(minutes=5)}

JOB = """
INSERT INTO sync_state (job_name, cursor, last_success_at, last_error_at, last_error) VALUES (%s, %s, %s, %s, %s)
"""
SHAPE = {
    "at": (), "schema_version": (), "leader": ("pid", "host", "process", "since"),
    "standbys": (), "waiting": (), "next_runs": (),
    "jobs": (
        "job", "is_running", "last_success_at", "age_seconds", "read_until", "lag_seconds", "last_error_at",
        "last_error",
    ),
    "calls": ("open", "stuck", "unfrozen", "stuck_calls"),
    "inbox": ("pending", "processing", "failed", "dead_letters", "due", "oldest_due_seconds"),
    "days": ("verified", "incomplete", "newest_verified", "incomplete_days"),
    "recordings": ("listed", "told", "refused"),
    "tables": ("table", "bytes", "rows"), "fleet": (),
}  # fmt: skip


def ago(**duration: float):
    return NOW - timedelta(**duration)


@pytest.fixture
def jobs(conn):
    """One that is well, one that failed since, one that healed, one with a cursor that cannot be read."""
    rows = [
        ("hot", '{"account": "AC", "read_until": "2026-06-10T11:58:00+00:00"}', ago(seconds=4), None, None),
        (
            "warm",
            '{"looked_at": "2026-06-10T11:00:00+00:00"}',
            ago(hours=1),
            ago(minutes=3),
            "no word from +15005550100",
        ),
        ("cold", "{}", ago(hours=1), ago(hours=3), "healed"),
        ("hot:AC", '{"read_until": "yesterday"}', None, None, None),
    ]
    for row in rows:
        conn.execute(JOB, row)


@pytest.mark.usefixtures("jobs")
def test_jobs_by_age_lag_and_error(conn):
    """An error counts only until the next success, and a cursor that cannot be read is no moment."""
    states = {job.job: job for job in report.take_snapshot(conn, now=NOW, **RULES).jobs}
    assert (states["hot"].age_seconds, states["hot"].lag_seconds, states["hot"].last_error) == (4, 120, None)
    assert (states["warm"].lag_seconds, states["warm"].last_error_at) == (3600, ago(minutes=3))
    assert (states["cold"].last_error, states["cold"].last_error_at) == (None, None)
    assert (states["hot:AC"].last_success_at, states["hot:AC"].read_until) == (None, None)


@pytest.mark.usefixtures("jobs")
def test_who_leads_and_what_runs(conn, connect, database_url):
    """The locks tell, and stay as they are. The names of the connections have host and process."""
    before = report.take_snapshot(conn, now=NOW, **RULES)
    assert (before.leader, [job.job for job in before.jobs if job.is_running]) == (None, [])
    leader = connect(database_url)
    assert locks.try_advisory_lock(leader, "daemon")
    db.name_connection(leader, purpose="daemon db1/4711")
    db.name_connection(connect(database_url), purpose="daemon db2/812")
    with Store(database_url) as store, store.holding(JobName("hot")):
        status = report.take_snapshot(conn, now=NOW, **RULES)
    assert status.leader is not None
    assert (status.leader.pid, status.leader.name) == (leader.info.backend_pid, "db1/4711")
    assert [standby.name for standby in status.standbys] == ["db2/812"]
    assert [job.job for job in status.jobs if job.is_running] == ["hot"]
    assert locks.holder_of(conn, "daemon") == "db1/4711"
    locks.release_advisory_lock(leader, "daemon")
    assert report.take_snapshot(conn, now=NOW, **RULES).leader is None
    assert locks.holder_of(conn, "daemon") is None


def test_the_leaders_note(conn, connect, database_url, paper):
    """The outage and the next runs are shown while the session that wrote them leads; the note is no job."""
    leadership = Leadership(database_url)
    assert leadership.check()
    waiting = {
        "service": "Twilio", "reason": "HTTP 503", "attempt": 8, "next_at": (NOW + timedelta(seconds=18)).isoformat(),
        "since": ago(minutes=3).isoformat(),
    }  # fmt: skip
    leadership.save_note(
        {"version": "1", "waiting": waiting, "next_runs": {"hot": (NOW + timedelta(seconds=7)).isoformat()}}
    )
    snapshot = report.take_snapshot(conn, now=NOW, **RULES)
    assert snapshot.leader is not None and snapshot.leader.process == os.getpid()
    assert snapshot.waiting is not None
    assert snapshot.waiting.in_words(NOW) == "waiting for Twilio: HTTP 503, try 8, next in 18 s"
    assert snapshot.jobs == []
    written = paper(80)
    show_status(snapshot)
    said = " ".join(written.getvalue().split())
    assert "! waiting for Twilio: HTTP 503, try 8, next in 18 s; no answer since 11:57:00 UTC." in said
    assert "Next: hot in 7 s." in said
    leadership.resign()
    eventually(lambda: locks.holder_of(conn, "daemon") is None)  # the server notices a little later
    after = report.take_snapshot(conn, now=NOW, **RULES)
    assert (after.leader, after.waiting, after.next_runs) == (None, None, {})


def test_a_leader_in_another_database_is_none_of_ours(conn, connect, server_url):
    """Advisory locks are of one database."""
    assert locks.try_advisory_lock(connect(server_url), "daemon")
    assert report.take_snapshot(conn, now=NOW, **RULES).leader is None


def test_calls_that_something_is_expected_of(conn, add_call):
    """Open, stuck and unfrozen; of the stuck the oldest twenty are named."""
    for number in range(25):
        add_call(number, account_sid=ACCOUNT, date_created=ago(hours=25 + number))
    add_call(30, account_sid=ACCOUNT, date_created=ago(hours=23))
    add_call(31, status="completed", finalized_at=ago(hours=1))
    add_call(32, status="completed", finalized_at=ago(hours=1), sync_state="frozen")
    calls = report.take_snapshot(conn, now=NOW, **RULES).calls
    assert (calls.open, calls.stuck, calls.unfrozen) == (26, 25, 1)
    assert [call.call_sid for call in calls.stuck_calls] == [sid(number) for number in range(24, 4, -1)]


def test_the_inbox_by_status_and_age(conn):
    """Due is what our job would take up: older than the grace, and than a minute more if a worker is at it."""
    for number, (status, minutes) in enumerate(
        [("pending", 1), ("pending", 7), ("processing", 5.5), ("failed", 9), ("dead_letter", 9), ("completed", 9)]
    ):
        conn.execute(
            "INSERT INTO twilio_webhook_inbox (source, event_type, dedupe_key, payload, received_at, processing_status)"
            " VALUES ('twilio_voice', 'call-status', %s, '{}', %s, %s)",
            (str(number), ago(minutes=minutes), status),
        )
    inbox = report.take_snapshot(conn, now=NOW, **RULES).inbox
    assert asdict(inbox) == {
        "pending": 2, "processing": 1, "failed": 1, "dead_letters": 1, "due": 1, "oldest_due_seconds": 420.0,
    }  # fmt: skip


def test_days_of_the_last_five_weeks(conn, add_day):
    """Each account has its days. Older days do not count."""
    for days in (1, 2, 36):
        add_day(days)
    add_day(3, is_complete=False, held=99)
    add_day(2, account="AC" + 32 * "2")
    proven = report.take_snapshot(conn, now=NOW, **RULES).days
    assert (proven.verified, proven.incomplete, proven.newest_verified) == (3, 1, ago(days=1).date())
    assert [(day.day, day.listed, day.held) for day in proven.incomplete_days] == [(ago(days=3).date(), 100, 99)]


def test_recordings_of_the_last_five_weeks(conn, add_day, paper):
    """How many are listed and told, and whose the credentials may not read; of no recordings nothing is said."""
    snapshot = report.take_snapshot(conn, now=NOW, **RULES)
    assert snapshot.recordings == report.Recordings(0, 0, [])
    written = paper(80)
    show_status(snapshot)
    assert "Recordings" not in written.getvalue()
    add_day(1, recordings_listed=12, recordings_held=11, is_complete=False)
    add_day(2, recordings_listed=5, recordings_held=5)
    add_day(3)
    conn.execute(JOB, ("recordings", "{}", None, None, None))
    refused = f'{{"account": "{ACCOUNT}", "read_until": "{NOW}", "refused_at": "{ago(hours=3).isoformat()}"}}'
    conn.execute(JOB, (f"recordings:{ACCOUNT}", refused, None, None, None))
    snapshot = report.take_snapshot(conn, now=NOW, **RULES)
    assert asdict(snapshot.recordings) == {
        "listed": 17, "told": 16, "refused": [{"account_sid": ACCOUNT, "refused_at": ago(hours=3)}],
    }  # fmt: skip
    written = paper(80)
    show_status(snapshot)
    said = " ".join(written.getvalue().split("Recordings")[1].split())
    assert said.startswith("listed 17 in the account days of the last 35 told 16: `reconcile report` refused 3 h ago: ")
    page = render(snapshot, make_report(), [], state="", verdict=None)
    assert "Twilio lists 17 in the account days of the last 35; events tell of 16." in page
    assert "! Refused 3 h ago: the credentials may not read those of <code" in page


def test_table_sizes_are_estimates(conn, add_call):
    """The planner's estimate, without counting."""
    for number in range(10):
        add_call(number)
    assert {size.table: size.rows for size in report.take_snapshot(conn, now=NOW, **RULES).tables}["messages"] in (
        None,
        0,
    )
    conn.execute("ANALYZE messages")
    sizes = {size.table: size for size in report.take_snapshot(conn, now=NOW, **RULES).tables}
    assert tuple(sizes) == TABLES
    assert sizes["messages"].rows == 10
    assert all(size.bytes > 0 for size in sizes.values())


@pytest.mark.usefixtures("jobs")
def test_the_json_is_a_contract(run, connect, database_url):
    """Its keys, and times in ISO form; it exits 0 although a job failed."""
    assert locks.try_advisory_lock(connect(database_url), "daemon")
    done = run("status", "--json")
    assert (done.code, done.err) == (0, "")
    status = done.result
    for name, keys in SHAPE.items():
        part = (status[name] or [{}])[0] if isinstance(status[name], list) else status[name]
        assert not keys or tuple(part) == keys
    assert tuple(status) == tuple(SHAPE)
    assert status["schema_version"] == len(load_migrations()) - 1
    assert {job["job"]: job["read_until"] for job in status["jobs"]}["hot"] == "2026-06-10T11:58:00+00:00"


@pytest.mark.usefixtures("jobs")
def test_for_a_person(conn, connect, database_url, add_call, paper):
    """Relative ages, the leader, failures without phone numbers, and the stuck calls."""
    written = paper(80)
    assert locks.try_advisory_lock(connect(database_url), "daemon")
    add_call(1, date_created=ago(days=3))
    show_status(report.take_snapshot(conn, now=NOW, **RULES))
    lines = [" ".join(line.split()) for line in written.getvalue().splitlines()]
    assert "leads" in lines[0]
    assert "hot 4 s ago 2 min" in lines
    assert "warm 60 min ago 60 min failed 3 min ago: no word from ***00" in lines
    assert f"{sid(1)} ringing 3 d" in lines
    assert "dead letters 0" in lines


@pytest.mark.parametrize("width", [30, 40, 80, 200])
@pytest.mark.usefixtures("jobs")
def test_every_width_shows_everything(conn, add_call, add_day, paper, width):
    """Nothing is wider than the terminal, and nothing is cut off."""
    written = paper(width)
    add_call(1, date_created=ago(days=3))
    add_day(1)
    show_status(report.take_snapshot(conn, now=NOW, **RULES))
    text = written.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert sid(1) in text or width < 80
    for word in ("Jobs", "hot", "warm", "cold", "Calls", "Inbox", "Database", "messages"):
        assert word in text


def test_an_empty_database(run):
    """The output says what to do first."""
    done = run("status")
    assert (done.code, done.err) == (0, "")
    for words in ("No daemon leads", "No job has run yet", "`reconcile once cold` proves days"):
        assert words in done.out


@pytest.mark.parametrize(
    "command", [("status",), ("report",), ("call", sid(1)), ("why",), ("inbox", "list"), ("inbox", "show", "1")]
)
def test_an_old_schema_is_refused(run, empty_database_url, command):
    """The error says how to mend it. To look migrates nothing."""
    done = run(*command, DATABASE_URL=empty_database_url)
    assert (done.code, done.out) == (78, "")
    assert f"{len(load_migrations())} migrations are not applied yet" in done.err
    assert "run `reconcile migrate` first" in done.err
    with psycopg.connect(empty_database_url) as conn:
        assert conn.execute("SELECT to_regclass('messages')").fetchone() == (None,)


def test_it_asks_nothing_of_twilio(signed_in, twilio):
    """Status and report look at the database alone."""
    assert signed_in("status").code == signed_in("report").code == 0
    assert list(twilio.requests) == []


def test_a_thousand_accounts(paper):
    """They fit one screen: three failing ones by name, the others counted. `check` has one line for their cause."""
    accounts = [f"AC{number:032x}" for number in range(1_000)]
    jobs = [make_job(f"hot:{account}", last_error="HTTP 503", last_error_at=NOW) for account in accounts[:3]]
    jobs += [make_job(f"{kind}:{account}") for account in accounts[3:] for kind in ("hot", "warm", "cold")]
    snapshot = make_status(jobs=jobs)
    written = paper(80)
    show_status(snapshot)
    lines = [" ".join(line.split()) for line in written.getvalue().splitlines()]
    assert len(lines) <= 60
    assert sum("failed 0 s ago: HTTP 503" in line for line in lines) == 3
    assert "hot 12 s ago 997 accounts ok, the oldest" in lines
    found = list(check_work(snapshot, Settings.read({})))
    assert len(found) <= 10
    assert [line.detail for line in found if line.name == "jobs"] == [
        "3 of 2,994 fail since 12:00: HTTP 503 (hot of 3 accounts)"
    ]


def test_a_fleet_is_shown_with_what_each_daemon_runs(conn):
    """Silent daemons are shown too, and the tasks that wait. Without a fleet there is nothing to show."""
    assert report.take_snapshot(conn, now=NOW, **RULES, shares=True).fleet is None
    engine_schema.migrate(conn)
    conn.execute("SET search_path = reconciler_engine, public")
    conn.execute("INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now()), (now() - interval '1 minute')")
    conn.execute("INSERT INTO daemons VALUES (1, 'db1', 4711, '2026-06-01', 8), (2, 'db2', 812, '2026-06-02', 8)")
    conn.execute(
        "INSERT INTO procrastinate_jobs (queue_name, task_name, queueing_lock, status, worker_id, scheduled_at) VALUES"
        " ('hot', 'run', 'hot', 'doing', 1, NULL), ('bulk', 'run', 'cold', 'todo', NULL, NULL),"
        " ('bulk', 'run', 'cold:AC', 'todo', NULL, now() + interval '1 hour')"
    )
    fleet = report.take_snapshot(conn, now=NOW, **RULES, shares=True).fleet
    assert fleet is not None
    first, second = fleet.workers
    assert (first.name, first.running, first.silent_seconds < 30) == ("db1/4711", ["hot"], True)
    assert (second.name, second.running, second.silent_seconds >= 60) == ("db2/812", [], True)
    bulk, hot = fleet.queues
    assert (bulk.queue, bulk.due, bulk.put_off, bulk.at_work) == ("bulk", 1, 1, 0)
    assert (hot.queue, hot.due, hot.put_off, hot.at_work) == ("hot", 0, 0, 1)
    assert report.take_snapshot(conn, now=NOW, **RULES).fleet is None


def test_the_fleet_in_the_terminal_and_on_the_page(capsys):
    """Both show the runs of each daemon, silent daemons, and the age of the oldest waiting run. None stands by."""
    fleet = report.Fleet(
        [
            engine_schema.Worker(1, "db1", 4711, NOW, 8, 1.0, None, ["hot", f"cold:{ACCOUNT}"]),
            engine_schema.Worker(2, "db2", 812, NOW, 8, 61.0, None, []),
        ],
        [engine_schema.Queue("bulk", 3, 400.0, 1, 2)],
    )
    standbys = [report.Daemon(7, "db2", 812, NOW)]
    status = make_status(fleet=fleet, standbys=standbys)
    show_status(status)
    told = capsys.readouterr().out
    html = render(status, make_report(), [], state="leading", verdict=Verdict.WORKING)
    for text in (told, html):
        assert "stands by" not in text
        for words in ("db1/4711", "2 of 8", "db2/812", "silent for 61 s", "6 min", "hot, "):
            assert words in text
    assert "Fleet" not in render(make_status(), make_report(), [], state="leading", verdict=Verdict.WORKING)

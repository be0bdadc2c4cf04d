"""Facts that the status page is tried with."""

from __future__ import annotations

from datetime import timedelta
from random import Random
from typing import Any

from reconciler.settings import Settings
from reconciler.status.check_work import troubles
from reconciler.status.dead_letters import Letter
from reconciler.status.html_page import render, render_failure
from reconciler.status.report import GapsOfHour, Report
from reconciler.status.snapshot import (
    AccountDay,
    Calls,
    Daemon,
    Inbox,
    JobState,
    ProvenDays,
    Recordings,
    Snapshot,
    StuckCall,
    TableSize,
    Waiting,
)
from reconciler.status.verdict import Verdict
from tests.harness.names import ACCOUNT, NOW, sid

OTHER = "AC" + 32 * "2"
HOUR = timedelta(hours=1)
LONG = (
    "Twilio refused the credentials (HTTP 401, Twilio error 20003: Authenticate): check TWILIO_ACCOUNT_SID with "
    "TWILIO_AUTH_TOKEN, or TWILIO_API_KEY with TWILIO_API_SECRET, and TWILIO_REGION: credentials are per region"
)


def make_job(job: str = "hot", age: float | None = 12.0, lag: float | None = 40.0, **fields: Any) -> JobState:
    """A job that is well."""
    at = None if age is None else NOW - timedelta(seconds=age)
    until = None if lag is None else NOW - timedelta(seconds=lag)
    return JobState(
        **{
            "job": job, "is_running": False, "last_success_at": at, "age_seconds": age, "read_until": until,
            "lag_seconds": lag, "last_error_at": None, "last_error": None, **fields,
        }
    )  # fmt: skip


def make_day(ago: int, account: str = ACCOUNT, **fields: Any) -> AccountDay:
    """A day that is proven complete."""
    return AccountDay(
        **{
            "account_sid": account, "day": (NOW - timedelta(days=ago)).date(), "listed": 4_210, "held": 4_210,
            "billed": None, "differences": {}, "is_complete": True, "verified_at": NOW, **fields,
        }
    )  # fmt: skip


def make_status(**fields: Any) -> Snapshot:
    """A daemon that leads, and nothing to complain of."""
    return Snapshot(
        **{
            "at": NOW, "schema_version": 13, "leader": Daemon(99, "db1", 4_711, NOW - 30 * HOUR), "standbys": [],
            "waiting": None, "next_runs": {},
            "jobs": [make_job()], "calls": Calls(41, 0, 212, []), "inbox": Inbox(3, 0, 0, 0, 0, None),
            "days": ProvenDays(35, 0, NOW.date() - timedelta(days=1), []),
            "recordings": Recordings(0, 0, []), "tables": [TableSize("messages", 812_000_000, 1_204_331)],
            **fields,
        }
    )  # fmt: skip


def make_report(*days: AccountDay) -> Report:
    """Completeness of those days."""
    return Report(NOW - timedelta(days=35), NOW, list(days), [], 4_210, 0, 0.0, 0)


def troubled() -> tuple[Snapshot, Report, list[GapsOfHour]]:
    """Two accounts, gaps of every kind over two days, failing jobs, stuck calls, days that are not complete."""
    chance = Random(5)
    missing = make_day(9, listed=4_210, held=4_207, differences={"missing": 3}, is_complete=False)
    billed = make_day(
        21, OTHER, listed=310, held=310, billed=312, differences={"billed_not_held": 2, "changed": 1}, is_complete=False
    )
    days = [make_day(ago) for ago in range(34, 0, -1) if ago not in (9, 15, 16)] + [missing]
    days += [make_day(ago, OTHER, listed=310, held=310) for ago in range(25, 1, -1) if ago != 21] + [billed]
    hours = [
        GapsOfHour(
            NOW - n * HOUR,
            {
                "missing": chance.randrange(12) + (90 if 20 <= n < 23 else 0), "stale": chance.randrange(8),
                "incomplete": chance.randrange(30), "conflict": chance.choice((0, 0, 0, 0, 1)),
            },
        )
        for n in range(47, -1, -1)
        if n not in (3, 4, 30)
    ]  # fmt: skip
    stuck = [
        StuckCall(sid(number), ACCOUNT if number % 2 else OTHER, status, NOW - timedelta(hours=26 + 9 * number))
        for number, status in enumerate(("in-progress", "ringing", "queued"))
    ]
    jobs = [
        make_job("cold", 41_000, 41_000), make_job("cold:" + OTHER, 41_010, 41_010), make_job("freeze", 240, None),
        make_job(
            "hot", 4_000, 4_100, last_error_at=NOW - timedelta(seconds=70),
            last_error="the database is unavailable: connection to server at 127.0.0.1 failed",
        ),
        make_job("hot:" + OTHER, None, None, last_error_at=NOW - timedelta(seconds=30), last_error=LONG),
        make_job("housekeeping", 50_000, None), make_job("inbox", 9, None, is_running=True), make_job("warm", 310, 310),
    ]  # fmt: skip
    status = make_status(
        jobs=jobs, calls=Calls(41, 3, 212, stuck), inbox=Inbox(23, 1, 2, 4, 19, 1_200.0),
        days=ProvenDays(31 + 23, 2, NOW.date() - timedelta(days=1), [missing, billed]),
        tables=[
            TableSize("messages", 812_000_000, 1_204_331), TableSize("call_events", 2_412_000_000, 6_120_221),
            TableSize("twilio_webhook_inbox", 96_000, None), TableSize("sync_state", 49_152, 9),
        ],
    )  # fmt: skip
    return status, make_report(*days), hours


def failing_states() -> dict[str, str]:
    """The page in each state in which a person opens it: its HTML, by the part that has failed."""
    settings = Settings.read({"TWILIO_ACCOUNT_SID": ACCOUNT, "TWILIO_AUTH_TOKEN": "token"})
    status, report, hours = troubled()
    fails = {"last_error_at": NOW - timedelta(seconds=40), "last_error": "HTTP 503, Twilio error 20500: Unavailable"}
    waiting = Waiting("Twilio", "HTTP 503", 8, NOW + timedelta(seconds=18), NOW - timedelta(minutes=2))
    letters = [
        Letter(23 - n, None, "twilio_voice", "call-status", sid(n), f"no such call status: {reason}")
        for n, reason in enumerate(("teleported", "released", "answered-by-a-machine-that-says-a-great-deal"))
    ]

    def page(shown: Snapshot, state: str, verdict: Verdict, **more: Any) -> str:
        return render(shown, report, hours, todo=troubles(shown, settings), state=state, verdict=verdict, **more)

    outage = make_status(
        waiting=waiting, jobs=[make_job(), make_job("warm", 400, 400, **fails), make_job("cold", 41_000, 41_000)],
        next_runs={"hot": NOW + timedelta(seconds=18), "warm": NOW + timedelta(minutes=9)},
    )  # fmt: skip
    refused = {"last_error_at": NOW - timedelta(seconds=70), "last_error": LONG}
    ended = make_status(leader=None, jobs=[make_job("hot", 900, 900, **refused), make_job("warm", 900, 900, **refused)])
    standby = make_status(standbys=[Daemon(12, "db2.example.net", 812, NOW - 2 * HOUR)])
    return {
        "twilio away": page(outage, waiting.in_words(NOW) + "; hot succeeded 40 s ago", Verdict.WAITING),
        "refused": page(ended, "not ready: Twilio refused the credentials", Verdict.NOT_WORKING),
        "left over": page(status, "hot has not succeeded for 4000 s", Verdict.NOT_WORKING, letters=letters),
        "standing by": page(standby, "standing by: db1/4711 leads", Verdict.STANDING_BY),
        "database away": render_failure(
            'the database is unavailable: connection failed: connection to server at "db.example.net" (192.0.2.7), '
            "port 5432 failed: Connection refused", "is the server in DATABASE_URL up?",
            state="waiting for the database: the database is unavailable", verdict=Verdict.WAITING,
        ),
    }  # fmt: skip

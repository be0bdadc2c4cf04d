"""Facts that the status page is tried with."""

from __future__ import annotations

from datetime import timedelta
from random import Random
from typing import Any

from reconciler.status.report import GapsOfHour, Report
from reconciler.status.snapshot import (
    AccountDay,
    Calls,
    Daemon,
    Inbox,
    JobState,
    ProvenDays,
    Snapshot,
    StuckCall,
    TableSize,
)
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
            "tables": [TableSize("messages", 812_000_000, 1_204_331)],
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

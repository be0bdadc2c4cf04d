"""What we hold of an account's UTC day, and the proof that the day is complete: queries/account_days.sql."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime
from typing import NamedTuple

from psycopg.types.json import Jsonb

from reconciler.database.connection import Connection, load_queries

_queries = load_queries("account_days")


class DayProof(NamedTuple):
    """What is known of an account's day: a row of account_days. Counts are in calls."""

    account_sid: str
    day: date
    listed: int
    held: int
    digest: str
    billed: int | None
    differences: dict[str, int]
    is_complete: bool
    verified_at: datetime


class HeldDay(NamedTuple):
    """The calls of a day that we hold: how many, the digest of their SIDs, how many are completed."""

    calls: int
    digest: str
    completed: int


class DaysSummary(NamedTuple):
    """How many days are not proven complete, and when the newest complete one was over."""

    incomplete: int
    verified_until: datetime | None


def held_of_day(conn: Connection, *, account_sid: str, since: datetime, until: datetime) -> HeldDay:
    """The calls of `[since, until)` that we hold, without those that Twilio has no more."""
    params = {"account_sid": account_sid, "since": since, "until": until}
    row = conn.execute(_queries["held_of_day"], params).fetchone()
    assert row is not None  # aggregates give one row
    return HeldDay(*row)


def sids_of_day(conn: Connection, *, account_sid: str, since: datetime, until: datetime) -> list[str]:
    """The SIDs of the calls that `held_of_day` counts."""
    params = {"account_sid": account_sid, "since": since, "until": until}
    return [row[0] for row in conn.execute(_queries["sids_of_day"], params)]


def held_at_all(conn: Connection, call_sids: Collection[str]) -> list[str]:
    """Which of `call_sids` we hold, of whatever day."""
    return [row[0] for row in conn.execute(_queries["held_at_all"], {"call_sids": list(call_sids)})]


def sum_up(conn: Connection, *, account_sid: str, first: date) -> DaysSummary:
    """How the days of an account stand, from `first` on."""
    row = conn.execute(_queries["sum_up"], {"account_sid": account_sid, "first": first}).fetchone()
    return DaysSummary(*row) if row else DaysSummary(0, None)


def keep_proof(conn: Connection, proof: DayProof) -> None:
    """Write the proof over the one of the same day."""
    conn.execute(_queries["keep_proof"], {**proof._asdict(), "differences": Jsonb(proof.differences)})

"""Our calls of an account's UTC day, and the proof that the day is complete. See queries/account_days.sql."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime
from decimal import Decimal
from typing import NamedTuple

from psycopg.types.json import Jsonb

from reconciler.database.connection import Connection, load_queries, unwritten

_queries = load_queries("account_days")


class DayProof(NamedTuple):
    """One row of account_days: the proof of an account's UTC day. Counts are in calls."""

    account_sid: str
    day: date
    listed: int
    held: int
    digest: str
    billed: int | None
    differences: dict[str, int]
    is_complete: bool
    verified_at: datetime
    billed_price: Decimal | None = None  # Twilio's usage records', in `price_unit`
    held_price: Decimal | None = None
    price_unit: str | None = None
    unsettled: int | None = None  # see HeldPrice


class HeldDay(NamedTuple):
    """Our calls of a day: their number, the digest of their SIDs, and the number of completed ones."""

    calls: int
    digest: str
    completed: int


class HeldPrice(NamedTuple):
    """The price of our calls of a day, without those of SIP trunks.

    - `priced`: so many of them have a price.
    - `unsettled`: of so many the price is not known for good: they are not frozen, or went before their price came.
    """

    price: Decimal
    priced: int
    unsettled: int


class DaysSummary(NamedTuple):
    """The numbers of days not proven complete, and billed otherwise; the end of the newest day that is proven."""

    incomplete: int
    price_drifts: int
    verified_until: datetime | None


def held_of_day(conn: Connection, *, account_sid: str, since: datetime, until: datetime) -> HeldDay:
    """Return the summary of our calls in `[since, until)`, without gone calls."""
    params = {"account_sid": account_sid, "since": since, "until": until}
    row = conn.execute(_queries["held_of_day"], params).fetchone()
    assert row is not None  # aggregates give one row
    return HeldDay(*row)


def price_of_day(conn: Connection, *, account_sid: str, since: datetime, until: datetime, price_unit: str) -> HeldPrice:
    """Return what our calls in `[since, until)` cost in this currency."""
    params = {"account_sid": account_sid, "since": since, "until": until, "price_unit": price_unit}
    row = conn.execute(_queries["price_of_day"], params).fetchone()
    assert row is not None  # aggregates give one row
    return HeldPrice(*row)


def sids_of_day(conn: Connection, *, account_sid: str, since: datetime, until: datetime) -> list[str]:
    """Return the SIDs of the calls that `held_of_day` counts."""
    params = {"account_sid": account_sid, "since": since, "until": until}
    return [row[0] for row in conn.execute(_queries["sids_of_day"], params)]


def held_at_all(conn: Connection, call_sids: Collection[str]) -> list[str]:
    """Return those of `call_sids` that we hold, of any day."""
    return [row[0] for row in conn.execute(_queries["held_at_all"], {"call_sids": list(call_sids)})]


def sum_up(conn: Connection, *, account_sid: str, first: date) -> DaysSummary:
    """Return the summary of an account's days, from `first` on."""
    row = conn.execute(_queries["sum_up"], {"account_sid": account_sid, "first": first}).fetchone()
    return DaysSummary(*row) if row else DaysSummary(0, 0, None)


def proof_of_day(conn: Connection, *, account_sid: str, day: date) -> DayProof | None:
    """Return the proof of a day that is kept; None if the day was never proven."""
    row = conn.execute(_queries["proof_of_day"], {"account_sid": account_sid, "day": day}).fetchone()
    return DayProof(*row) if row else None


def keep_proof(conn: Connection, proof: DayProof) -> DayProof:
    """Write the proof of a day's calls in the place of an earlier one. Return it with its recordings' values.

    Raises:
        TableFault: a trigger keeps the row away.

    """
    params = {**proof._asdict(), "differences": Jsonb(proof.differences)}
    row = conn.execute(_queries["keep_proof"], params).fetchone()
    if row is None:
        raise unwritten("account_days")
    differences, is_complete = row
    return proof._replace(differences=differences, is_complete=is_complete)

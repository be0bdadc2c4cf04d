"""The report of a span of time: the days that are proven complete, and the gaps that webhooks left; read only.

`reconcile report --json` prints `dataclasses.asdict` of a report, and that shape is a contract.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from reconciler.database import connection as db
from reconciler.model import Gap
from reconciler.status.snapshot import AccountDay, account_days
from reconciler.times import midnight

# The jobs that read records by REST: webhooks had missed the gaps that these found. The inbox job merges webhooks.
_FINDERS: Final = ("hot", "warm", "cold", "backfill", "call")
_SOURCE: Final = "reconcile_"
GAP_SOURCES: Final = tuple(_SOURCE + job for job in _FINDERS)

_IMPORTED: Final = "imported"  # no gap: it was so before anybody looked after the account

_queries = db.load_queries("report")
_notes = db.load_queries("sync_state")


@dataclass(frozen=True, slots=True)
class GapsOfDay:
    """Gaps found on a UTC day, by kind, and by the job that found them."""

    day: date
    kinds: dict[str, int]
    jobs: dict[str, int]


@dataclass(frozen=True, slots=True)
class GapsOfHour:
    """Gaps found in the hour that begins at `hour`, by kind."""

    hour: datetime
    kinds: dict[str, int]


@dataclass(frozen=True, slots=True)
class Report:
    """The completeness and the gaps of a span of time.

    - `calls` is the number of our calls in that time, of each account since its first look.
    - `calls_with_losses`: for so many of them a webhook was lost.
    - `imported`: so many calls are older than the first look after their account. They are no loss.
    """

    since: datetime
    until: datetime
    days: list[AccountDay]
    gaps: list[GapsOfDay]
    calls: int
    calls_with_losses: int
    share_lost: float | None
    imported: int


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of an account's calls in some days and one currency, by Twilio's usage records and by our rows.

    - `unsettled`: of so many of the days a price is still to come, or never will.
    - `drifts`: the days on which Twilio billed another sum than their calls cost.
    """

    account_sid: str
    price_unit: str
    days: int
    billed: Decimal
    held: Decimal
    unsettled: int
    drifts: list[AccountDay]


def costs(days: Iterable[AccountDay]) -> list[Cost]:
    """Return what the calls of each account cost, on the days whose price Twilio told."""
    by_account: dict[tuple[str, str], list[AccountDay]] = {}
    for day in days:
        if day.price_unit is not None:
            by_account.setdefault((day.account_sid, day.price_unit), []).append(day)
    return [
        Cost(
            account_sid,
            price_unit,
            len(those),
            sum((day.billed_price or Decimal(0) for day in those), Decimal(0)),
            sum((day.held_price or Decimal(0) for day in those), Decimal(0)),
            sum(bool(day.unsettled) for day in those),
            [day for day in those if day.differences.get("price_drift")],
        )
        for (account_sid, price_unit), those in by_account.items()
    ]


def read_report(conn: db.Connection, *, since: datetime, now: datetime, webhook_grace: timedelta) -> Report:
    """Read the proofs of each account and UTC day, and the gaps, from the UTC day of `since` on.

    Raises:
        SchemaError: the database's schema is older than this program's.
        Refused, Unavailable: the database does not answer.

    """
    since = midnight(since)
    window = {"since": since, "now": now}
    with db.translated():
        days = account_days(conn, since=since.date())
        found = _gaps_found(conn, window, "day", webhook_grace)
        of_accounts = {**window, "first_looks": json.dumps(_first_looks(conn))}
        (calls,) = conn.execute(_queries["count_calls"], of_accounts).fetchone() or (0,)
    *_, lost, imported = found[-1]  # the row for all days
    lost = min(lost, calls)  # some of its calls began earlier
    gaps: dict[date, GapsOfDay] = {}
    for found_in, source, kind, count, *_ in found[:-1]:
        if kind == _IMPORTED:
            continue
        day = found_in.date()
        of_day = gaps.setdefault(day, GapsOfDay(day, {gap.value: 0 for gap in Gap}, {}))
        job = source.removeprefix(_SOURCE)
        of_day.kinds[kind] += count
        of_day.jobs[job] = of_day.jobs.get(job, 0) + count
    share = round(lost / calls, 6) if calls else None
    return Report(since, now, days, list(gaps.values()), calls, lost, share, imported)


def read_gaps_by_hour(
    conn: db.Connection, *, since: datetime, now: datetime, webhook_grace: timedelta
) -> list[GapsOfHour]:
    """Return the gaps found since `since`, by hour; hours without a gap are left out.

    Raises:
        SchemaError: the database's schema is older than this program's.
        Refused, Unavailable: the database does not answer.

    """
    hours: dict[datetime, GapsOfHour] = {}
    with db.translated():
        for hour, _, kind, count, *_ in _gaps_found(conn, {"since": since, "now": now}, "hour", webhook_grace)[:-1]:
            if kind == _IMPORTED:
                continue
            kinds = hours.setdefault(hour, GapsOfHour(hour, {gap.value: 0 for gap in Gap})).kinds
            kinds[kind] += count
    return list(hours.values())


def _gaps_found(
    conn: db.Connection, window: Mapping[str, datetime], unit: str, webhook_grace: timedelta
) -> list[tuple[Any, ...]]:
    params = {**window, "unit": unit, "sources": list(GAP_SOURCES), "webhook_grace": webhook_grace}
    return conn.execute(_queries["gaps_found"], params).fetchall()


def _first_looks(conn: db.Connection) -> dict[str, str]:
    """Since when which account is looked after; a note that cannot be read is the jobs' to complain of."""
    looks = {}
    for account_sid, cursor in conn.execute(_notes["first_looks"]):
        with suppress(KeyError, TypeError, ValueError):
            looks[account_sid] = datetime.fromisoformat(cursor["since"]).isoformat()
    return looks

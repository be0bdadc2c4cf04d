"""The calls that we hold, and those that a job must ask about: the reads of queries/messages.sql."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from reconciler.database.connection import Connection, load_queries

_queries = load_queries("messages")


class KnownCall(NamedTuple):
    """One of our calls, the best known time of its begin, and whether it may belong to another account."""

    call_sid: str
    began_at: datetime
    account_unknown: bool = False


class StuckCall(NamedTuple):
    """A call that has been open for longer than `stuck_after`."""

    call_sid: str
    account_sid: str | None
    status: str
    began_at: datetime


class OpenCounts(NamedTuple):
    """The numbers of open, stuck and unfrozen calls, and how long the oldest open call has been open."""

    open: int
    stuck: int
    unfrozen: int
    oldest_seconds: float


def open_calls(
    conn: Connection,
    *,
    account_sid: str,
    owns_unassigned: bool,
    is_only_account: bool,
    looked_at: datetime | None,
    now: datetime,
) -> list[KnownCall]:
    """Return the open calls of an account.

    `owns_unassigned`: rows without an account are included. If there are other accounts, such a row is included again
    each time its age has doubled since `looked_at`.
    """
    params = {
        "account_sid": account_sid,
        "owns_unassigned": owns_unassigned,
        "is_only_account": is_only_account,
        "looked_at": looked_at,
        "now": now,
    }
    return [KnownCall(*row) for row in conn.execute(_queries["open_calls"], params)]


def unfrozen_calls(
    conn: Connection,
    *,
    account_sid: str,
    owns_unassigned: bool,
    is_only_account: bool,
    since: datetime,
    confirmed_since: datetime,
    looked_at: datetime | None,
    interval: timedelta | None,
    freeze_after: timedelta,
    now: datetime,
) -> list[KnownCall]:
    """Return the calls of an account that ended at `since` or later and are not frozen.

    - Calls that REST has confirmed are included from `confirmed_since` on.
    - With `looked_at`, only calls that became due since then are included: their age has doubled, in units of
      `interval`, or their deadline has passed.
    """
    params = {
        "account_sid": account_sid,
        "owns_unassigned": owns_unassigned,
        "is_only_account": is_only_account,
        "since": since,
        "confirmed_since": confirmed_since,
        "looked_at": looked_at,
        "interval": interval,
        "freeze_after": freeze_after,
        "now": now,
    }
    return [KnownCall(*row) for row in conn.execute(_queries["unfrozen_calls"], params)]


def count_calls(conn: Connection, *, account_sid: str, since: datetime, until: datetime) -> int:
    """Return the number of calls of an account that we hold in `[since, until)`."""
    params = {"account_sid": account_sid, "since": since, "until": until}
    row = conn.execute(_queries["count_calls"], params).fetchone()
    return int(row[0]) if row else 0


def has_trunk_calls(conn: Connection, *, account_sid: str, since: datetime, limit: int) -> bool:
    """Whether a call of a SIP trunk is among the newest `limit` calls of an account that began at `since` or later."""
    params = {"account_sid": account_sid, "since": since, "limit": limit}
    row = conn.execute(_queries["has_trunk_calls"], params).fetchone()
    return bool(row and row[0])


def stuck_calls(
    conn: Connection, *, stuck_since: datetime, named_since: datetime | None, limit: int
) -> list[StuckCall]:
    """Return the oldest calls that began after `named_since` and have been open since `stuck_since` or longer."""
    params = {"stuck_since": stuck_since, "named_since": named_since, "batch": limit}
    return [StuckCall(*row) for row in conn.execute(_queries["stuck_calls"], params)]


def count_open(conn: Connection, *, stuck_since: datetime, kept_since: datetime, now: datetime) -> OpenCounts:
    """Return the numbers of open, stuck and unfrozen calls; unfrozen calls count if they ended since `kept_since`."""
    params = {"stuck_since": stuck_since, "kept_since": kept_since, "now": now}
    [row] = conn.execute(_queries["count_open"], params)
    return OpenCounts(*row)

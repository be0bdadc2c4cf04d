"""Which calls we hold, and which of them a job has to ask about: the reads of queries/messages.sql."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from reconciler.database.connection import Connection, load_queries

_queries = load_queries("messages")


class KnownCall(NamedTuple):
    """A call of ours, when it began as far as we know, and whether it may belong to another account."""

    call_sid: str
    began_at: datetime
    account_unknown: bool = False


class StuckCall(NamedTuple):
    """A call that has been open for too long."""

    call_sid: str
    account_sid: str | None
    status: str
    began_at: datetime


class OpenCounts(NamedTuple):
    """Calls that something is still expected of."""

    open: int
    stuck: int
    unfrozen: int


def open_calls(
    conn: Connection,
    *,
    account_sid: str,
    owns_unassigned: bool,
    is_only_account: bool,
    looked_at: datetime | None,
    now: datetime,
) -> list[KnownCall]:
    """The calls of an account that are not final.

    `owns_unassigned`: rows without an account are among them. If the account is not the only one, such a row is
    among them again each time its age has doubled since `looked_at`.
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
    """The calls of an account that ended at `since` or later and are not frozen.

    Calls that REST has confirmed count from `confirmed_since` on. With `looked_at`, only the calls that are due since
    then: their age has doubled, counted in `interval`s, or their deadline has passed.
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
    """How many calls of an account we hold in `[since, until)`."""
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
    """The oldest calls that began after `named_since` and are open since `stuck_since` or longer."""
    params = {"stuck_since": stuck_since, "named_since": named_since, "batch": limit}
    return [StuckCall(*row) for row in conn.execute(_queries["stuck_calls"], params)]


def count_open(conn: Connection, *, stuck_since: datetime, kept_since: datetime) -> OpenCounts:
    """How many calls are open, stuck and unfrozen; of the unfrozen those that ended at `kept_since` or later."""
    row = conn.execute(_queries["count_open"], {"stuck_since": stuck_since, "kept_since": kept_since}).fetchone()
    return OpenCounts(*row) if row else OpenCounts(0, 0, 0)

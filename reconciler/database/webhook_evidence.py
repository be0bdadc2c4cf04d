"""The evidence for lost webhooks, as tables: Twilio's alerts and endpoints at fault (queries/webhook_evidence.sql)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from reconciler.database.connection import Connection, load_queries, unwritten

READ_EVERY: Final = timedelta(hours=1)
FAULT_LASTS: Final = READ_EVERY + timedelta(minutes=30)  # after it was last seen: until the next reading
EXAMPLES: Final = 3  # calls that are named for each cause

_queries = load_queries("webhook_evidence")
_sync_state = load_queries("sync_state")


class AlertCount(NamedTuple):
    """The number of webhooks that failed in an hour with an error code at a URL, and the calls that the alerts name."""

    hour: datetime
    error_code: str
    url: str
    alerts: int
    call_sids: Sequence[str]


class EndpointFault(NamedTuple):
    """A number, SIP domain or TwiML app without a status callback, or with one on another host than the rest."""

    endpoint_sid: str
    kind: str  # phone_number, sip_domain, application
    address: str
    fault: str  # no_callback, other_host
    url: str

    def __repr__(self) -> str:
        return f"<EndpointFault {self.endpoint_sid}: {self.fault}>"


class Alerted(NamedTuple):
    """The alerts that name a call."""

    hour: datetime
    error_code: str
    url: str


@dataclass(frozen=True, slots=True)
class LostCalls:
    """Calls of an account with a gap in the same hour and with the same evidence for its cause."""

    account_sid: str | None
    hour: datetime
    is_of_trunk: bool
    trunk_sid: str | None  # None if the record did not name it, or the row is of an older version
    inbox_reason: str | None  # None if none of their webhooks failed in the inbox
    alert: Alerted | None
    fault: EndpointFault | None
    is_silent_leg: bool  # child legs without any webhook
    calls: int
    since: datetime
    until: datetime
    call_sids: tuple[str, ...] = ()  # the newest few


class AlertsOfHour(NamedTuple):
    """The number of an account's alerts in an hour; as `AlertCount`, without the calls."""

    account_sid: str
    hour: datetime
    error_code: str
    url: str
    alerts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWindow:
    """A window of lost calls: those found from `since` to `until` by jobs with these sources."""

    since: datetime
    until: datetime
    webhook_grace: timedelta
    sources: Sequence[str]
    account_sid: str | None = None


def replace_alerts(
    conn: Connection, counts: Iterable[AlertCount], *, account_sid: str, since: datetime, kept_since: datetime
) -> None:
    """Replace the account's alerts from the hour of `since` on by `counts`.

    Raises:
        TableFault: a trigger keeps the rows away.

    """
    conn.execute(
        _queries["forget_alerts"], {"account_sid": account_sid, "since": since, "kept_since": kept_since}
    )  # fmt: skip
    rows = [{**count._asdict(), "call_sids": list(count.call_sids), "account_sid": account_sid} for count in counts]
    _write(conn, "keep_alerts", rows, table="webhook_alerts")


def keep_faults(
    conn: Connection, faults: Iterable[EndpointFault], *, account_sid: str, now: datetime, kept_since: datetime
) -> None:
    """Record that these endpoints are at fault now; delete those last seen at fault before `kept_since`.

    Raises:
        TableFault: a trigger keeps the rows away.

    """
    rows = [{**fault._asdict(), "account_sid": account_sid, "now": now} for fault in faults]
    _write(conn, "keep_fault", rows, table="endpoint_faults")
    conn.execute(_queries["forget_faults"], {"account_sid": account_sid, "kept_since": kept_since})


def read_lost_calls(conn: Connection, window: LossWindow) -> list[LostCalls]:
    """Return the lost calls, each counted once, with the evidence for their causes."""
    params = {
        **_params(window), "webhook_grace": window.webhook_grace, "fault_lasts": FAULT_LASTS, "examples": EXAMPLES,
    }  # fmt: skip
    return [_lost_calls(*row) for row in conn.execute(_queries["lost_calls"], params)]


def count_imported(conn: Connection, window: LossWindow) -> int:
    """Return the number of found calls that ended before any job ran for their account: no webhook of them was lost."""
    (count,) = conn.execute(_queries["count_imported"], _params(window)).fetchone() or (0,)
    return int(count)


def read_alerts(
    conn: Connection, *, since: datetime, until: datetime, account_sid: str | None = None
) -> list[AlertsOfHour]:
    """Return the alerts of the hours between two times; within each hour the most frequent first."""
    params = {"since": since, "until": until, "account_sid": account_sid}
    return [AlertsOfHour(*row) for row in conn.execute(_queries["alerts_by_hour"], params)]


def read_cursors(conn: Connection) -> list[Any]:
    """Return the cursors of the jobs that read the evidence, as JSON."""
    return [row[0] for row in conn.execute(_sync_state["cursors_of_kind"], {"kind": "webhooks"})]


def _write(conn: Connection, query: str, rows: Sequence[Mapping[str, Any]], *, table: str) -> None:
    with conn.cursor() as cur:
        cur.executemany(_queries[query], rows)
        if rows and cur.rowcount != len(rows):
            raise unwritten(table)


def _params(window: LossWindow) -> dict[str, Any]:
    return {
        "since": window.since, "now": window.until, "sources": list(window.sources), "account_sid": window.account_sid,
    }  # fmt: skip


def _lost_calls(
    account_sid: str | None,
    hour: datetime,
    is_of_trunk: bool,
    trunk_sid: str | None,
    inbox_reason: str | None,
    *rest: Any,
) -> LostCalls:
    alert, fault = rest[:3], rest[3:8]
    is_silent_leg, calls, since, until, call_sids = rest[8:]
    return LostCalls(
        account_sid, hour, is_of_trunk, trunk_sid, inbox_reason,
        Alerted(*alert) if alert[0] is not None else None,
        EndpointFault(*fault) if fault[0] is not None else None,
        is_silent_leg, calls, since, until, tuple(call_sids),
    )  # fmt: skip

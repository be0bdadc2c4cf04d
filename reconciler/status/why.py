"""The causes of lost webhooks: each lost call gets the one cause that explains it best.

The first cause that fits explains a call:

| cause | it fits if |
| --- | --- |
| trunk | the call belongs to a SIP trunk: Twilio sends no status callback for these |
| inbox | one of the call's webhooks arrived, and failed in the inbox |
| no_callback | its number, SIP domain or TwiML app has no status callback, or one on another host than the rest |
| alert | one of Twilio's alerts names the call |
| no_callback | it is a child leg without any webhook: Twilio sends none without a statusCallback of its own |
| alert | its hour has more alerts than the calls above account for: each of these explains one call |
| unexplained | nothing fits |

`decide` is pure. `read_why` reads only the database: the job `webhooks` has read alerts and endpoints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, NamedTuple

from reconciler.database import connection as db
from reconciler.database.webhook_evidence import (
    EXAMPLES,
    AlertsOfHour,
    EndpointFault,
    LossWindow,
    LostCalls,
    count_imported,
    read_alerts,
    read_cursors,
    read_lost_calls,
)
from reconciler.masking import mask
from reconciler.status.report import GAP_SOURCES

ERROR_PAGE: Final = "https://www.twilio.com/docs/api/errors"


class Cause(StrEnum):
    """The cause of a lost webhook; the words are a contract."""

    TRUNK = "trunk"
    NO_CALLBACK = "no_callback"
    ALERT = "alert"
    INBOX = "inbox"
    UNEXPLAINED = "unexplained"


class Reason(NamedTuple):
    """A cause with its details: pairs of a field of `detail` and its value."""

    cause: Cause
    names: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Explained:
    """Lost calls that have one reason: how many, from when to when, and a few of the newest."""

    reason: Reason
    gaps: int = 0
    since: datetime | None = None
    until: datetime | None = None
    call_sids: tuple[str, ...] = ()
    hours: Counter[datetime] = field(default_factory=Counter)

    @property
    def cause(self) -> Cause:
        """The cause in the reason."""
        return self.reason.cause

    def add(self, lost: LostCalls, calls: int) -> None:
        """Add `calls` of the lost calls."""
        self.gaps += calls
        self.hours[lost.hour] += calls
        self.since = lost.since if self.since is None else min(self.since, lost.since)
        self.until = lost.until if self.until is None else max(self.until, lost.until)
        self.call_sids = (*self.call_sids, *lost.call_sids)[:EXAMPLES]


@dataclass(frozen=True, slots=True)
class Why:
    """The lost calls that were found in a span of time, by cause, the most frequent first.

    `unread` names in words the evidence that could not be read: unexplained calls may have a cause there.
    """

    since: datetime
    until: datetime
    gaps: int
    imported: int
    causes: list[Explained]
    unread: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the result for `--json`; its shape is a contract."""
        return {
            "since": self.since,
            "until": self.until,
            "gaps": self.gaps,
            "imported": self.imported,
            "causes": [
                {
                    "cause": cause.cause.value,
                    "gaps": cause.gaps,
                    "since": cause.since,
                    "until": cause.until,
                    "detail": {**dict(cause.reason.names), "calls": list(cause.call_sids), **self._unread(cause)},
                    "next": next_step(cause),
                }
                for cause in self.causes
            ],
        }

    def _unread(self, cause: Explained) -> dict[str, list[str]]:
        return {"unread": self.unread} if self.unread and cause.cause is Cause.UNEXPLAINED else {}


def read_why(
    conn: db.Connection, *, since: datetime, now: datetime, webhook_grace: timedelta, account_sid: str | None = None
) -> Why:
    """Return the causes of the lost calls that were found since `since`, of all accounts or of one.

    Raises:
        SchemaError: the database's schema is older than this program's.
        Refused, Unavailable: the database does not answer.

    """
    window = LossWindow(
        since=since, until=now, webhook_grace=webhook_grace, sources=GAP_SOURCES, account_sid=account_sid
    )
    with db.translated():
        lost = read_lost_calls(conn, window)
        imported = count_imported(conn, window)
        first = min((calls.hour for calls in lost), default=now)
        alerts = read_alerts(conn, since=first, until=now, account_sid=account_sid)
        unread = _unread(read_cursors(conn), account_sid)
    causes = decide(lost, alerts)
    return Why(since, now, sum(cause.gaps for cause in causes), imported, causes, unread)


def decide(lost: Iterable[LostCalls], alerts: Iterable[AlertsOfHour]) -> list[Explained]:
    """Return the causes of all lost calls, the most frequent first; each call counts once."""
    causes: dict[Reason, Explained] = {}
    spare: dict[tuple[str | None, datetime], Counter[tuple[str, str]]] = {}
    for alert in alerts:
        of_hour = spare.setdefault((alert.account_sid, alert.hour), Counter())
        of_hour[alert.error_code, alert.url] += alert.alerts
    rest = []
    for calls in sorted(lost, key=lambda each: (each.hour, each.until), reverse=True):
        if calls.alert is not None and (of_hour := spare.get((calls.account_sid, calls.alert.hour), Counter())):
            of_hour[calls.alert.error_code, calls.alert.url] -= calls.calls
        if (reason := _certain(calls)) is None:
            rest.append(calls)
        else:
            causes.setdefault(reason, Explained(reason)).add(calls, calls.calls)
    for calls in rest:
        for reason, number in _by_hour(calls.calls, spare.get((calls.account_sid, calls.hour), Counter())):
            causes.setdefault(reason, Explained(reason)).add(calls, number)
    return sorted(causes.values(), key=lambda each: (-each.gaps, each.reason))


def _certain(calls: LostCalls) -> Reason | None:
    """Return the reason that follows from these calls or from their number alone; None if there is none."""
    if calls.is_of_trunk:
        return Reason(Cause.TRUNK, (("trunk_sid", mask(calls.trunk_sid)),) if calls.trunk_sid else ())
    if calls.inbox_reason is not None:
        return Reason(Cause.INBOX, (("reason", mask(calls.inbox_reason)),))
    if calls.fault is not None:
        return _fault(calls.fault)
    if calls.alert is not None:
        return _alerted(calls.alert.error_code, calls.alert.url)
    if calls.is_silent_leg:
        return Reason(Cause.NO_CALLBACK, (("reason", "a child leg of <Dial>, and no webhook told of it"),))
    return None


def _by_hour(calls: int, spare: Counter[tuple[str, str]]) -> Iterator[tuple[Reason, int]]:
    """Assign calls to the remaining alerts of their hour, the most frequent first."""
    for (error_code, url), number in spare.most_common():
        taken = min(calls, number)
        if taken > 0:
            spare[error_code, url] -= taken
            calls -= taken
            yield _alerted(error_code, url), taken
    if calls:
        yield Reason(Cause.UNEXPLAINED), calls


def _alerted(error_code: str, url: str) -> Reason:
    return Reason(Cause.ALERT, (("error_code", error_code), ("url", mask(url))))


def _fault(fault: EndpointFault) -> Reason:
    names = [(fault.kind, mask(fault.address)), ("sid", fault.endpoint_sid)]
    if fault.url:
        names.append(("url", mask(fault.url)))
    return Reason(Cause.NO_CALLBACK, tuple(names))


def _unread(cursors: Iterable[Mapping[str, Any]], account_sid: str | None) -> list[str]:
    """Return in words what the job `webhooks` has not read."""
    known = [cursor for cursor in cursors if account_sid in (None, cursor.get("account"))]
    if not known:
        return ["Twilio's alerts and endpoints were never read: `reconcile once webhooks` reads them"]
    refused = {what for cursor in known for what in cursor.get("refused", ())}
    unread = [f"{UNREAD[what]} cannot be read with these credentials" for what in UNREAD if what in refused]
    if account_sid is not None and any(cursor.get("settled_until") is None for cursor in known) and not unread:
        unread.append("Twilio shows a subaccount's alerts to its own credentials alone")
    return unread


UNREAD: Final = {"alerts": "Twilio's alerts", "endpoints": "numbers, SIP domains and TwiML apps"}


def title(explained: Explained) -> str:
    """Return the title of a cause."""
    names = dict(explained.reason.names)
    match explained.cause:
        case Cause.TRUNK:
            return f"calls of SIP trunk {names['trunk_sid']}" if names else "calls of SIP trunks"
        case Cause.INBOX:
            return f"failed in the inbox: {names['reason'] or 'no reason kept'}"
        case Cause.ALERT:
            return f"error {names['error_code']} at {names['url'] or 'a URL that Twilio does not name'}"
        case Cause.UNEXPLAINED:
            return "nothing known explains them"
    if "reason" in names:
        return "child legs without a callback of their own"
    what = next(f"{_KINDS[kind]} {names[kind]}" for kind in _KINDS if kind in names)
    return f"{what}: its callback is {names['url']}" if "url" in names else f"{what} has no status callback"


_KINDS: Final = {"phone_number": "number", "sip_domain": "SIP domain", "application": "TwiML app"}
_SETTERS: Final = {
    "phone_number": "twilio api:core:incoming-phone-numbers:update --sid {sid} --status-callback URL",
    "sip_domain": "twilio api:core:sip:domains:update --sid {sid} --voice-status-callback-url URL",
    "application": "twilio api:core:applications:update --sid {sid} --status-callback URL",
}


def next_step(explained: Explained) -> str:
    """Return what to do about a cause."""
    names = dict(explained.reason.names)
    match explained.cause:
        case Cause.TRUNK:
            return "nothing: Twilio sends no status callback for trunk calls; hot finds them when they end"
        case Cause.INBOX:
            return "mend what reads the inbox; `reconcile inbox list` shows those that nobody retries any more"
        case Cause.ALERT:
            return f"see {ERROR_PAGE}/{names['error_code']}; with #rc=5&rp=all behind its URL Twilio tries again"
        case Cause.UNEXPLAINED:
            call = explained.call_sids[0] if explained.call_sids else "CA…"
            return f"see one of them: `reconcile call {call}`; its Events at Twilio list each webhook and answer"
    if "reason" in names:
        return "give <Number>, <Sip> or <Client> a statusCallback of its own: Twilio sends none for a leg without"
    setter = next(_SETTERS[kind] for kind in _SETTERS if kind in names)
    return f"`{setter.format(**names)}`, with the URL that the others have"

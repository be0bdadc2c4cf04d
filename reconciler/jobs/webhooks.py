"""The webhooks job: it stores the evidence for lost webhooks while Twilio still has it.

Design rules
- Alerts are counted by hour, error code and URL. An hour is settled when it is over and Twilio has had time to list its
  alerts. Until then each run counts it again. A run writes whole hours, and the cursor in the same commit.
- Endpoints at fault are stored with the times when they were seen at fault: a repaired fault still explains old losses.
- If the credentials may not read one of the two, the run does not fail. This is logged once, and kept in the cursor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Final, TypeVar

from reconciler.database.transaction import Transaction
from reconciler.database.webhook_evidence import AlertCount, EndpointFault
from reconciler.errors import NotPermitted, ReconcilerError
from reconciler.logs import get_logger
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts
from reconciler.sync.cursors import WebhooksCursor
from reconciler.sync.endpoint_faults import find_faults
from reconciler.sync.run import Run, run
from reconciler.twilio.permissions import read_if_permitted
from reconciler.twilio.webhook_listings import ALERTS_KEPT, list_alerts, list_endpoints
from reconciler.twilio.webhook_records import ENDPOINT_LISTS, Alert, Endpoint

RETENTION: Final = timedelta(days=90)
LISTED_WITHIN: Final = timedelta(minutes=10)  # Twilio buffers alerts before it lists them
CALLS_NAMED: Final = 10_000  # for one count; further alerts explain calls by their number only

log = get_logger(__name__)

T = TypeVar("T")


def read_webhooks(context: JobContext) -> Counts:
    """Read the account's alerts since the last run, and its endpoints at fault.

    Twilio shows a subaccount's alerts only to its own credentials. For other accounts than that of the credentials,
    only endpoints are read.

    Raises:
        ConfigError: the cursor cannot be right.
        Refused, CredentialsDoubted: Twilio refuses the credentials or the account, perhaps for a moment.
        Retriable: Twilio or the database did not come back; the next run reads everything again.
        JobHeld: another process runs this job.

    """
    with run(context, Counts()) as this:
        last = this.read_cursor(WebhooksCursor) or WebhooksCursor(account=this.account.sid)
        reading = _Reading(this, last)
        alerts, faults = reading.alerts(), reading.faults()
        if this.stop.is_set():
            return this.counts
        cursor = WebhooksCursor(account=last.account, settled_until=last.settled_until, refused=reading.refused)
        now = this.now()  # Twilio's clock is known by now, if Twilio answered
        if alerts is not None and reading.since <= now:  # otherwise our clock was ahead, and nothing was read
            cursor.settled_until = max(reading.since, _hour(min(reading.now, now) - LISTED_WITHIN))

        def keep(transaction: Transaction) -> None:
            account_sid, kept_since = this.account.sid, now - RETENTION
            if alerts is not None:
                transaction.replace_alerts(alerts, account_sid=account_sid, since=reading.since, kept_since=kept_since)
            if faults is not None:
                transaction.keep_faults(faults, account_sid=account_sid, now=now, kept_since=kept_since)
            this.move_cursor(transaction, cursor)

        this.commit(keep)
    return this.counts


class _Reading:
    """The reading of one run. `refused` names the resources that the credentials may not read."""

    def __init__(self, this: Run[Counts], last: WebhooksCursor) -> None:
        self._this = this
        self._refused_before = last.refused
        self.refused: list[str] = []
        self.now = this.now()
        oldest = _hour(self.now - ALERTS_KEPT) + timedelta(hours=1)
        self.since = max(_hour(last.settled_until or oldest), oldest)

    def alerts(self) -> list[AlertCount] | None:
        """Return the alerts of the hours that are not settled; None if they cannot be read."""
        session = self._this.session
        if session.client.account_sid != self._this.account.sid:
            return None

        def read() -> list[AlertCount]:
            return count_alerts(self._until_stopped(list_alerts(session, self.since, self.now)), self.since)

        return self._allowed("alerts", read)

    def faults(self) -> list[EndpointFault] | None:
        """Return the endpoints at fault; None if they cannot be read."""
        this = self._this

        def read() -> list[EndpointFault]:
            endpoints: list[Endpoint] = []
            for kind in ENDPOINT_LISTS:
                endpoints += self._until_stopped(list_endpoints(this.session, this.account.sid, kind))
            return find_faults(endpoints)

        return self._allowed("endpoints", read)

    def _until_stopped(self, items: Iterator[T]) -> Iterator[T]:
        """Yield `items` while the run may go on; Twilio is not asked for the others."""
        while not self._this.stop.is_set():
            try:
                yield next(items)
            except StopIteration:
                return

    def _allowed(self, resource: str, read: Callable[[], T]) -> T | None:
        """Return the result of `read`; None if the credentials may not read that, which is logged the first time."""
        session, account_sid = self._this.session, self._this.account.sid
        try:
            if resource not in self._refused_before:
                return read_if_permitted(session, account_sid, read)
            return read()
        except NotPermitted as exc:
            log.warning("evidence.refused", resource=resource, error=str(exc), hint=exc.hint)
        except ReconcilerError as exc:
            if not exc.is_refusal or resource not in self._refused_before:
                raise
        self.refused.append(resource)
        return None


def count_alerts(alerts: Iterable[Alert], since: datetime) -> list[AlertCount]:
    """Count alerts by hour, error code and URL. Hours before `since` are settled and left out."""
    numbers: dict[tuple[datetime, str, str], int] = defaultdict(int)
    calls: dict[tuple[datetime, str, str], set[str]] = defaultdict(set)
    for alert in alerts:
        hour = _hour(alert.generated)
        if hour < since:
            continue
        key = hour, alert.error_code, alert.url
        numbers[key] += 1
        if alert.call_sid is not None and len(calls[key]) < CALLS_NAMED:
            calls[key].add(alert.call_sid)
    return [AlertCount(*key, number, sorted(calls[key])) for key, number in sorted(numbers.items())]


def _hour(moment: datetime) -> datetime:
    """Return the beginning of the hour."""
    return moment.replace(minute=0, second=0, microsecond=0)

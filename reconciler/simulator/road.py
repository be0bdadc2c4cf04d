"""The road from Twilio to the receiver, the causes of lost webhooks, and a journal of each loss.

    road = Road(channel=Channel(loss=0.05), outages=(Outage(two, three),), inbox_failures=0.02)
    viewer.receive(conn, road.deliver(account, since, until))
    causes_of_gaps(account)                                  # {"CA…": "trunk", …}: what `reconcile why` should find

| cause | what happened | a test causes it with |
| --- | --- | --- |
| trunk | trunks send no status callback (https://help.twilio.com/articles/223132267) | calls of a trunk |
| no_callback | the endpoint has no status callback, or one on a host that is not the receiver's | `account.endpoints` |
| child_leg | a <Dial> without statusCallback on its noun: the leg sends no webhooks | `child_callbacks=False` |
| alert | the receiver failed; Twilio's Monitor lists it (https://www.twilio.com/docs/api/errors/11205) | `outages` |
| inbox | the webhook arrived, but the Viewer's worker cannot read it | `inbox_failures` |
| chance | the cause is unknown | `channel` |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from urllib.parse import urlsplit
from zlib import crc32

from reconciler.simulator.account import SimulatedAccount
from reconciler.simulator.calls import SimulatedCall
from reconciler.simulator.endpoints import HOOKS
from reconciler.simulator.losses import Loss
from reconciler.simulator.webhooks import Channel, Delivery, Webhook, webhooks
from reconciler.simulator.wire import instant

UNREADABLE = "released"  # a CallStatus that Twilio does not document
GIVEN_UP_AFTER = timedelta(seconds=10)  # two attempts of five seconds


@dataclass(frozen=True, slots=True)
class Outage:
    """A failure of the receiver in [since, until): 11205 is no connection, 11200 an answer of 4xx or 5xx.

    Only webhooks whose URL contains `part_of_url` fail; empty means all of them.
    """

    since: datetime
    until: datetime
    error_code: str = "11205"
    part_of_url: str = ""

    def hits(self, webhook: Webhook) -> bool:
        """Whether this outage loses the webhook."""
        return self.since <= webhook.sent_at < self.until and self.part_of_url in webhook.url


@dataclass(frozen=True, slots=True)
class Road:
    """Delivers webhooks, and writes losses to `account.losses` and failures of the receiver to `account.alerts`.

    Attributes:
        channel: loses webhooks by chance, and doubles, delays and reorders them.
        outages: the failures of the receiver.
        inbox_failures: share of the final status callbacks that arrive but cannot be read.
        child_callbacks: whether child legs send status callbacks.

    """

    channel: Channel = Channel()
    outages: tuple[Outage, ...] = ()
    inbox_failures: float = 0.0
    child_callbacks: bool = False

    def deliver(self, account: SimulatedAccount, since: datetime, until: datetime) -> list[Delivery]:
        """Send the webhooks of [since, until) and return those that arrive, in the order of arrival."""
        sent = webhooks(account, since, until, child_callbacks=self.child_callbacks)
        account.losses.extend(self._never_sent(account, since, until))
        reachable = [webhook for webhook in sent if self._gets_out(account, webhook)]
        arrived = self.channel.deliver(reachable)
        distinct = {id(delivery.webhook) for delivery in arrived}
        account.losses.extend(_loss("chance", webhook) for webhook in reachable if id(webhook) not in distinct)
        return [self._read(account, delivery) for delivery in arrived]

    def _never_sent(self, account: SimulatedAccount, since: datetime, until: datetime) -> Iterator[Loss]:
        """Yield a loss for each call that ended in [since, until) and for whose end Twilio sends no webhook."""
        for call in account.alive_between(since, until):
            if not isinstance(call, SimulatedCall) or call.ended is None or not since <= instant(call.ended) < until:
                continue
            if call.is_trunking:
                yield Loss("trunk", call.sid, "status-callback", instant(call.ended), call.trunk_sid)
            elif call.direction == "inbound":
                if not account.endpoints.urls_of(call).status_callback:
                    yield Loss("no_callback", call.sid, "status-callback", instant(call.ended), call.to)
            elif call.direction == "outbound-dial" and not self.child_callbacks:
                yield Loss("child_leg", call.sid, "status-callback", instant(call.ended), "")

    def _gets_out(self, account: SimulatedAccount, webhook: Webhook) -> bool:
        """Return whether the webhook reaches the receiver; if not, record the loss."""
        if urlsplit(webhook.url).netloc != urlsplit(HOOKS).netloc:
            account.losses.append(_loss("no_callback", webhook, webhook.url))
            return False
        outage = next((each for each in self.outages if each.hits(webhook)), None)
        if outage is None:
            return True
        failed_at = webhook.sent_at + (GIVEN_UP_AFTER if outage.error_code == "11205" else timedelta(0))
        resource_sid = webhook.call_sid or webhook.params["RecordingSid"]
        account.raise_alert(failed_at, outage.error_code, webhook.url, resource_sid=resource_sid)
        account.losses.append(_loss("alert", webhook, outage.error_code))
        return False

    def _read(self, account: SimulatedAccount, delivery: Delivery) -> Delivery:
        """Return the delivery, with an unknown status if the inbox is to fail on it. Copies fail alike."""
        webhook = delivery.webhook
        draw = crc32(f"inbox:{webhook.call_sid}".encode()) / 0x1_0000_0000
        if not webhook.is_final or draw >= self.inbox_failures:
            return delivery
        if not any(loss.cause == "inbox" and loss.call_sid == webhook.call_sid for loss in account.losses):
            account.losses.append(_loss("inbox", webhook))
        spoilt = replace(webhook, params={**webhook.params, "CallStatus": UNREADABLE})
        return replace(delivery, webhook=spoilt)


def causes_of_gaps(accounts: SimulatedAccount | Iterable[SimulatedAccount]) -> dict[str, str]:
    """Return, by call SID, why no webhook gave the call's final status; calls whose webhook arrived are left out."""
    each = [accounts] if isinstance(accounts, SimulatedAccount) else accounts
    return {
        loss.call_sid: loss.cause
        for account in each
        for loss in account.losses
        if loss.is_final and loss.call_sid is not None
    }


def _loss(cause: str, webhook: Webhook, detail: str = "") -> Loss:
    return Loss(
        cause, webhook.call_sid, webhook.kind, webhook.sent_at, detail, is_final=webhook.is_final,
        recording_sid=webhook.params.get("RecordingSid"),
    )  # fmt: skip

"""The postman: once a second it delivers the webhooks that were sent meanwhile into the Viewer's database.

The simulated Viewer stores each webhook in its inbox and processes it. While its database does not answer, the
Viewer answers Twilio with 500. Such a webhook is lost for good, and Twilio's Monitor lists it as 11200. Twilio retries
once, and only if no connection comes about
(https://www.twilio.com/docs/usage/webhooks/webhooks-connection-overrides).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Self

import psycopg

from reconciler.simulator import viewer
from reconciler.simulator.access import all_accounts
from reconciler.simulator.account import SimulatedAccount
from reconciler.simulator.clock import Clock
from reconciler.simulator.losses import Loss
from reconciler.simulator.road import Road
from reconciler.simulator.webhooks import Delivery

PACE = 1.0  # seconds
BATCH = 5_000  # rows


class NoInbox(Exception):
    """The database has no table twilio_webhook_inbox."""


class Postman:
    """A context manager that delivers the webhooks of accounts and their subaccounts, from `since` on.

    Attributes:
        delivered: number of webhooks that have arrived.
        loss: share of webhooks that are lost by chance; may be changed at any time.

    """

    def __init__(
        self, database_url: str, accounts: Sequence[SimulatedAccount], *, clock: Clock, road: Road, since: datetime
    ) -> None:
        self.delivered = 0
        self.loss = road.channel.loss
        self._database_url = database_url
        self._accounts = accounts
        self._clock = clock
        self._road = road
        self._sent_until = since
        self._under_way: list[Delivery] = []
        self._conn: psycopg.Connection | None = None
        self._stopping = threading.Event()
        self._stepped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def step(self) -> None:
        """Send the webhooks up to now, deliver those that are due, and let the Viewer process them."""
        now = self._clock.now()
        # Each step has a seed of its own. With one seed the first webhook of every second would meet the same fate.
        channel = self._road.channel
        self._road = replace(self._road, channel=replace(channel, seed=channel.seed + 1, loss=self.loss))
        for account in all_accounts(self._accounts).values():
            self._under_way += self._road.deliver(account, self._sent_until, now)
        self._sent_until = now
        due = [delivery for delivery in self._under_way if delivery.received_at <= now]
        self._under_way = [delivery for delivery in self._under_way if delivery.received_at > now]
        try:
            self._hand_over(due, now)
        except psycopg.OperationalError:
            self.close()
            self._lose(due)

    def _hand_over(self, due: list[Delivery], now: datetime) -> None:
        conn = self._connected()
        viewer.receive(conn, due)
        self.delivered += len(due)
        while viewer.work(conn, now=now, batch=BATCH):
            pass

    def _connected(self) -> psycopg.Connection:
        if self._conn is None:
            self._conn = psycopg.connect(self._database_url, autocommit=True, connect_timeout=5)
            self._conn.execute("SET TIME ZONE 'UTC'")
        return self._conn

    def _lose(self, due: list[Delivery]) -> None:
        accounts = all_accounts(self._accounts)
        for delivery in due:
            webhook = delivery.webhook
            account = accounts[webhook.params["AccountSid"]]
            resource_sid = webhook.call_sid or webhook.params["RecordingSid"]
            account.raise_alert(delivery.received_at, "11200", webhook.url, resource_sid=resource_sid)
            account.losses.append(
                Loss("alert", webhook.call_sid, webhook.kind, webhook.sent_at, "11200", is_final=webhook.is_final)
            )

    def _run(self) -> None:
        while not self._stopping.wait(PACE):
            begun = self._stepped
            self.step()
            self._stepped = threading.Event()
            begun.set()

    def wait_for_step(self, timeout: float = 10.0) -> bool:
        """Wait until the thread has finished a step that began after this call.

        Returns False if that took longer than `timeout` seconds, for each of two waits.
        """
        return self._stepped.wait(timeout) and self._stepped.wait(timeout)

    def close(self) -> None:
        """Close the connection to the database; the next step opens another one."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def prepare(self) -> None:
        """Check that the database can take webhooks.

        Raises:
            NoInbox: the database has no twilio_webhook_inbox.
            psycopg.Error: the database does not answer, or its URL cannot be read.

        """
        inbox = self._connected().execute("SELECT to_regclass('twilio_webhook_inbox')").fetchone()
        if inbox == (None,):
            self.close()
            raise NoInbox

    def __enter__(self) -> Self:
        """Deliver the webhooks sent since the beginning, then continue in a thread."""
        self.step()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self.close()

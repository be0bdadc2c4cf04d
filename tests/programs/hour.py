"""An hour of a business's calls in a minute: `python -m tests.programs.hour [--calls 5000] [--minutes 60] [--seed 1]`.

The clock is simulated, everything else is real: Twilio's API over HTTP, PostgreSQL, the jobs as the daemon runs them.
A third of the webhooks is lost, others are doubled, late or out of order, and the Viewer's own worker makes rows of
the rest. Prints how long lost endings waited for their repair, the requests to Twilio, and whether all is equal.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from statistics import quantiles

from reconciler import logs
from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.database.transaction import Rules
from reconciler.jobs.registry import KINDS
from reconciler.model import JobName
from reconciler.settings import Credentials, Settings
from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio, viewer
from reconciler.simulator.webhooks import Channel, Delivery, webhooks
from reconciler.sync.context import Account, JobContext, Options
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.concurrency import Pacer
from reconciler.twilio.listing import PAGE_SIZE
from tests.bench.servers import database
from tests.harness.equality import FINAL, differences, doubled_events, records_of
from tests.harness.names import ACCOUNT, TOKEN

START = datetime(2026, 6, 10, 12, tzinfo=UTC)
DAY = timedelta(days=1)
TALKING = 60  # minutes after the last call was made, by when all have ended


@dataclass
class Told:
    """The results of the hour."""

    calls: int
    webhooks_lost: float
    differences: list[str]
    doubled: int
    unfrozen: int
    repairs: list[float]  # seconds from a lost ending to its repair
    requests: Counter[str] = field(default_factory=Counter)  # of the simulated hours, by job
    full_read: int = 0  # requests, had each hot run read a whole day of such hours

    def lines(self, minutes: float) -> list[str]:
        cuts = quantiles(self.repairs, n=100) if len(self.repairs) > 1 else [0.0] * 99
        late = f"p50 {cuts[49]:.0f} s, p99 {cuts[98]:.0f} s, at most {max(self.repairs, default=0):.0f} s"
        left = f"events doubled: {self.doubled}, final and not frozen: {self.unfrozen}"
        return [
            f"{self.calls} calls in {minutes:g} minutes, {self.webhooks_lost:.0%} of the webhooks lost",
            f"not as Twilio says: {len(self.differences)}, {left}",
            f"lost endings repaired: {len(self.repairs)}, after {late} (hot runs every 60 s)",
            f"requests in that time: {dict(self.requests)}; reading a day like it again each minute: {self.full_read}",
        ]


def live(conn: db.Connection, url: str, *, calls: int, minutes: float, seed: int) -> Told:
    """Let the hour pass, then a day in which prices come and deadlines pass."""
    account = SimulatedAccount(ACCOUNT, TOKEN, seed=seed)
    end = START + timedelta(minutes=minutes)
    account.generate(calls, START, end)
    sent = webhooks(account, START, end + DAY)
    channel = Channel(seed=seed, loss=0.33, duplicate=0.1, late=0.05, reorder=0.2)
    arriving = channel.deliver(sent)
    lost_ends = _lost_ends(sent, arriving)
    clock = Clock(START)
    settings = Settings.read({})
    requests, in_the_hour = Counter[str](), Counter[str]()
    with SimulatedTwilio([account], clock=clock) as twilio, Store(url, rules=Rules()) as store:
        client = TwilioClient(
            Credentials(ACCOUNT, ACCOUNT, TOKEN, base_url=twilio.base_url), pacer=Pacer(4), clock=clock.now
        )

        def run(kind: str) -> None:
            mine = client.session()
            context = JobContext(
                job=JobName(kind),
                settings=settings,
                store=store,
                session=mine,
                account=Account(ACCOUNT),
                options=Options(is_scheduled=True),
                clock=clock.now,
            )
            KINDS[kind].work(context)
            requests[kind] += mine.requests

        with closing(client):
            for minute in range(int(minutes) + TALKING):
                for _ in range(2):
                    clock.advance(timedelta(seconds=30))
                    arriving = _arrive(conn, arriving, clock.now())
                    run("inbox")
                run("hot")
                if minute % 15 == 14:
                    run("warm")
                if minute % 10 == 9:
                    run("freeze")
                if minute == int(minutes) - 1:
                    in_the_hour = +requests
            for _ in range(26):
                clock.advance(timedelta(hours=1))
                arriving = _arrive(conn, arriving, clock.now())
                for kind in ("inbox", "hot", "warm", "freeze"):
                    run(kind)
            run("cold")
    repaired = conn.execute(
        "SELECT call_sid, extract(epoch FROM created_at - event_time)::float8 FROM call_events"
        " WHERE event_type IN ('call.created', 'call.status_changed') AND source LIKE 'reconcile_%%'"
        " AND source <> 'reconcile_inbox' AND call_status_is_final(event_status)"
    ).fetchall()
    row = conn.execute("SELECT count(*) FROM messages WHERE is_final AND sync_state <> 'frozen'").fetchone()
    return Told(
        calls=calls,
        webhooks_lost=1 - len({(d.webhook.call_sid, id(d.webhook)) for d in channel.deliver(sent)}) / len(sent),
        differences=_ignoring_queued(differences(conn, records_of(account, clock.now()))),
        doubled=len(doubled_events(conn)),
        unfrozen=row[0] if row else 0,
        repairs=[seconds for sid, seconds in repaired if sid in lost_ends],
        requests=in_the_hour,
        full_read=int(minutes) * -(-int(calls * DAY / timedelta(minutes=minutes)) // PAGE_SIZE),
    )


def _arrive(conn: db.Connection, arriving: list[Delivery], now: datetime) -> list[Delivery]:
    """Hand the Viewer what has arrived by `now`, and let its worker work; returns what is still on its way."""
    here = [delivery for delivery in arriving if delivery.received_at <= now]
    viewer.receive(conn, here)
    viewer.work(conn, now=now)
    return arriving[len(here) :]


def _lost_ends(sent: list, arriving: list[Delivery]) -> set[str]:
    """Calls whose final status callback never arrives."""
    final = {w.call_sid for w in sent if w.kind == "status-callback" and w.params.get("CallStatus") in FINAL}
    heard = {
        d.webhook.call_sid
        for d in arriving
        if d.webhook.kind == "status-callback" and d.webhook.params.get("CallStatus") in FINAL
    }
    return final - heard


def _ignoring_queued(found: list[str]) -> list[str]:
    """Without what null cannot clear: a webhook's CallDuration 0 of a call that was canceled in the queue."""
    return [difference for difference in found if not difference.endswith("duration: 0, not None")]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--calls", type=int, default=5_000)
    options.add_argument("--minutes", type=float, default=60)
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    logs.configure(form="json", level="error", pii="masked")
    with database() as url, closing(db.connect(url, purpose="soak")) as conn:
        told = live(conn, url, calls=asked.calls, minutes=asked.minutes, seed=asked.seed)
    print("\n".join(told.lines(asked.minutes)))
    for difference in told.differences[:20]:
        print(difference)
    return int(bool(told.differences or told.doubled or told.unfrozen))


if __name__ == "__main__":
    sys.exit(main())

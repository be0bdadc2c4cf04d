"""The hour of logs in deploy/logs: `python -m tests.programs.log_sample > deploy/logs/sample.jsonl`.

The jobs run as the daemon runs them, against a simulated Twilio and a real PostgreSQL. The log shows the time of the
simulated clock. In the hour an administrator finds gaps, a throttled minute, failed runs, an unreadable webhook, drift,
a stuck call, and an incomplete day.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import TextIO, cast

from psycopg.types.json import Jsonb

from reconciler import logs
from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.database.transaction import Rules
from reconciler.errors import ReconcilerError
from reconciler.jobs.registry import KINDS
from reconciler.model import JobName
from reconciler.settings import Credentials, Settings
from reconciler.simulator import Clock, Fault, SimulatedAccount, SimulatedTwilio, viewer
from reconciler.simulator.messages import Answer
from reconciler.simulator.webhooks import Channel, webhooks
from reconciler.sync.context import Account, JobContext, Options
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.concurrency import Pacer
from tests.bench.servers import database
from tests.harness.names import ACCOUNT, TOKEN

START = datetime(2026, 6, 10, 12, tzinfo=UTC)
MINUTES = 60
DAY = timedelta(days=1)
EVERY = {"hot": 1, "freeze": 10, "warm": 15}  # minutes


class SimulatedTime:
    """A stream whose JSON lines get the time of the simulated clock, plus the real time since its last move."""

    def __init__(self, out: TextIO, clock: Clock) -> None:
        self._out = out
        self._clock = clock
        self._moved = (clock.now(), time.monotonic())

    def write(self, text: str) -> None:
        """Take one line."""
        now = self._clock.now()
        if now != self._moved[0]:
            self._moved = (now, time.monotonic())
        at = now + timedelta(seconds=time.monotonic() - self._moved[1])
        line = {**json.loads(text), "timestamp": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
        self._out.write(json.dumps(line, ensure_ascii=False) + "\n")

    def flush(self) -> None:
        """Let it go out."""
        self._out.flush()

    def isatty(self) -> bool:
        """Nobody watches."""
        return False


def tell(conn: db.Connection, url: str, out: TextIO) -> None:
    """Live through the hour, and write what the jobs log to `out`."""
    clock = Clock(START - timedelta(minutes=1))
    account = SimulatedAccount(ACCOUNT, TOKEN, seed=7)
    account.generate(300, START - 3 * DAY, START - timedelta(hours=2))
    account.generate(150, START, START + timedelta(minutes=MINUTES))
    account.call(START - timedelta(hours=23, minutes=45), talks_for=None)
    arriving = Channel(seed=7, loss=0.33, duplicate=0.1, late=0.05, reorder=0.2).deliver(
        webhooks(account, START, START + timedelta(minutes=MINUTES))
    )
    credentials = Credentials(ACCOUNT, ACCOUNT, TOKEN)
    settings = Settings.read({})
    with SimulatedTwilio([account], clock=clock) as twilio, Store(url, rules=Rules()) as store:
        client = TwilioClient(credentials._replace(base_url=twilio.base_url), pacer=Pacer(8), clock=clock.now)

        def run(kind: str) -> None:
            asks_twilio = KINDS[kind].asks_twilio
            context = JobContext(
                job=JobName(kind),
                settings=settings,
                store=store,
                session=client.session() if asks_twilio else None,
                account=Account(ACCOUNT) if asks_twilio else None,
                options=Options(is_scheduled=True),
                clock=clock.now,
                retry_at=lambda: clock.now() + KINDS[kind].interval(settings),
            )
            with suppress(ReconcilerError):  # it is in the log
                KINDS[kind].work(context)

        with closing(client):
            logs.configure(form="json", level="critical", pii="masked")
            for kind in ("cold", "hot", "warm", "freeze"):
                run(kind)
            (priced,) = conn.execute(
                "SELECT twilio_sid FROM messages WHERE sync_state = 'frozen' AND price < 0 ORDER BY twilio_sid LIMIT 1"
            ).fetchone() or (None,)
            account.change(str(priced), price="-9.99000")
            logs.configure(form="json", level="info", pii="masked", stream=cast("TextIO", SimulatedTime(out, clock)))
            for minute in range(MINUTES):
                for _ in range(2):
                    clock.advance(timedelta(seconds=30))
                    here = [delivery for delivery in arriving if delivery.received_at <= clock.now()]
                    arriving = arriving[len(here) :]
                    viewer.receive(conn, here)
                    viewer.work(conn, now=clock.now())
                    run("inbox")
                _let_happen(minute, conn, twilio, clock)
                for kind, every in EVERY.items():
                    if minute % every == every - 1:
                        run(kind)
                if minute == 20:
                    run("cold")
                if minute == 21:
                    run("housekeeping")


def _let_happen(minute: int, conn: db.Connection, twilio: SimulatedTwilio, clock: Clock) -> None:
    match minute:
        case 7:
            conn.execute(
                "INSERT INTO twilio_webhook_inbox"
                " (source, event_type, call_sid, dedupe_key, payload, processing_status, received_at)"
                " VALUES ('twilio_voice', 'call-status', %(sid)s, 'unreadable', %(payload)s, 'processing', %(at)s)",
                {
                    "sid": "CA" + 32 * "9",
                    "payload": Jsonb({"CallSid": "CA" + 32 * "9", "CallStatus": "teleported"}),
                    "at": clock.now() - timedelta(minutes=10),
                },
            )
        case 20:
            days = [{"start_date": f"2026-06-0{day}", "count": "1000" if day == 8 else "1"} for day in (7, 8, 9)]
            usage = Fault("usage", instead=Answer(payload={"usage_records": days}))
            twilio.faults.when(lambda request: "Usage" in request.path, usage)
        case 30:
            twilio.faults.next(Fault.too_many_requests(retry_after=1))
        case 38:
            twilio.faults.next(Fault.server_error(503))
        case 45 | 46 | 47:
            twilio.faults.next(*4 * [Fault.unauthorized()])


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with database() as database_url, closing(db.connect(database_url, purpose="soak")) as connection:
        tell(connection, database_url, sys.stdout)

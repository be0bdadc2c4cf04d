"""The demonstration in order: a database, a week of calls, lost webhooks, the backfill, the proof.

Design rules
- Every run has the same calls, losses and counts: the seeds are fixed. The simulated clock stands still at the last
  midnight (UTC), so that the seven days are whole ones. Only dates and durations differ.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from reconciler import logs
from reconciler.database import connection as db
from reconciler.database import migrate as runner
from reconciler.database.store import Store
from reconciler.database.transaction import Cursor
from reconciler.demo.compare import Comparison, Road, Row, describe_road, examine
from reconciler.demo.ground import (
    ACCOUNT_SID,
    AUTH_TOKEN,
    endings_held,
    ignore_endings,
    leave_on_signals,
    start_database,
)
from reconciler.demo.show import Show
from reconciler.errors import ExitCode
from reconciler.jobs.backfill import BackfillContext, BackfillCounts, Watcher, Window, backfill, name_backfill
from reconciler.settings import Credentials, Settings
from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio, viewer
from reconciler.simulator.webhooks import Channel, webhooks
from reconciler.sync.context import Account
from reconciler.sync.cursors import AccountCursor, encode, name_account
from reconciler.terminal import progress as terminal
from reconciler.times import midnight
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.concurrency import Pacer

CALLS: Final = 5_000
WEEK: Final = timedelta(days=7)
ROAD: Final = Channel(seed=7, loss=0.33, duplicate=0.08, late=0.05, reorder=0.15)
CONCURRENCY: Final = 4
PAGE_DELAY: Final = timedelta(milliseconds=300)  # as on a network, so that there is something to watch

_QUERIES = db.load_queries("demo")


def run() -> int:
    """Run the demonstration and return its exit code: 1 if a row differs in the end, or the second run wrote one.

    Raises:
        ConfigError: the `embedded` extra is not installed.
        Unavailable: PostgreSQL did not start.

    """
    started = time.monotonic()
    logs.configure(form="auto", level="warning", pii="masked")
    leave_on_signals()
    show = Show()
    show.opening()
    with ExitStack() as stack:
        try:
            is_right = _play(show, stack)
        finally:
            ignore_endings()
    show.closing(is_right=is_right, seconds=time.monotonic() - started)
    return int(ExitCode.DONE if is_right else ExitCode.UNRECONCILED)


def _play(show: Show, stack: ExitStack) -> bool:
    """Run the steps; return whether every row is right in the end. `stack` closes the connections."""
    with endings_held(), show.step("Starting PostgreSQL") as step:
        url = start_database().url
        conn = stack.enter_context(closing(db.connect(url, purpose="demo")))
        step.result = f"PostgreSQL {conn.info.server_version // 10_000} runs in a temporary folder"
    with show.step("Creating the schema") as step:
        step.result = f"{len(runner.migrate(conn))} migrations applied"
    with closing(Store(url)) as store:
        # In the story this installation has looked after the account all week, so calls without webhooks were lost.
        note = Cursor(name_account(ACCOUNT_SID), encode(AccountCursor(since=midnight(datetime.now(UTC)) - WEEK)))
        store.commit_cursor(note, now=datetime.now(UTC))

    until = midnight(datetime.now(UTC))
    clock = Clock(until)
    with show.step("Simulating a week of calls") as step:
        account = SimulatedAccount(ACCOUNT_SID, AUTH_TOKEN, seed=1)
        account.generate(CALLS, until - WEEK, until)
        twilio = stack.enter_context(SimulatedTwilio([account], clock=clock, page_delay=PAGE_DELAY))
        records = [call.render(int(until.timestamp())) for call in account.calls_at(until)]
        step.result = f"{len(records):,} calls at a simulated Twilio, in the {WEEK.days} days up to midnight UTC"
    with show.step("Losing webhooks") as step:
        road = _send_webhooks(conn, account, since=until - WEEK, until=until)
        step.result = f"{road.sent:,} webhooks sent to the Viewer, a third lost on the way"
    before = _compared(conn, records)
    show.before(road, before)

    show.command("reconcile --since 7d")
    with terminal.watching(as_json=False, dry_run=False, masked=True) as watcher:
        first = _backfill(url, twilio.base_url, watcher, until=until, clock=clock)
    show.backfilled(first)
    with show.step("Once more") as step:
        second = _backfill(url, twilio.base_url, Watcher(), until=until, clock=clock)
        step.result = f"a second run: {second.inserted + second.updated:,} written, {second.requests:,} requests"
    after = _compared(conn, records)
    events: dict[str, int] = dict(conn.execute(_QUERIES["events"]).fetchall())
    [(frozen,)] = conn.execute(_QUERIES["count_frozen"]).fetchall()
    show.after(before, after, gaps=first.gaps, events=events, frozen=frozen)
    was_done = first.exit_code is second.exit_code is ExitCode.DONE
    return was_done and not after.differences and not second.inserted + second.updated


def _send_webhooks(conn: db.Connection, account: SimulatedAccount, *, since: datetime, until: datetime) -> Road:
    """Send every webhook of these calls, lose some, and let the Viewer make rows from the others."""
    sent = webhooks(account, since, until)
    arrived = [delivery for delivery in ROAD.deliver(sent) if delivery.received_at < until]
    viewer.receive(conn, arrived)
    while viewer.work(conn, now=until, batch=500):
        pass
    return describe_road(sent, arrived)


def _backfill(url: str, twilio_url: str, watcher: Watcher, *, until: datetime, clock: Clock) -> BackfillCounts:
    """Run the same backfill as `reconcile --since 7d`."""
    stop = threading.Event()
    window = Window(until - WEEK, until, {"since": "7d", "until": None})
    credentials = Credentials(ACCOUNT_SID, ACCOUNT_SID, AUTH_TOKEN, base_url=twilio_url)
    client = TwilioClient(credentials, pacer=Pacer(CONCURRENCY), clock=clock.now)
    try:
        with Store(url) as store:
            context = BackfillContext(
                job=name_backfill(ACCOUNT_SID),
                settings=Settings.read({}),
                store=store,
                session=client.session(stop),
                account=Account(ACCOUNT_SID),
                stop=stop,
                clock=clock.now,
                window=window,
                watcher=watcher,
            )
            return backfill(context)
    finally:
        stop.set()
        client.close()


def _compared(conn: db.Connection, records: Sequence[Mapping[str, Any]]) -> Comparison:
    return examine(map(Row._make, conn.execute(_QUERIES["rows"]).fetchall()), records)

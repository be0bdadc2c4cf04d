"""Make docs/status-page.png: `python -m tests.programs.page_picture [FILE]`, with Chromium installed (about a minute).

The page shows the work of real jobs. They ran for two days of a simulated clock, beside a simulated Twilio with two
accounts. Some webhooks were lost, and for three hours all of them.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from reconciler import logs
from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.database.transaction import Rules
from reconciler.jobs.registry import KINDS
from reconciler.model import name_job
from reconciler.settings import Credentials, Settings
from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio, viewer
from reconciler.simulator.webhooks import Channel, webhooks
from reconciler.status.html_page import render
from reconciler.status.report import read_gaps_by_hour, read_report
from reconciler.status.snapshot import DAYS_SHOWN, Daemon, take_snapshot
from reconciler.status.verdict import Verdict
from reconciler.sync.context import Account, JobContext
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.concurrency import Pacer
from tests.bench.servers import database

from .browser import browser

PICTURE: Final = Path(__file__).parents[2] / "docs" / "status-page.png"
NOW: Final = datetime(2026, 6, 10, 12, 0, 40, tzinfo=UTC)
LAST: Final = NOW - timedelta(seconds=40)  # when jobs ran last
HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
STEP: Final = timedelta(minutes=10)
OUTAGE: Final = (NOW - 21 * HOUR, NOW - 18 * HOUR)
TOKEN: Final = "token-of-the-account"
WIDTH: Final = 900
# The picture ends below the proven days.
HEIGHT: Final = "document.getElementById('completeness').parentElement.getBoundingClientRect().bottom + 16"


def live(conn: db.Connection, url: str) -> str:
    """Five weeks of calls, two days of jobs, and the page of their end."""
    account = SimulatedAccount("AC" + 8 * "4f7a", TOKEN, seed=4)
    branch = account.add_subaccount("AC" + 8 * "b20c", TOKEN, seed=5)
    account.generate(9_000, NOW - 34 * DAY, NOW)
    branch.generate(1_500, NOW - 21 * DAY, NOW)
    channel = Channel(seed=4, loss=0.04, duplicate=0.05, late=0.05, reorder=0.1)
    arriving = channel.deliver([*webhooks(account, NOW - 3 * DAY, NOW), *webhooks(branch, NOW - 3 * DAY, NOW)])
    arriving = [d for d in arriving if not OUTAGE[0] < d.received_at < OUTAGE[1]]
    clock = Clock(LAST - 49 * HOUR)
    settings = Settings.read({})
    with SimulatedTwilio([account], clock=clock) as twilio, Store(url, rules=Rules()) as store:
        signed = Credentials(account.sid, account.sid, TOKEN, base_url=twilio.base_url)
        client = TwilioClient(signed, pacer=Pacer(4), clock=clock.now)

        def run(kind: str, *accounts: SimulatedAccount) -> None:
            for of in accounts or (account,):
                context = JobContext(
                    job=name_job(kind, of.sid, main=account.sid),
                    settings=settings,
                    store=store,
                    session=client.session(),
                    account=Account(of.sid, owns_unassigned=of is account, is_only=False),
                    clock=clock.now,
                )
                KINDS[kind].work(context)

        with closing(client):
            run("cold", account, branch)
            step = 0
            while clock.now() < LAST:
                clock.advance(STEP)
                step += 1
                here = [delivery for delivery in arriving if delivery.received_at <= clock.now()]
                arriving = arriving[len(here) :]
                viewer.receive(conn, here)
                viewer.work(conn, now=clock.now(), batch=1_000)
                run("inbox")
                run("hot", account, branch)
                if step % 3 == 2:
                    run("warm", account, branch)
                if step % 141 == 140:
                    run("cold", account, branch)
                    run("housekeeping")
                run("freeze")
    conn.execute("ANALYZE")
    status = take_snapshot(conn, now=NOW, stuck_after=settings.stuck_after, inbox_grace=settings.inbox_grace)
    days = read_report(conn, since=NOW - DAYS_SHOWN, now=NOW, webhook_grace=settings.webhook_grace)
    hours = read_gaps_by_hour(conn, since=NOW - 48 * HOUR, now=NOW, webhook_grace=settings.webhook_grace)
    status = replace(status, leader=Daemon(17, "db1", 4_711, NOW - 49 * HOUR))  # the jobs ran without one
    return render(status, days, hours, state="leading, hot 40 s ago", verdict=Verdict.WORKING)


def main() -> None:
    logs.configure(form="json", level="error", pii="masked")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=PICTURE)
    target = parser.parse_args().file
    with database() as url, closing(db.connect(url, purpose="picture")) as conn:
        html = live(conn, url)
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        file = Path(folder) / "page.html"
        file.write_text(html, encoding="utf-8")
        chromium.open(file.as_uri(), width=WIDTH)
        chromium.shoot(target, height=round(chromium.value(HEIGHT)))
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

"""A fleet of which a daemon is killed again and again, under live calls, webhooks and a backfill."""

from __future__ import annotations

import signal
import time
from datetime import UTC, datetime, timedelta
from itertools import chain
from random import Random

import pytest

from reconciler.simulator.viewer import receive
from reconciler.simulator.webhooks import Channel, webhooks
from tests.harness.daemons import eventually
from tests.harness.equality import differences, doubled_events, records_of

WORKERS = 4
LASTS = 300.0  # seconds
KILLED_EVERY = 10.0
STANDSTILL = 45.0  # seconds between two successes of hot for an account, at most
SUBACCOUNTS = tuple("AC" + 32 * digit for digit in "23456")
FLEET = {
    "RECONCILER_ENGINE": "procrastinate", "RECONCILER_WORKERS": "4", "RECONCILER_ACCOUNTS": "all",
    "RECONCILER_HOT_INTERVAL": "5s", "RECONCILER_WARM_INTERVAL": "10s", "RECONCILER_INBOX_INTERVAL": "5s",
    "RECONCILER_INBOX_GRACE": "0s", "RECONCILER_FREEZE_INTERVAL": "30s",
}  # fmt: skip


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def accounts(account):
    """Six accounts with a history of ten days, and calls that ring, talk and end while the test lasts."""
    made = [account, *(account.add_subaccount(sid, "token-of-a-subaccount") for sid in SUBACCOUNTS)]
    begin = now()
    for number, one in enumerate(made):
        one.generate(100, begin - timedelta(days=10), begin - timedelta(hours=1))
        for second in range(0, int(LASTS), 5):
            at = begin + timedelta(seconds=second + number / 2)
            one.call(at, rings_for=2, talks_for=8, priced_after=5)
    return made


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_while_a_daemon_dies_every_ten_seconds(command, accounts, conn):
    """Equal to Twilio afterwards; each event once; no account stands still for long; the backfill ends."""
    command.env |= FLEET
    rng, begin = Random(7), now()
    due = sorted(
        chain.from_iterable(
            Channel(number, loss=0.3, duplicate=0.2, reorder=0.3).deliver(
                webhooks(one, begin, begin + timedelta(seconds=LASTS))
            )
            for number, one in enumerate(accounts)
        ),
        key=lambda delivery: delivery.received_at,
    )
    daemons = [command.daemon() for _ in range(WORKERS)]
    for daemon in daemons:
        daemon.wait_for("daemon.readied", within=60)
    backfill = command.start("--since", "20d", "--fleet", "--json")
    started = killed_at = time.monotonic()
    successes: dict[str, datetime] = {}
    longest, kills = 0.0, 0
    while time.monotonic() - started < LASTS:
        arrived = [delivery for delivery in due if delivery.received_at <= now()]
        receive(conn, arrived)
        del due[: len(arrived)]
        if time.monotonic() - killed_at >= KILLED_EVERY:
            killed_at, kills = time.monotonic(), kills + 1
            victim = rng.randrange(WORKERS)
            daemons[victim].tell(signal.SIGKILL)
            daemons[victim].wait()
            daemons[victim] = command.daemon()
        for job, at in conn.execute(
            "SELECT job_name, last_success_at FROM sync_state"
            " WHERE job_name LIKE 'hot%' AND last_success_at IS NOT NULL"
        ):
            before = successes.get(job, at)
            longest = max(longest, (at - before).total_seconds(), (now() - at).total_seconds())
            successes[job] = at
        time.sleep(0.2)
    done = command.wait(backfill)

    def is_equal() -> bool:
        moment = now()
        records = list(chain.from_iterable(records_of(one, moment) for one in accounts))
        return not differences(conn, records) and now() - moment < timedelta(seconds=2)

    eventually(is_equal, within=120)
    print(f"{kills} kills; longest stand-still {longest:.1f} s; backfill: {done.code}")
    assert doubled_events(conn) == []
    assert done.code == 0
    assert len(successes) == len(accounts)
    assert longest <= STANDSTILL

"""Several accounts: scheduled, refused, new and closed ones, and rows that name no account."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

import reconciler.service.daemon
import reconciler.service.runner
from reconciler import metrics
from reconciler.service.daemon import Daemon, Handler
from reconciler.service.runner import Setup
from reconciler.service.systemd import Notifier
from reconciler.settings import Settings
from reconciler.simulator import Fault
from reconciler.twilio.accounts import named_accounts
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.concurrency import Pacer
from reconciler.wording import short_sids
from tests.harness.daemons import eventually
from tests.harness.equality import differences, doubled_events, records_of
from tests.harness.names import ACCOUNT, TOKEN
from tests.harness.processes import COMMAND

HOUR = timedelta(hours=1)
FIRST, SECOND, THIRD = ("AC" + 32 * digit for digit in "234")
SUBACCOUNTS = (FIRST, SECOND, THIRD)
SOON = 0.05  # seconds


def now() -> datetime:
    """The time, on the machine's clock and Twilio's."""
    return datetime.now(UTC)


@pytest.fixture
def accounts(account) -> dict[str, Any]:
    """The main account and three subaccounts with a call each, by SID."""
    made = {ACCOUNT: account} | {sid: account.add_subaccount(sid, "token-of-a-subaccount") for sid in SUBACCOUNTS}
    for one in made.values():
        one.call(now() - HOUR)
    return made


def rows(conn) -> dict[str, str]:
    """Return the accounts of the calls we hold."""
    return dict(conn.execute("SELECT twilio_sid, account_sid FROM messages").fetchall())


def jobs(conn, kind: str) -> set[str]:
    """Return the jobs of that kind that have ever run."""
    found = conn.execute("SELECT job_name FROM sync_state WHERE job_name LIKE %s", (f"{kind}%",))
    return {name for (name,) in found}


# Each for itself


def test_a_refused_account_is_paused_for_an_hour_and_the_log_says_until_when(command, accounts, twilio, conn):
    """Each job logs it once, with the time of its next run; the other accounts continue."""
    twilio.faults.when(lambda request: SECOND in request.path, Fault.forbidden())
    daemon = command.daemon(RECONCILER_ACCOUNTS="all", RECONCILER_WARM_INTERVAL="1s")
    daemon.wait_for("job.failed", job="hot", account=SECOND)
    daemon.wait_for("job.finished", job="hot", account=THIRD, count=4)
    (failed,) = daemon.said("job.failed", job="hot", account=SECOND)
    rest = datetime.fromisoformat(failed["will_retry_at"]) - datetime.fromisoformat(failed["timestamp"])
    assert timedelta(minutes=59) < rest < timedelta(minutes=61)
    # On a busy machine a run may be late before that.
    missed = daemon.said("job.missed", job="hot", account=SECOND)
    assert [line for line in missed if line["timestamp"] > failed["timestamp"]] == []
    assert daemon.metric("reconciler_runs_total", job_name="hot", account=SECOND, outcome="refused") == 1
    assert daemon.metric("reconciler_runs_total", job_name="hot", account=THIRD, outcome="succeeded") >= 4
    assert set(rows(conn).values()) == {ACCOUNT, FIRST, THIRD}


def test_a_reload_ends_the_pause_of_a_refused_account(command, accounts, twilio, conn):
    """The account runs again at once with corrected credentials, not after an hour."""
    twilio.faults.when(lambda request: SECOND in request.path, Fault.forbidden())
    daemon = command.daemon(RECONCILER_ACCOUNTS="all")
    daemon.wait_for("job.failed", job="hot", account=SECOND)
    twilio.faults.clear()
    daemon.tell(signal.SIGHUP)
    daemon.wait_for("configuration.reloaded")
    daemon.wait_for("job.finished", job="hot", account=SECOND)
    assert SECOND in rows(conn).values()


def test_each_has_a_lock_of_its_own(command, accounts, twilio):
    """A run of one account does not block the others."""
    daemon = command.daemon(RECONCILER_ACCOUNTS="all")
    for sid in SUBACCOUNTS:
        daemon.wait_for("job.finished", job="hot", account=sid)
    twilio.faults.when(lambda request: FIRST in request.path, Fault.hang())
    assert twilio.faults.wait_until_hanging()
    held = command.run("once", "hot", "--account", FIRST)
    assert (held.code, f"another process is running hot:{FIRST}" in held.err) == (75, True)
    assert daemon.metric("reconciler_leading") == 1
    daemon.wait_for(
        "job.finished", job="hot", account=SECOND, count=len(daemon.said("job.finished", account=SECOND)) + 2
    )


def test_a_token_that_is_revoked_ends_it_where_only_subaccounts_are_named(command, account, accounts):
    """Exit code 77 when no account works any more. The refusal of one account does not end the daemon."""
    daemon = command.daemon(RECONCILER_ACCOUNTS=f"{FIRST},{SECOND}")
    for sid in (FIRST, SECOND):
        daemon.wait_for("job.finished", job="hot", account=sid)
    account.auth_token = "another"
    assert daemon.wait(60) == 77
    assert "revoked" in daemon.wait_for("daemon.failed", kind="CredentialsDoubted")["hint"]
    assert {line["account"] for line in daemon.said("job.failed", job="hot")} == {FIRST, SECOND}


# A key that reads its own account alone


KEY, SECRET = "SK" + 32 * "7", "secret-of-the-key"


@pytest.mark.parametrize("kind", ["main", "standard"])
def test_a_key_that_cannot_read_subaccounts_is_told_so(command, account, accounts, conn, kind):
    """The log names the setting and the remedy, once; the jobs of the key's own account run."""
    account.add_key(KEY, SECRET, kind)
    daemon = command.daemon(
        RECONCILER_ACCOUNTS="all", TWILIO_AUTH_TOKEN="", TWILIO_API_KEY=KEY, TWILIO_API_SECRET=SECRET
    )
    failed = daemon.wait_for("accounts.failed")
    assert "TWILIO_API_KEY cannot" in failed["error"]
    assert "set TWILIO_AUTH_TOKEN instead" in failed["error"]
    daemon.wait_for("job.finished", job="hot", account=ACCOUNT, count=2)
    assert len(daemon.said("accounts.failed")) == 1
    assert set(rows(conn).values()) == {ACCOUNT}
    assert jobs(conn, "hot") == {"hot"}


def test_a_key_is_named_where_a_person_named_the_account(command, account, accounts):
    """Exit code 77, and the same words."""
    account.add_key(KEY, SECRET, "main")
    done = command.run(
        "once", "hot", "--account", FIRST, TWILIO_AUTH_TOKEN="", TWILIO_API_KEY=KEY, TWILIO_API_SECRET=SECRET
    )
    assert done.code == 77
    assert "set TWILIO_AUTH_TOKEN instead" in done.err
    assert "never does" in done.err


# Coming and going


class Silent(Notifier):
    """A notifier that sends nothing."""

    def __init__(self) -> None:
        super().__init__(None, None)


@pytest.fixture
def daemon_of_all(twilio, accounts, database_url, monkeypatch) -> Iterator[SimpleNamespace]:
    """A daemon in this process with all accounts, which it reads again each second; and its log."""
    monkeypatch.setattr(reconciler.service.daemon, "ACCOUNTS_READ_EVERY", 1.0)
    monkeypatch.setattr(reconciler.service.daemon, "TRIED_AGAIN_AFTER", SOON)
    monkeypatch.setattr(reconciler.service.daemon, "TICK", 0.05)
    settings = Settings.read({
        "TWILIO_BASE_URL": twilio.base_url, "TWILIO_ACCOUNT_SID": ACCOUNT, "TWILIO_AUTH_TOKEN": TOKEN,
        "DATABASE_URL": database_url, "RECONCILER_HOT_INTERVAL": "1s", "RECONCILER_ACCOUNTS": "all",
        "RECONCILER_WARM_INTERVAL": "1d",
    })  # fmt: skip
    client = TwilioClient(settings.credentials(), pacer=Pacer(4))
    with structlog.testing.capture_logs() as log:
        setup = Setup(settings, database_url, client, named_accounts(settings, ACCOUNT))
        daemon = Daemon(setup, lambda: settings, lambda _: database_url, Silent())
        handlers: dict[int, Handler] = {}
        thread = threading.Thread(target=daemon.run, args=(handlers.__setitem__,))
        thread.start()
        yield SimpleNamespace(daemon=daemon, log=log)
        handlers[signal.SIGTERM](signal.SIGTERM, None)
        thread.join(20)
        assert not thread.is_alive()
    client.close()


def test_a_new_subaccount_is_looked_after_without_a_restart(daemon_of_all, account, conn):
    """Its calls of the last day are there an interval after the accounts were read."""
    eventually(lambda: set(rows(conn).values()) >= {ACCOUNT, FIRST})
    new = "AC" + 32 * "8"
    call = account.add_subaccount(new, "token-of-a-subaccount").call(now() - HOUR)
    eventually(lambda: rows(conn).get(call.sid) == new)
    assert f"hot:{new}" in jobs(conn, "hot")


def test_a_closed_account_leaves_the_schedule_and_the_metrics(daemon_of_all, accounts, twilio, conn):
    """No job asks about it, and no metric of it is left that would grow old and raise an alert."""
    eventually(lambda: set(rows(conn).values()) == {ACCOUNT, *SUBACCOUNTS})

    def shown() -> list[Any]:
        families = metrics.REGISTRY.collect()
        return [s for family in families for s in family.samples if s.labels.get("account") == THIRD]

    assert shown()
    accounts[THIRD].status = "closed"
    eventually(lambda: not shown())
    for _ in ("a run that was under way ends", "and none begins"):
        twilio.requests.clear()
        eventually(lambda: twilio.requests.count(path_contains=FIRST) > 3)
    assert twilio.requests.count(path_contains=THIRD) == 0


def test_accounts_that_cannot_be_read_are_asked_for_less_and_less(daemon_of_all, twilio):
    """Each wait is twice as long. The known accounts continue, and a success resets the wait."""
    eventually(lambda: twilio.requests.count(path_contains=FIRST))
    twilio.faults.when(lambda request: request.path.endswith("/Accounts.json"), Fault.server_error(503))
    eventually(lambda: len([line for line in daemon_of_all.log if line["event"] == "accounts.failed"]) >= 3)
    assert daemon_of_all.daemon._accounts_wait >= 8 * SOON
    asked = twilio.requests.count(path_contains=FIRST)
    eventually(lambda: twilio.requests.count(path_contains=FIRST) > asked)
    twilio.faults.clear()
    eventually(lambda: daemon_of_all.daemon._accounts_wait == SOON)


# One run of each, asked for


def test_once_works_for_one_account_after_another(command, accounts, conn):
    """It prints the counts of each account."""
    done = command.run("once", "hot", "--json", RECONCILER_ACCOUNTS="all")
    assert done.code == 0, done.err
    counted = done.result["accounts"]
    assert {sid: counts["inserted"] for sid, counts in counted.items()} == dict.fromkeys(accounts, 1)
    assert jobs(conn, "hot") == {"hot", *(f"hot:{sid}" for sid in SUBACCOUNTS)}
    table = command.run("once", "cold", RECONCILER_ACCOUNTS=f"{FIRST},{SECOND}")
    shown = [line.split()[0] for line in table.out.splitlines()]
    assert shown == ["account", short_sids(FIRST), short_sids(SECOND)]


def test_once_goes_past_an_account_that_is_refused(command, accounts, twilio, conn):
    """Exit code 77 at the end; stderr names the account and the reason."""
    twilio.faults.when(lambda request: FIRST in request.path, Fault.forbidden())
    done = command.run("once", "hot", "--json", RECONCILER_ACCOUNTS="all")
    assert done.code == 77
    assert f"{FIRST}: Twilio does not allow this" in done.err
    assert "error" in done.result["accounts"][FIRST]
    assert set(rows(conn).values()) == {ACCOUNT, SECOND, THIRD}


def test_wrong_credentials_are_asked_for_once(command, accounts, twilio):
    """Twilio is not asked again for each account."""
    done = command.run("once", "hot", TWILIO_AUTH_TOKEN="not-the-token", RECONCILER_ACCOUNTS=f"{FIRST},{SECOND}")
    assert done.code == 77
    assert len(twilio.requests) == 1


# A backfill of several


def fill(accounts: dict[str, Any], count: int) -> None:
    """Add calls of the last three days to each account."""
    for one in accounts.values():
        one.generate(count, now() - timedelta(days=3), now() - 2 * HOUR)


def test_a_backfill_works_through_all_accounts(command, accounts, conn):
    """It prints the sums and each account's counts; a second run writes nothing."""
    fill(accounts, 40)
    done = command.run("--since", "4d", "--json", RECONCILER_ACCOUNTS="all")
    assert done.code == 0, done.err
    result = done.result
    assert result["inserted"] == len(rows(conn)) == sum(one.call_count for one in accounts.values())
    assert result["accounts"].keys() == accounts.keys()
    for sid, one in result["accounts"].items():
        assert one["inserted"] == accounts[sid].call_count
        assert one["slices_done"] == one["slices"]
    assert jobs(conn, "backfill:") == {f"backfill:{sid}" for sid in accounts}
    assert differences(conn, chain.from_iterable(records_of(one, now()) for one in accounts.values())) == []
    again = json.loads(command.run("--since", "4d", "--json", RECONCILER_ACCOUNTS="all").out)
    assert (again["inserted"], again["updated"], again["calls_seen"]) == (0, 0, result["inserted"])


def test_a_preview_of_several_accounts_is_one_document(command, accounts, conn):
    """It writes nothing, not even a cursor."""
    done = command.run("--since", "4d", "--dry-run", "--json", RECONCILER_ACCOUNTS="all")
    assert done.code == 1
    result = done.result
    assert len(result["differences"]) == result["inserted"] == 4
    assert (rows(conn), jobs(conn, "")) == ({}, set())


def test_one_account_is_named(command, accounts, conn):
    """`--account` wins over RECONCILER_ACCOUNTS."""
    done = command.run("--since", "4d", "--json", "--account", SECOND, RECONCILER_ACCOUNTS="all")
    assert "accounts" not in done.result
    assert set(rows(conn).values()) == {SECOND}


def test_a_backfill_goes_past_an_account_that_is_refused(command, accounts, twilio, conn):
    """Exit code 77 and its whole SID; the others are done, and the next backfill starts again."""
    twilio.faults.when(lambda request: FIRST in request.path, Fault.forbidden())
    done = command.run("--since", "4d", RECONCILER_ACCOUNTS="all")
    assert done.code == 77
    assert f"{FIRST}: Twilio does not allow this" in done.err
    shown = {line.split()[0]: line.split()[1:3] for line in done.out.splitlines() if line.startswith("AC")}
    assert shown.keys() == set(map(short_sids, accounts))
    assert (shown[short_sids(SECOND)], shown[short_sids(FIRST)]) == (["1", "1"], ["-", "-"])
    assert set(rows(conn).values()) == {ACCOUNT, SECOND, THIRD}
    twilio.faults.clear()
    twilio.requests.clear()
    assert command.run("--since", "4d", RECONCILER_ACCOUNTS="all").code == 0
    assert twilio.requests.count(path_contains=ACCOUNT) > 5
    assert FIRST in rows(conn).values()


def test_a_killed_backfill_reads_no_account_again(command, accounts, twilio, conn):
    """It reads finished accounts from their end on, and the interrupted one from its cursor."""
    fill(accounts, 40)
    env = {"RECONCILER_ACCOUNTS": "all"}
    twilio.faults.when(lambda request: SECOND in request.path, Fault.hang())
    killed = subprocess.Popen(
        [COMMAND, "--since", "4d"], env=command.environment(env), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert twilio.faults.wait_until_hanging()
    killed.kill()
    killed.wait()
    assert set(rows(conn).values()) == {ACCOUNT, FIRST}
    twilio.faults.clear()
    twilio.requests.clear()
    done = command.run("--since", "4d", "--json", **env)
    assert done.code == 0, done.err
    result = done.result
    assert len(rows(conn)) == sum(one.call_count for one in accounts.values())
    assert result["accounts"][ACCOUNT]["slices"] < result["accounts"][SECOND]["slices"]
    assert doubled_events(conn) == []


# Calls that name no account


def as_viewer(conn, sid: str, *, status: str = "in-progress", began: datetime) -> None:
    """Insert a row as the Viewer's backend does, without an account."""
    conn.execute(
        "INSERT INTO messages"
        " (twilio_sid, direction, status, from_number, to_number, start_time, created_at, updated_at)"
        " VALUES (%s, 'inbound', %s, '+12025550100', '+13125550123', %s, %s, %s)",
        (sid, status, began.replace(tzinfo=None), began.replace(tzinfo=None), began),
    )


def gone(conn) -> list[str]:
    """Return the calls that are marked as gone."""
    return [sid for (sid,) in conn.execute("SELECT twilio_sid FROM messages WHERE gone_at IS NOT NULL").fetchall()]


def test_another_accounts_call_is_not_taken_for_gone(command, accounts, twilio, conn):
    """A 404 of the main account proves nothing; the listing of the call's own account finds it."""
    call = accounts[FIRST].call(now() - 3 * HOUR, talks_for=None)
    as_viewer(conn, call.sid, began=now() - 3 * HOUR)
    env = {"RECONCILER_ACCOUNTS": "all"}
    command.run("once", "hot", "--account", ACCOUNT, **env)
    assert twilio.requests.count(path_contains=f"{ACCOUNT}/Calls/{call.sid}") == 1
    assert gone(conn) == []
    command.run("once", "hot", **env)
    assert rows(conn)[call.sid] == FIRST
    assert conn.execute("SELECT count(*) FROM call_events WHERE event_type = 'call.gone'").fetchone() == (0,)


def test_it_is_asked_about_less_and_less(command, accounts, twilio, conn):
    """hot asks each time the row's age has doubled or the row has changed, not each minute."""
    stray = accounts[ACCOUNT].new_sid()
    as_viewer(conn, stray, began=now() - 3 * HOUR)
    env = {"RECONCILER_ACCOUNTS": f"{ACCOUNT},{FIRST}"}

    def asked() -> int:
        twilio.requests.clear()
        assert command.run("once", "hot", **env).code == 0
        return twilio.requests.count(path_contains=stray)

    assert [asked(), asked(), asked()] == [1, 0, 0]
    conn.execute("UPDATE messages SET status = 'ringing', from_number = '+12025550101' WHERE twilio_sid = %s", (stray,))
    time.sleep(
        1 - time.time() % 1
    )  # Twilio's Date has whole seconds: an answer of this second may be older than the change
    assert [asked(), asked()] == [1, 0]
    assert gone(conn) == []


def test_it_is_gone_where_there_is_no_other_account(command, account, conn):
    """With a single account a 404 means that the call is gone."""
    stray = account.new_sid()
    as_viewer(conn, stray, began=now() - 3 * HOUR)
    command.run("once", "hot")
    assert gone(conn) == [stray]


def test_an_ended_one_is_not_taken_for_gone_either(command, accounts, twilio, conn):
    """The same holds for the calls that warm asks about."""
    call = accounts[FIRST].call(now() - 3 * HOUR)
    as_viewer(conn, call.sid, status="completed", began=now() - 3 * HOUR)
    stray = accounts[ACCOUNT].new_sid()
    as_viewer(conn, stray, status="completed", began=now() - 3 * HOUR)
    env = {"RECONCILER_ACCOUNTS": "all"}
    command.run("once", "warm", "--account", ACCOUNT, **env)
    assert twilio.requests.count(path_contains=stray) == 1
    assert gone(conn) == []
    command.run("once", "hot", **env)
    assert rows(conn)[call.sid] == FIRST


def test_where_the_main_account_is_not_named_the_first_one_looks_after_them(command, accounts, twilio, conn):
    """The first named account handles the rows without an account."""
    call = accounts[FIRST].call(now() - timedelta(days=3), talks_for=None)
    as_viewer(conn, call.sid, began=now() - timedelta(days=3))
    command.run("once", "hot", RECONCILER_ACCOUNTS=f"{FIRST},{SECOND}")
    assert rows(conn)[call.sid] == FIRST

"""A bad database: rows and events end as they would have without its faults and those of the way to it.

One server of these tests' own is crashed, locked, filled up and followed by a standby. Jobs run as the schedule runs
them, each again until it succeeds, and one `reconcile run` lives through all of it.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from reconciler import logs, retry
from reconciler.database import connection as db
from reconciler.database.migrate import migrate
from reconciler.database.store import Store
from reconciler.database.transaction import Rules
from reconciler.errors import JobHeld, Refused, Retriable, Unavailable
from reconciler.jobs.backfill import Window
from reconciler.jobs.registry import KINDS, Kind
from reconciler.model import JobName, Status
from reconciler.service.leadership import Leadership
from reconciler.settings import Credentials, Settings
from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio
from reconciler.sync.context import Account, JobContext
from reconciler.sync.counts import Counts
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.concurrency import Pacer
from tests.faults.proxy import Moment, Proxy
from tests.faults.server import GUARDED, Server, folder
from tests.harness.contexts import run_backfill
from tests.harness.daemons import QUIET, Daemon, eventually
from tests.harness.equality import differences, doubled_events, records_of
from tests.harness.link import Link
from tests.harness.names import ACCOUNT, NOW, TOKEN
from tests.harness.present import present
from tests.harness.rows import ORIGIN, T0, make_observation

OURS = (
    "datname = current_database() AND application_name LIKE 'reconciler: %' AND application_name <> 'reconciler: test'"
)
WELL_WITHIN = 10.0  # seconds after the database is back
RUNS = 6  # of one job until it has succeeded
PAGE_SIZE = 20  # calls


@pytest.fixture
def url(server) -> Iterator[str]:
    """A migrated database on it."""
    with server.database() as url:
        yield url


@pytest.fixture(scope="module")
def account() -> SimulatedAccount:
    """Some hundred calls of three days, a few of them alive."""
    account = SimulatedAccount(ACCOUNT, TOKEN, seed=7)
    account.generate(300, NOW - timedelta(days=3), NOW)
    for minute in range(1, 6):
        account.call(NOW - timedelta(minutes=minute), rings_for=20, talks_for=600)
    return account


@pytest.fixture(scope="module")
def twilio(account) -> Iterator[SimulatedTwilio]:
    """It behind HTTP, on a clock that stands still."""
    with SimulatedTwilio([account], clock=Clock(NOW)) as twilio:
        yield twilio


@pytest.fixture(scope="module", autouse=True)
def _in_a_hurry() -> Iterator[None]:
    logs.configure(form="json", level="critical", pii="masked")
    with (
        patch.object(retry, "FIRST_WAIT", 0.01),
        patch.object(retry, "LONGEST_WAIT", 0.3),
    ):
        yield


class Work:
    """A backfill and every job, in their order, each again until it succeeds; `gave_up` counts runs that did not."""

    def __init__(self, twilio: SimulatedTwilio, url: str) -> None:
        self.gave_up = 0
        self.on_progress: Callable[[], None] = lambda: None
        self._twilio = twilio
        self._url = url

    def do(self) -> None:
        """All of it."""
        base = self._twilio.base_url
        settings = Settings.read({
            "TWILIO_ACCOUNT_SID": ACCOUNT, "TWILIO_AUTH_TOKEN": TOKEN, "TWILIO_BASE_URL": base,
            "DATABASE_URL": self._url,
        })  # fmt: skip
        stop = threading.Event()
        common: dict[str, Any] = {"stop": stop, "clock": lambda: NOW, "on_progress": self._progressed}
        window = Window(NOW - timedelta(days=4), NOW, {"since": "4d", "until": None})
        credentials = Credentials(ACCOUNT, ACCOUNT, TOKEN, base_url=base)
        with closing(TwilioClient(credentials, pacer=Pacer(4), clock=lambda: NOW, page_size=PAGE_SIZE)) as client:
            source = client.session(stop)
            self._until_done(lambda store: run_backfill(ACCOUNT, window, session=source, store=store, **common))
            for name, kind in KINDS.items():
                if kind.asks_twilio:
                    common |= {"session": client.session(stop), "account": Account(ACCOUNT)}
                self._until_done(
                    partial(_work, kind, partial(JobContext, job=JobName(name), settings=settings, **common))
                )

    def _progressed(self) -> None:
        self.on_progress()

    def _until_done(self, run: Callable[[Store], Any]) -> None:
        for _ in range(RUNS):
            with suppress(Retriable, JobHeld), Store(self._url, rules=Rules()) as store:
                if run(store).outcome == "succeeded":
                    return
            self.gave_up += 1
        pytest.fail(f"{run} did not succeed in {RUNS} runs")


def _work(kind: Kind, context: Callable[..., JobContext], store: Store) -> Counts:
    return kind.work(context(store=store))


def left_behind(url: str) -> dict[str, list[Any]]:
    """The contents of the tables, without the values that differ from run to run."""
    without = {
        # A trigger takes an updated_at that stays the same for one that was not set, and our clock stands still here.
        "messages": "id,updated_at",
        "call_events": "id,run_id",
        "sync_state": "last_error,last_error_at,term",
        "account_days": "run_id,proven_by",
    }
    with db.connect(url, purpose="test") as conn:
        return {
            table: conn.execute(
                # A cursor counts the parts of a slice that was cut. One that is gone on with is not cut any more.
                f"SELECT (row #- '{{cursor,done}}')::text"
                f" FROM (SELECT to_jsonb(t) - %s::text[] AS row FROM {table} AS t) AS r ORDER BY 1",
                (names.split(","),),
            ).fetchall()
            for table, names in without.items()
        }


@pytest.fixture(scope="module")
def undisturbed(server, account, twilio) -> dict[str, list[Any]]:
    """Return the result of the same work without any fault."""
    with server.database() as url:
        Work(twilio, url).do()
        with db.connect(url, purpose="test") as conn:
            assert differences(conn, records_of(account, NOW)) == []
            assert doubled_events(conn) == []
        return left_behind(url)


class Terminator(Proxy):
    """Ends all our sessions when, by chance, a statement comes. The statement itself is passed on."""

    def __init__(self, url: str, seed: int, *, often: float) -> None:
        self.ended = 0
        self._admin_url, self._rng, self._often = url, random.Random(seed), often
        super().__init__(url)

    def _is_the_one(self, text: str) -> bool:
        with self._counting:
            if self._rng.random() < self._often:
                with psycopg.connect(self._admin_url, autocommit=True) as admin:
                    row = admin.execute(
                        f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {OURS}"
                    ).fetchone()
                self.ended += present(row)[0]
        return False


class Cutter(Proxy):
    """Cuts the connection, by chance, at statements that begin so: before they arrive, behind them, or answered."""

    def __init__(self, url: str, seed: int, *, moment: Moment, at: str = "", often: float) -> None:
        self.cuts = Counter[str]()
        self._rng, self._often, self._text_at = random.Random(seed), often, at
        super().__init__(url, moment=moment)

    def _is_the_one(self, text: str) -> bool:
        with self._counting:
            cut = text.startswith(self._text_at) and self._rng.random() < self._often
            self.cuts[text.split(maxsplit=1)[0]] += cut
            return cut

    def kill(self) -> None:
        """Cut the connection, which is all that dies."""
        raise ConnectionAbortedError


@pytest.mark.parametrize("seed", range(2))
def test_sessions_that_are_terminated(url, twilio, undisturbed, seed):
    """pg_terminate_backend, dozens of times, at any statement."""
    proxy = Terminator(url, seed, often=0.04)
    Work(twilio, proxy.url).do()
    proxy.close()
    assert left_behind(url) == undisturbed
    assert proxy.ended >= 8


@pytest.mark.parametrize(
    ("moment", "at", "often"),
    [
        ("behind", "COPY", 0.3),
        ("behind", "(end of the copy)", 0.3),
        ("before", "COMMIT", 0.3),
        ("answered", "COMMIT", 0.3),
        ("answered", "", 0.04),
    ],
)
def test_connections_that_are_cut(url, twilio, undisturbed, moment, at, often):
    """They break in a COPY, before a commit arrives, and before its answer arrives."""
    proxy = Cutter(url, 1, moment=moment, at=at, often=often)
    work = Work(twilio, proxy.url)
    work.do()
    proxy.close()
    assert left_behind(url) == undisturbed
    assert proxy.cuts.total() >= 5
    # The opening of a store is not repeated, and it commits; all else is repeated.
    assert work.gave_up == 0 or at in ("", "COMMIT")


@pytest.mark.parametrize("durable", ["on", "off"])
def test_a_server_that_crashes(server, url, twilio, undisturbed, durable):
    """Stopped the immediate way in the middle of a page and started again, three times; work goes on by itself.

    Without synchronous_commit the server forgets commits that it has confirmed. So may a standby that takes over. The
    run then finds its cursor behind the place where it left it, and ends. The next run goes on from there.
    """
    server.on(f"ALTER DATABASE {{}} SET synchronous_commit = {durable}", str(conninfo_to_dict(url)["dbname"]))
    work = Work(twilio, url)
    crash_at, commits, healed, is_down = {3, 12, 25}, Counter[str](), [], threading.Event()
    back = [0.0]
    with ThreadPoolExecutor(1) as pool:
        crashes = []

        def crash() -> None:
            server.stop("immediate")
            is_down.set()
            server.start()
            back[0] = time.monotonic()

        def on_progress() -> None:
            commits["all"] += 1
            if back[0]:
                healed.append(time.monotonic() - back[0])
                back[0] = 0.0
            if commits["all"] in crash_at:
                is_down.clear()
                crashes.append(pool.submit(crash))
                assert is_down.wait(60)  # else the run may end before the server is down

        work.on_progress = on_progress
        work.do()
        for each in crashes:
            each.result()
    assert left_behind(url) == undisturbed
    assert len(crashes) == 3
    assert work.gave_up == 0 or durable == "off"
    print("well again after", [round(seconds, 2) for seconds in healed])


HOSTILE = {
    "statement_timeout": "40ms", "lock_timeout": "1ms", "idle_session_timeout": "300ms",
    "idle_in_transaction_session_timeout": "20ms", "datestyle": "German", "intervalstyle": "sql_standard",
    "timezone": "Asia/Kolkata", "client_encoding": "LATIN1", "default_transaction_isolation": "serializable",
    "enable_indexscan": "off", "plan_cache_mode": "force_custom_plan", "extra_float_digits": "0",
    "bytea_output": "escape", "standard_conforming_strings": "on", "work_mem": "64kB", "temp_file_limit": "1MB",
}  # fmt: skip


def test_settings_of_the_servers_own(server, url, twilio, undisturbed):
    """Timeouts far too short, other forms of dates, another encoding and isolation, next to no memory."""
    name = conninfo_to_dict(url)["dbname"]
    for setting, value in HOSTILE.items():
        server.on(f"ALTER DATABASE {{}} SET {setting} = '{value}'", name)
    work = Work(twilio, url)
    work.do()
    assert left_behind(url) == undisturbed
    assert work.gave_up == 0


# Another writer


def test_the_viewer_is_no_victim_of_a_deadlock(url, connect):
    """It holds the row we wait for and wants the one we hold: we let go, also where the server would pick it."""
    viewer, admin = connect(url), connect(url)
    with Store(url) as store:
        store.commit_page([make_observation(Status.RINGING, call=n, minute=0) for n in (1, 2)], origin=ORIGIN, now=T0)
        with ThreadPoolExecutor() as pool:
            viewer.execute("SET deadlock_timeout = '300ms'")  # shorter than ours: it would be the first to look
            with viewer.transaction():
                viewer.execute("UPDATE messages SET metadata = '{}' WHERE twilio_sid = %s", (f"CA{2:032x}",))
                page = [make_observation(call=n) for n in (1, 2)]
                merging = pool.submit(store.commit_page, page, origin=ORIGIN, now=T0)
                until_waiting(admin)
                viewer.execute("UPDATE messages SET metadata = '{}' WHERE twilio_sid = %s", (f"CA{1:032x}",))
            assert merging.result(30).updated == 2
    assert deadlocks(admin) == 0


def test_a_viewer_that_takes_rows_the_other_way_round(url, connect):
    """All day long, while every row changes again and again: none of its statements fails."""
    calls, rounds = 40, 12
    sids = [f"CA{n:032x}" for n in range(1, calls + 1)]
    over, written, failures = threading.Event(), Counter[str](), []

    def view() -> None:
        with db.connect(url, purpose="test") as viewer:
            while not over.is_set():
                try:
                    with viewer.transaction():
                        for sid in reversed(sids):
                            viewer.execute(
                                "UPDATE messages SET metadata = jsonb_build_object('at', now()) WHERE twilio_sid = %s",
                                (sid,),
                            )
                    written["all"] += 1
                    over.wait(0.03)
                except psycopg.Error as exc:
                    failures.append(exc)

    with Store(url) as store:
        store.commit_page(
            [make_observation(Status.RINGING, call=n, minute=0) for n in range(1, calls + 1)], origin=ORIGIN, now=T0
        )
        viewer = threading.Thread(target=view)
        viewer.start()
        try:
            for number in count(1):
                if (number >= rounds and written["all"] > 3) or failures or not viewer.is_alive():
                    break
                page = [
                    make_observation(Status.IN_PROGRESS, call=n, minute=number, duration=number)
                    for n in range(1, calls + 1)
                ]
                for _ in range(20):
                    with suppress(Unavailable):
                        assert store.commit_page(page, origin=ORIGIN, now=T0).updated == calls
                        break
                else:
                    pytest.fail("the Viewer kept us out")
        finally:
            over.set()
            viewer.join()
    assert failures == []
    assert deadlocks(connect(url)) == 0


def until_waiting(conn: db.Connection) -> None:
    """Return once a session of this database waits for a lock."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    pause = threading.Event()
    for _ in range(5_000):
        if conn.execute(waits).fetchone() != (0,):
            return
        pause.wait(0.002)
    pytest.fail("nobody waited")


def deadlocks(conn: db.Connection) -> int:
    """How many deadlocks PostgreSQL has broken in this database."""
    conn.execute("SELECT pg_stat_force_next_flush()")
    row = conn.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    return int(present(row)[0])


# Faults that need a person


def test_a_standby_is_named_and_works_once_it_is_promoted(server, url):
    """The error names DATABASE_URL; no daemon leads on a standby."""
    with folder() as home, ExitStack() as stack:
        standby = Server(home, standby_of=server)
        stack.callback(standby.stop)
        there = make_conninfo(standby.url, dbname=conninfo_to_dict(url)["dbname"])
        lead, store = Leadership(there), Store(there)
        stack.callback(lead.resign)
        stack.callback(store.close)
        for ask in (lead.check, partial(store.commit_page, [make_observation()], origin=ORIGIN, now=T0)):
            with pytest.raises(Unavailable, match="takes no writes") as told:
                ask()
            assert "DATABASE_URL" in str(told.value.hint)
        standby.on("SELECT pg_promote(wait => true)")
        assert lead.check()
        assert store.commit_page([make_observation()], origin=ORIGIN, now=T0).inserted == 1


def test_a_database_that_takes_no_writes_for_a_while(server, url):
    """Managed servers do so when their disk is full. The run goes on when writes are possible again."""
    with Store(url) as store:
        server.on("ALTER SYSTEM SET default_transaction_read_only = on")
        server.on("SELECT pg_reload_conf()")
        try:
            until_told(store, Unavailable, "takes no writes")
        finally:
            server.on("ALTER SYSTEM RESET default_transaction_read_only")
            server.on("SELECT pg_reload_conf()")
        until_merged(store)


@pytest.mark.slow
def test_a_failover_under_a_daemon(server, url, tmp_path, connect):
    """The endpoint moves; the old server is fenced and keeps its sessions. Lead and jobs go to the new one."""
    name = str(conninfo_to_dict(url)["dbname"])
    with folder() as home, folder() as entrance, ExitStack() as stack:
        new = Server(home)
        stack.callback(new.stop)
        new.on("CREATE DATABASE {}", name)
        there = make_conninfo(new.url, dbname=name)
        migrate(connect(there))
        endpoint = Link(url, entrance)
        endpoint.up()
        stack.callback(endpoint.down)
        account = SimulatedAccount(ACCOUNT, TOKEN, seed=5)
        twilio = stack.enter_context(SimulatedTwilio([account], clock=Clock.running()))
        daemon = Daemon({**environment(twilio, tmp_path), "DATABASE_URL": endpoint.url}, tmp_path)
        stack.callback(daemon.close)
        daemon.settle()
        endpoint.lead_to(there)
        server.on("ALTER SYSTEM SET default_transaction_read_only = on")
        server.on("SELECT pg_reload_conf()")
        try:
            assert "takes no writes" in daemon.wait_for("lead.dropped")["error"]
            daemon.wait_for("lead.acquired", count=2)
            hot = "SELECT FROM sync_state WHERE job_name = 'hot' AND last_success_at IS NOT NULL"
            eventually(lambda: connect(there).execute(hot).fetchall(), within=60)
            assert daemon.stop() == 0
        finally:
            server.on("ALTER SYSTEM RESET default_transaction_read_only")
            server.on("SELECT pg_reload_conf()")


def test_no_connection_left(server, url, connect):
    """Said as what it is, with what to raise; tried again."""
    name = conninfo_to_dict(url)["dbname"]
    server.on("DROP ROLE IF EXISTS crowded")
    server.on("CREATE ROLE crowded LOGIN CONNECTION LIMIT 1")
    taken = connect(make_conninfo(url, user="crowded"))
    with pytest.raises(Unavailable, match="no connection left") as told:
        db.connect(make_conninfo(url, user="crowded"), purpose="test")
    assert "CONNECTION LIMIT" in str(told.value.hint)
    taken.close()
    server.on("DROP ROLE crowded")
    server.on("ALTER DATABASE {} CONNECTION LIMIT 0", str(name))
    server.on("CREATE ROLE crowded LOGIN")
    with pytest.raises(Unavailable, match="no connection left"):
        db.connect(make_conninfo(url, user="crowded"), purpose="test")


def test_a_changed_password(server, url):
    """Open sessions stay; new ones are refused with the name of the setting, and succeed with the new password."""
    server.on(f"DROP ROLE IF EXISTS {GUARDED}")
    server.on(f"CREATE ROLE {GUARDED} SUPERUSER LOGIN PASSWORD 'old'")
    login = partial(make_conninfo, url, user=GUARDED)
    with Store(login(password="old")) as store:
        server.on(f"ALTER ROLE {GUARDED} PASSWORD 'new'")
        assert store.commit_page([make_observation()], origin=ORIGIN, now=T0).inserted == 1
        store.close()
        with pytest.raises(Refused, match="refused the login") as told:
            store.commit_page([make_observation()], origin=ORIGIN, now=T0)
        assert "DATABASE_URL" in str(told.value.hint)
    with Store(login(password="new")) as store:
        assert store.commit_page([make_observation()], origin=ORIGIN, now=T0).unchanged == 1


@pytest.mark.slow
def test_a_password_that_is_rotated_in_its_file(server, url, tmp_path):
    """A new password in the file needs no SIGHUP and no restart. The daemon ends with 77 if the refusal stays."""
    server.on(f"DROP ROLE IF EXISTS {GUARDED}")
    server.on(f"CREATE ROLE {GUARDED} SUPERUSER LOGIN PASSWORD 'old'")
    secret = tmp_path / "url"
    secret.touch(0o600)
    secret.write_text(make_conninfo(url, user=GUARDED, password="old"))
    end_sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'reconciler%'"
    with ExitStack() as stack:
        account = SimulatedAccount(ACCOUNT, TOKEN, seed=5)
        twilio = stack.enter_context(SimulatedTwilio([account], clock=Clock.running()))
        daemon = Daemon({**environment(twilio, tmp_path), "DATABASE_URL_FILE": str(secret)}, tmp_path)
        stack.callback(daemon.close)
        daemon.wait_for_runs(2)
        server.on(f"ALTER ROLE {GUARDED} PASSWORD 'new'")
        secret.write_text(make_conninfo(url, user=GUARDED, password="new"))
        server.on(end_sessions)
        assert daemon.wait_for("configuration.reloaded")["changed"] == ["DATABASE_URL"]
        daemon.wait_for_runs(2)
        server.on(f"ALTER ROLE {GUARDED} PASSWORD 'other'")
        server.on(end_sessions)
        assert daemon.wait_for("login.refused")["wait_seconds"] == 5
        server.on(f"ALTER ROLE {GUARDED} PASSWORD 'new'")
        daemon.wait_for("lead.acquired", count=3)
        daemon.wait_for_runs(2)
        server.on(f"ALTER ROLE {GUARDED} PASSWORD 'other'")
        server.on(end_sessions)
        assert daemon.wait(40) == 77
        assert "DATABASE_URL" in daemon.wait_for("daemon.failed", kind="LoginRefused")["hint"]


def environment(twilio: SimulatedTwilio, home: Path) -> dict[str, str]:
    """Return the environment of a daemon in these tests, except for its database."""
    return {
        **QUIET, "PATH": os.defpath, "HOME": str(home), "TWILIO_ACCOUNT_SID": ACCOUNT,
        "TWILIO_AUTH_TOKEN": TOKEN, "TWILIO_BASE_URL": twilio.base_url,
    }  # fmt: skip


def test_the_daemon_lives_through_all_of_it(server, url, tmp_path):
    """Sessions end, the server crashes, takes no writes or no connections, and the password changes with a SIGHUP.

    The daemon does not restart, and a call made during each of these is a row within ten seconds of its end.
    """
    server.on(f"DROP ROLE IF EXISTS {GUARDED}")
    server.on(f"CREATE ROLE {GUARDED} SUPERUSER LOGIN PASSWORD 'old'")
    secret = tmp_path / "url"
    secret.touch(0o600)
    secret.write_text(make_conninfo(url, user=GUARDED, password="old"))
    account = SimulatedAccount(ACCOUNT, TOKEN, seed=5)
    name = str(conninfo_to_dict(url)["dbname"])
    with SimulatedTwilio([account], clock=Clock.running()) as twilio:
        daemon = Daemon({**environment(twilio, tmp_path), "DATABASE_URL_FILE": str(secret)}, tmp_path)
        try:
            daemon.wait_for_runs(2)

            def well_again() -> None:
                call = account.call(datetime.now(UTC) - timedelta(seconds=20))
                begun = time.monotonic()
                eventually(lambda: is_there(url, call.sid), within=WELL_WITHIN)
                print(f"well again after {time.monotonic() - begun:.1f} s")

            end_sessions = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'reconciler%'"
            )
            server.on(end_sessions)
            well_again()
            server.stop("immediate")
            daemon.wait_for("lead.dropped", count=len(daemon.said("lead.dropped")) or 1)
            server.start()
            well_again()
            server.on("ALTER SYSTEM SET default_transaction_read_only = on")
            server.on("SELECT pg_reload_conf()")
            daemon.wait_for("lead.dropped", count=len(daemon.said("lead.dropped")) + 1)
            server.on("ALTER SYSTEM RESET default_transaction_read_only")
            server.on("SELECT pg_reload_conf()")
            well_again()
            server.on(f"ALTER ROLE {GUARDED} PASSWORD 'new'")
            well_again()  # an open session stays
            secret.write_text(make_conninfo(url, user=GUARDED, password="new"))
            daemon.tell(signal.SIGHUP)
            daemon.wait_for("configuration.reloaded")
            well_again()
            server.on("ALTER DATABASE {} CONNECTION LIMIT 0", name)
            server.on(f"ALTER ROLE {GUARDED} NOSUPERUSER")  # whom no limit of the database holds
            server.on(end_sessions)
            daemon.wait_for("lead.dropped", count=len(daemon.said("lead.dropped")) + 1)
            server.on(f"ALTER ROLE {GUARDED} SUPERUSER")
            well_again()
            with db.connect(url, purpose="test") as conn:
                assert differences(conn, records_of(account, datetime.now(UTC))) == []
                assert doubled_events(conn) == []
            assert daemon.stop() == 0
        finally:
            daemon.close()


def is_there(url: str, sid: str) -> bool:
    """Whether the call is a row; not yet, while nobody can ask."""
    with suppress(Unavailable), db.connect(url, purpose="test") as conn:
        return conn.execute("SELECT 1 FROM messages WHERE twilio_sid = %s", (sid,)).fetchone() is not None
    return False


def until_told(store: Store, kind: type[Exception], words: str) -> None:
    """Merge until it is refused so: a reload reaches a session at its next statement."""
    for number in range(1_000):
        try:
            store.commit_page([make_observation(call=number + 10)], origin=ORIGIN, now=T0)
        except kind as exc:
            assert words in str(exc)
            return
    pytest.fail("nothing was refused")


def until_merged(store: Store) -> None:
    """Merge until it works; each statement takes up what was reloaded."""
    for _ in range(1_000):
        with suppress(Unavailable):
            store.commit_page([make_observation(call=1)], origin=ORIGIN, now=T0)
            return
    pytest.fail("nothing was merged")

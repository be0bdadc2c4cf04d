"""A pooler before PostgreSQL: one that takes sessions apart is refused by name, all else is let pass."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from reconciler.database import connection as db
from reconciler.database import locks, pooling
from reconciler.database.store import Store
from reconciler.errors import ConfigError, ExitCode
from reconciler.model import JobName
from reconciler.settings import Settings
from reconciler.status.check import check
from tests.faults.proxy import Proxy
from tests.faults.server import pooler
from tests.harness.rows import ORIGIN, T0, make_observation

needs_pgbouncer = pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="pgbouncer is not installed")


@pytest.fixture(scope="module")
def own_url(server) -> Iterator[str]:
    """A migrated database on it."""
    with server.database() as url:
        yield url


@pytest.fixture
def through(server, own_url) -> Iterator[object]:
    """Makes poolers before the database; they end with the test."""
    with ExitStack() as stack:
        name = str(conninfo_to_dict(own_url)["dbname"])
        yield lambda **settings: stack.enter_context(pooler(server, name, **settings))


TAKES_APART = [
    {"pool_mode": "transaction"},
    {"pool_mode": "transaction", "server_round_robin": 1},
    {"pool_mode": "transaction", "default_pool_size": 1},
    {"pool_mode": "transaction", "server_reset_query_always": 1},
    {"pool_mode": "statement"},
]


@needs_pgbouncer
@pytest.mark.parametrize("settings", TAKES_APART, ids=str)
def test_a_pooler_that_takes_sessions_apart_is_refused(through, own_url, connect, settings):
    """The order of its connections does not matter, and one is enough. Nothing of ours stays on it."""
    url = through(**settings)
    for _ in range(3):
        with pytest.raises(ConfigError, match="DATABASE_URL") as refused:
            db.connect(url, purpose="test")
        assert "pool_mode = session" in str(refused.value.hint)
    with psycopg.connect(url, autocommit=True) as viewer:
        assert viewer.execute("SHOW lock_timeout").fetchone() == ("0",)


@needs_pgbouncer
def test_a_busy_pooler_cannot_hide(through, server):
    """Others take and give back its connections all the time."""
    url = through(pool_mode="transaction", default_pool_size=6)
    over, begun = threading.Event(), threading.Barrier(5)

    def work() -> None:
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as conn:
            conn.execute("SELECT 1")
            begun.wait(30)
            while not over.is_set():
                with conn.transaction():
                    conn.execute("SELECT pg_sleep(0.001)")

    viewers = [threading.Thread(target=work) for _ in range(4)]
    for viewer in viewers:
        viewer.start()
    try:
        begun.wait(30)
        for _ in range(20):
            with pytest.raises(ConfigError):
                db.connect(url, purpose="test")
    finally:
        over.set()
        for viewer in viewers:
            viewer.join()


@needs_pgbouncer
@pytest.mark.parametrize("size", [1, 20])
def test_a_pooler_that_keeps_sessions_together_will_do(through, own_url, connect, size):
    """Lock, staging and settings hold, also where it has no place for a second connection."""
    with Store(through(pool_mode="session", default_pool_size=size)) as store, store.holding(JobName("test")):
        assert store.commit_page([make_observation(call=size)], origin=ORIGIN, now=T0).inserted == 1
        assert store.commit_page([make_observation(call=size)], origin=ORIGIN, now=T0).unchanged == 1
        assert not locks.try_advisory_lock(connect(own_url), "test")


def test_no_pooler_is_seen_where_there_is_none(database_url, connect):
    """Neither a socket nor a TCP proxy looks like one. The check opens no second connection."""
    proxy = Proxy(database_url)
    for url in (database_url, proxy.url):
        conn = connect(url)
        assert not pooling.is_pooled(conn)
        conn.close()
    proxy.close()
    assert len(proxy._connections) == 1


@needs_pgbouncer
@pytest.mark.parametrize(
    ("mode", "code", "said"),
    [
        ("session", ExitCode.DONE, "through a pooler that keeps sessions together"),
        ("transaction", ExitCode.CONFIG, "DATABASE_URL names a connection pooler"),
    ],
)
def test_check_says_what_it_found(through, mode, code, said):
    """`check` names the pooler in its line about the database. A mode that is refused ends with 78."""
    url = through(pool_mode=mode)
    line = next(line for line in check(Settings.read({}), database_url=lambda: url) if line.name == "database")
    assert said in line.detail
    assert line.exit_code is code

"""A store on a database of its own, and functions that read its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from reconciler.database import connection as db
from reconciler.database.decisions import Merged
from reconciler.database.store import Store
from reconciler.model import Observation
from tests.harness.names import sid
from tests.harness.rows import ORIGIN, T0

Merge = Callable[..., Merged]


@pytest.fixture
def database_url(planted_database_url: str) -> str:
    """The rules hold beside a stranger that has planted all that it may in our schema."""
    return planted_database_url


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    with Store(database_url) as store:
        yield store


@pytest.fixture
def merge(store: Store) -> Merge:
    """Merge observations as one page, an hour after the call."""

    def merge_page(*observations: Observation, now: datetime = T0 + timedelta(hours=1), **more: Any) -> Merged:
        return store.commit_page(observations, origin=ORIGIN, now=now, **more)

    return merge_page


@pytest.fixture
def row(conn: db.Connection) -> Callable[..., dict[str, Any]]:
    """A call's row as a dictionary, with its row version."""

    def read(call: int = 1) -> dict[str, Any]:
        found = conn.execute(
            "SELECT to_jsonb(m) || jsonb_build_object('version', m.xmin::text || m.ctid::text) FROM messages AS m"
            " WHERE twilio_sid = %s",
            (sid(call),),
        ).fetchone()
        assert found is not None
        return dict(found[0])

    return read


@pytest.fixture
def events(conn: db.Connection) -> Callable[..., list[tuple[str, str | None]]]:
    """(event_type, event_status) of a call's events, in the order they were recorded."""

    def read(call: int = 1) -> list[tuple[str, str | None]]:
        return conn.execute(
            "SELECT event_type, event_status FROM call_events WHERE call_sid = %s ORDER BY id", (sid(call),)
        ).fetchall()

    return read

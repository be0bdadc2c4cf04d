"""The pool of databases: a test gets a database like a fresh copy of the template, whatever the test before it did."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from .databases import Pool, name_of

CHANGES = {
    "table": "CREATE TABLE extra (id int)",
    "schema": "CREATE SCHEMA extra",
    "function": "CREATE FUNCTION extra() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "column": "ALTER TABLE messages ADD extra int",
    "default": "ALTER TABLE messages ALTER status SET DEFAULT 'queued'",
    "constraint": "ALTER TABLE messages ADD CONSTRAINT extra CHECK (duration < 7)",
    "index": "DROP INDEX messages_open",
    "trigger": "ALTER TABLE call_events DISABLE TRIGGER call_events_append_only",
    "comment": "COMMENT ON TABLE messages IS 'extra'",
    "right": "REVOKE SELECT ON messages FROM CURRENT_USER",
    "right for all": "GRANT SELECT ON messages TO PUBLIC",
    "default right": "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
    "right in the database": "REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC",
    "setting": "ALTER DATABASE {name} SET work_mem = '1MB'",
    "setting of a role": "ALTER ROLE CURRENT_USER IN DATABASE {name} SET work_mem = '1MB'",
    "limit": "ALTER DATABASE {name} CONNECTION LIMIT 50",
    "statistics": "ANALYZE messages",
    "ledger": "DELETE FROM reconciler_migrations WHERE version = 1",
    "checksum": "UPDATE reconciler_migrations SET checksum = repeat('0', 64) WHERE version = 1",
    "sequence": "ALTER SEQUENCE messages_id_seq INCREMENT 2",
}


@pytest.fixture
def own_pool(server_url: str, template: str) -> Iterator[Pool]:
    """A pool that no other test uses."""
    pool = Pool(server_url, template, goodbye=0.05)
    yield pool
    pool.close()


def add_call(conn: psycopg.Connection) -> int:
    """Insert a call and an event of it; returns the id of the call."""
    row = conn.execute(
        "INSERT INTO messages (twilio_sid, direction, status, from_number, to_number)"
        " VALUES ('CA1', 'inbound', 'ringing', '', '') RETURNING id"
    ).fetchone()
    conn.execute(
        "INSERT INTO call_events (call_sid, event_type, event_time, source, payload, dedupe_key)"
        " VALUES ('CA1', 'call.created', now(), 'test', '{}', 'one')"
    )
    assert row is not None
    return int(row[0])


def test_a_database_with_nothing_but_rows_is_emptied_and_lent_again(own_pool: Pool) -> None:
    """Ids begin at 1 again, and call_events is append-only again."""
    url = own_pool.lend()
    for _ in range(3):
        with psycopg.connect(url, autocommit=True) as conn:
            assert add_call(conn) == 1
            with pytest.raises(psycopg.errors.RestrictViolation):
                conn.execute("DELETE FROM call_events")
        own_pool.take_back(url)
        assert own_pool.lend() == url


@pytest.mark.parametrize("change", CHANGES)
def test_a_database_that_a_test_changed_is_dropped(own_pool: Pool, change: str) -> None:
    """The next test gets a new copy of the template."""
    url = own_pool.lend()
    with psycopg.connect(url, autocommit=True) as conn:
        if change == "statistics":
            add_call(conn)
        conn.execute(CHANGES[change].format(name=name_of(url)).encode())
    own_pool.take_back(url)
    assert own_pool.lend() != url
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


def test_a_database_that_somebody_still_uses_is_dropped(own_pool: Pool) -> None:
    """The connection that was left open is ended, so nobody writes into the next test."""
    url = own_pool.lend()
    with psycopg.connect(url, autocommit=True) as left_open:
        own_pool.take_back(url)
        assert own_pool.lend() != url
        with pytest.raises(psycopg.OperationalError):
            left_open.execute("SELECT 1")


def test_a_database_that_a_test_dropped_is_not_lent_again(own_pool: Pool, server_url: str) -> None:
    """Nor is the error that it is gone raised to anybody."""
    url = own_pool.lend()
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name_of(url)}".encode())
    own_pool.take_back(url)
    assert own_pool.lend() != url

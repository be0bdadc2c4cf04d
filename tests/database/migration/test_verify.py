"""`verify` believes the catalog, not the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reconciler.database.verify import Finding, PlanCheck, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reconciler.database.connection import Connection
    from tests.harness.databases import Connect

ROOT = Path(__file__).parents[3]


@pytest.fixture
def conn(shared_database_url: str, connect: Connect) -> Iterator[Connection]:
    """A connection to the shared database, in a transaction that takes all damage back."""
    conn = connect(shared_database_url)
    with conn.transaction(force_rollback=True):
        yield conn


@pytest.mark.parametrize(
    ("damage", "subject", "problem"),
    [
        ("DROP TABLE sync_state", "column sync_state.cursor", "is missing; migration 003 makes it"),
        (
            "ALTER TABLE messages DROP COLUMN answered_by",
            "column messages.answered_by",
            "is missing; migration 006 makes it",
        ),
        (
            "ALTER TABLE messages ALTER price TYPE numeric(10, 4)",
            "column messages.price",
            "is numeric(10,4), not numeric",
        ),
        (
            "ALTER TABLE messages ALTER sync_state DROP NOT NULL",
            "column messages.sync_state",
            "is text, not text NOT NULL",
        ),
        (
            "ALTER TABLE twilio_webhook_inbox ALTER retry_count DROP DEFAULT",
            "default twilio_webhook_inbox.retry_count",
            "is missing; migration 001 makes it",
        ),
        (
            "ALTER TABLE messages DROP CONSTRAINT messages_twilio_sid_key",
            "unique messages.twilio_sid",
            "is missing; migration 000 makes it",
        ),
        ("DROP INDEX messages_open", "index messages.messages_open", "is missing; migration 010 makes it"),
        (
            "DROP INDEX call_events_dedupe_key; CREATE INDEX call_events_dedupe_key ON call_events (dedupe_key)",
            "index call_events.call_events_dedupe_key",
            "is plain, not unique",
        ),
        (
            "ALTER TABLE call_events DISABLE TRIGGER call_events_append_only",
            "trigger call_events.call_events_append_only",
            "is disabled",
        ),
        (
            "DROP TRIGGER messages_guard_2_final ON messages",
            "trigger messages.messages_guard_2_final",
            "is missing; migration 007 makes it",
        ),
        (
            """
            ALTER TABLE messages DROP CONSTRAINT messages_observed_via_known;
            ALTER TABLE messages ADD CONSTRAINT messages_observed_via_known CHECK (observed_via <> '') NOT VALID
            """,
            "constraint messages.messages_observed_via_known",
            "is not validated",
        ),
        (
            "DROP FUNCTION call_status_rank(text)",
            "function call_status_rank(text)",
            "is missing; migration 006 makes it",
        ),
        (
            "ALTER TABLE messages ADD COLUMN tenant integer NOT NULL",
            "column messages.tenant",
            "is NOT NULL without default: our rows lack it",
        ),
    ],
)
def test_damage_is_found(damage: str, subject: str, problem: str, conn: Connection) -> None:
    """Whatever differs from what we need is named, though the ledger says that all was applied."""
    conn.execute(damage.encode())
    assert Finding(subject, problem) in verify(conn)


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TABLE sync_state",
        "ALTER TABLE messages DROP COLUMN answered_by",
        "ALTER TABLE messages DROP COLUMN gone_at",  # and two indexes with it
        "DROP INDEX messages_open",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'messages_open'::regclass",
        "ALTER TABLE call_events DISABLE TRIGGER call_events_append_only",
        "DROP TRIGGER messages_guard_2_final ON messages",
    ],
)
def test_what_verify_says_mends_it(
    damage: str, database_url: str, connect: Connect, psql: Callable[[str, Path], None]
) -> None:
    """The files that its hints name, applied again in their order, are all that it takes."""
    conn = connect(database_url)
    conn.execute(damage.encode())
    hints = {finding.hint for finding in verify(conn)}
    assert hints
    for hint in sorted(hints):
        said, _, file = hint.partition(" < ")
        assert said == 'apply the file that makes it again, which is harmless: psql "$DATABASE_URL"'
        psql(database_url, ROOT / file)
    assert verify(conn) == []


def test_columns_of_the_viewers_are_none_of_our_business(conn: Connection) -> None:
    """Whatever else the Viewer adds to its tables is fine."""
    conn.execute("ALTER TABLE messages ADD COLUMN note text, ADD COLUMN stars integer NOT NULL DEFAULT 0")
    assert verify(conn) == []


OPEN_CALLS = PlanCheck(
    "open_calls",
    "SELECT id FROM messages WHERE account_sid = %(account)s AND NOT is_final AND gone_at IS NULL ORDER BY start_time",
    {"account": "AC1"},
    "messages_open",
)


def test_query_that_uses_its_index_is_fine(conn: Connection) -> None:
    """A small table does not hide that the index serves the query."""
    assert verify(conn, [OPEN_CALLS]) == []


def test_query_that_cannot_use_its_index_is_found(conn: Connection) -> None:
    """An index that is there and fits no query is as bad as none."""
    conn.execute("DROP INDEX messages_open; CREATE INDEX messages_open ON messages (end_time)")
    assert verify(conn, [OPEN_CALLS]) == [Finding("query open_calls", "does not use index messages_open")]
    assert conn.execute("SHOW enable_seqscan").fetchone() == ("on",)

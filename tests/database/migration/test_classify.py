"""Old rows get is_final and finalized_at once (008)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reconciler.database.migrate import migrate, rollback
from reconciler.database.migration_files import load_migrations, split

if TYPE_CHECKING:
    from reconciler.database.connection import Connection
    from tests.harness.databases import Connect

FILE = Path(__file__).parents[3] / "sql" / "008_classify_final_rows.sql"
CLASSIFY = FILE.read_bytes()


@pytest.fixture
def unclassified(field_database_url: str, connect: Connect) -> Connection:
    """The field's database just before 008: guards are on, old rows are as they were."""
    conn = connect(field_database_url)
    for migration in load_migrations()[:8]:
        for statement in split(migration.up.text):
            conn.execute(statement.encode())
    return conn


def _disagreeing(conn: Connection) -> int:
    row = conn.execute(
        "SELECT count(*) FROM messages WHERE is_final <> call_status_is_final(status)"
        " OR (finalized_at IS NOT NULL) <> is_final OR (sync_state = 'frozen' AND NOT is_final)"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_every_old_row_agrees_afterwards(unclassified: Connection) -> None:
    """Terminal rows are final with a time, all others are open."""
    assert _disagreeing(unclassified) > 1500
    unclassified.execute(CLASSIFY)
    assert _disagreeing(unclassified) == 0


@pytest.mark.parametrize(
    ("sid", "expected"),
    [
        ("CA5ea1ed00000000000000000000000001", ("ringing", False, None, "active")),
        (
            "CA5ea1ed00000000000000000000000002",
            ("completed", True, datetime(2025, 6, 1, 10, 0, 42, tzinfo=UTC), "frozen"),
        ),
        (
            "CA5ea1ed00000000000000000000000003",
            ("completed", True, datetime(2025, 6, 1, 10, 0, 30, tzinfo=UTC), "frozen"),
        ),
    ],
    ids=["sealed while ringing", "final without a time", "frozen but not final"],
)
def test_rows_of_the_first_reconciler_are_set_right(
    sid: str, expected: tuple[object, ...], unclassified: Connection
) -> None:
    """Rows sealed by mistake are open again; final rows get the time of their end, frozen or not."""
    unclassified.execute(CLASSIFY)
    row = unclassified.execute(
        "SELECT status, is_final, finalized_at, sync_state FROM messages WHERE twilio_sid = %s", (sid,)
    ).fetchone()
    assert row == expected


def test_updated_at_of_old_rows_stays(unclassified: Connection) -> None:
    """Nothing happened to these calls, so nobody who polls by updated_at hears of them."""
    unclassified.execute("DROP TRIGGER trigger_messages_updated_at ON messages")
    before = unclassified.execute("SELECT id, updated_at FROM messages ORDER BY id").fetchall()
    unclassified.execute(CLASSIFY)
    assert unclassified.execute("SELECT id, updated_at FROM messages ORDER BY id").fetchall() == before


def test_batches_commit_one_by_one(unclassified: Connection) -> None:
    """2,503 rows are written by three transactions, so a writer waits for one batch at most."""
    before = unclassified.execute("SELECT DISTINCT xmin::text FROM messages").fetchall()
    unclassified.execute(CLASSIFY)
    after = unclassified.execute("SELECT DISTINCT xmin::text FROM messages").fetchall()
    assert len(set(after) - set(before)) == 3


def test_second_run_writes_nothing(unclassified: Connection) -> None:
    """Correct rows are not written again."""
    unclassified.execute(CLASSIFY)
    before = unclassified.execute("SELECT ctid::text FROM messages ORDER BY id").fetchall()
    unclassified.execute(CLASSIFY)
    assert unclassified.execute("SELECT ctid::text FROM messages ORDER BY id").fetchall() == before


def test_valid_constraint_spares_the_walk(field_database_url: str, connect: Connect) -> None:
    """Once the constraint proves that nothing is left, the file reads no row."""
    conn = connect(field_database_url)
    migrate(conn)
    conn.execute("ALTER TABLE messages RENAME COLUMN end_time TO ended")
    conn.execute(CLASSIFY)  # would fail if it came to reading a row
    conn.execute("ALTER TABLE messages RENAME COLUMN ended TO end_time")
    rollback(conn, to=8)
    conn.execute(CLASSIFY)
    assert _disagreeing(conn) == 0


def test_empty_table_is_classified(database_url: str, connect: Connect) -> None:
    """A table without rows has nothing to walk along."""
    conn = connect(database_url)
    rollback(conn, to=8)
    conn.execute(CLASSIFY)
    assert conn.execute("SELECT count(*) FROM messages").fetchone() == (0,)

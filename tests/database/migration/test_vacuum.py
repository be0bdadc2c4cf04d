"""The storage options of 022: VACUUM takes the dead entries of the small indexes, and an owner's own values stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reconciler.database.migrate import migrate, rollback
from reconciler.database.verify import verify

if TYPE_CHECKING:
    from reconciler.database.connection import Connection
    from tests.harness.databases import Connect

OPTIONS = "SELECT reloptions FROM pg_class WHERE oid = 'messages'::regclass"


def test_vacuum_cleans_the_indexes_though_few_pages_have_dead_rows(conn: Connection) -> None:
    """By default VACUUM leaves them alone: the dead rows of a day's calls lie in less than 2 % of a large table."""
    conn.execute("ALTER TABLE messages SET (autovacuum_enabled = off)")
    conn.execute(
        "INSERT INTO messages (twilio_sid, direction, status, from_number, to_number, sync_state)"
        " SELECT 'CA' || md5(n::text), 'inbound', 'busy', '', '', 'frozen' FROM generate_series(1, 20000) AS n"
    )
    conn.execute("VACUUM messages")
    calls = "twilio_sid IN ('CA' || md5('1'), 'CA' || md5('2'))"
    conn.execute(f"UPDATE messages SET recording_url = 'x', updated_at = now() WHERE {calls}".encode())
    said: list[str] = []
    conn.add_notice_handler(lambda diagnosis: said.append(diagnosis.message_primary or ""))
    for how in ("VERBOSE", "VERBOSE, INDEX_CLEANUP AUTO"):
        conn.execute(f"VACUUM ({how}) messages".encode())
        conn.execute(f"UPDATE messages SET recording_url = 'y', updated_at = now() WHERE {calls}".encode())
    by_our_option, by_default = [text for text in said if '.messages": index scans' in text]
    assert "index scan needed" in by_our_option
    assert "index scan bypassed" in by_default


@pytest.mark.parametrize("option", ["autovacuum_vacuum_scale_factor=0.05", "vacuum_index_cleanup=auto"])
def test_what_the_owner_set_stays(option: str, field_database_url: str, connect: Connect) -> None:
    """Through the migration and its rollback; options of ours come and go."""
    conn = connect(field_database_url)
    conn.execute(f"ALTER TABLE messages SET (fillfactor = 90, {option})".encode())
    migrate(conn)
    (after,) = conn.execute(OPTIONS).fetchone() or ([],)
    assert {option, "fillfactor=90"} < set(after)
    assert len(after) == 3
    assert verify(conn) == []
    rollback(conn, to=21)
    (undone,) = conn.execute(OPTIONS).fetchone() or ([],)
    assert set(undone) == {option, "fillfactor=90"}

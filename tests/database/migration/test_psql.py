"""The files run as the Viewer's own document says: `psql DB < FILE`, in order, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.database.migrate import migrate
from reconciler.database.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.databases import Connect

    Dump = Callable[[str], dict[str, str]]
    Psql = Callable[[str, Path], None]

SQL = Path(__file__).parents[3] / "sql"
MIGRATIONS = sorted(SQL.glob("[0-9]*.sql"))
ROLLBACKS = sorted(SQL.glob("rollback_*.sql"), reverse=True)

DOCUMENTED = [
    "001_create_webhook_inbox.sql",
    "002_create_call_events.sql",
    "003_create_sync_state.sql",
    "004_alter_messages.sql",
]
DOCUMENTED_ROLLBACKS = [
    "rollback_004_alter_messages.sql",
    "rollback_003_sync_state.sql",
    "rollback_002_call_events.sql",
    "rollback_001_webhook_inbox.sql",
]


def test_every_file_twice_makes_the_runners_schema(
    empty_database_url: str, database_url: str, connect: Connect, dump: Dump, psql: Psql
) -> None:
    """By hand, each file twice, the schema is the one that the runner makes; the runner's own round changes nothing.

    Only the runner knows that the tables are new, and replaces indexes of call_events (018, 025).
    """
    for file in MIGRATIONS:
        psql(empty_database_url, file)
        psql(empty_database_url, file)
    conn = connect(empty_database_url)
    assert verify(conn) == []
    assert {a.version: a.outcome for a in migrate(conn)} == {
        version: "adopted" if version <= 4 else "applied" for version in range(len(MIGRATIONS))
    }
    by_hand, by_runner = dump(empty_database_url), dump(database_url)
    assert {name.rpartition(" ")[2] for name in by_hand.keys() - by_runner.keys()} == {
        "idx_call_events_event_type", "idx_call_events_created_at", "idx_call_events_source", "call_events_dedupe_key",
        "idx_call_events_call_sid",
    }  # fmt: skip
    newer = {name.rpartition(" ")[2] for name in by_runner.keys() - by_hand.keys()}
    assert newer == {"call_events_created_at", "call_events_facts"}
    assert all(by_runner[name] == by_hand[name] for name in by_runner.keys() & by_hand.keys())


def test_all_files_again_in_a_second_round(database_url: str, dump: Dump, psql: Psql) -> None:
    """An early file does no harm to a database that has the late ones."""
    before = dump(database_url)
    for file in MIGRATIONS:
        psql(database_url, file)
    assert dump(database_url) == before


def test_every_rollback_twice_leaves_nothing(empty_database_url: str, dump: Dump, psql: Psql) -> None:
    """psql runs each rollback twice, in reverse order."""
    for file in MIGRATIONS:
        psql(empty_database_url, file)
    for file in ROLLBACKS:
        psql(empty_database_url, file)
        psql(empty_database_url, file)
    assert dump(empty_database_url) == {}


def test_field_database_takes_every_file_twice(field_database_url: str, connect: Connect, psql: Psql) -> None:
    """Where the Viewer's own scripts ran before, the files still run, by hand, twice."""
    for file in MIGRATIONS * 2:
        psql(field_database_url, file)
    assert verify(connect(field_database_url)) == []


def test_documented_commands_and_checks(empty_database_url: str, connect: Connect, psql: Psql) -> None:
    """The Viewer's document word for word: four files, three checks, four rollbacks."""
    psql(empty_database_url, SQL / "000_create_messages.sql")
    conn = connect(empty_database_url)
    conn.execute(
        "INSERT INTO messages (twilio_sid, direction, status, from_number, to_number)"
        " VALUES ('CA1', 'inbound', 'completed', '', '')"
    )
    for name in DOCUMENTED:
        psql(empty_database_url, SQL / name)

    tables = conn.execute(
        """
        SELECT table_name FROM information_schema.tables
        WHERE table_schema = 'public'
          AND table_name IN ('twilio_webhook_inbox', 'call_events', 'sync_state')
        """
    ).fetchall()
    columns = conn.execute(
        """
        SELECT column_name, data_type
        FROM information_schema.columns
        WHERE table_name = 'messages'
          AND column_name IN ('updated_at', 'last_event_time', 'is_final', 'finalized_at', 'sync_state')
        """
    ).fetchall()
    indexes = conn.execute(
        "SELECT indexname FROM pg_indexes WHERE tablename IN ('messages', 'twilio_webhook_inbox', 'call_events')"
    ).fetchall()
    assert {name for (name,) in tables} == {"twilio_webhook_inbox", "call_events", "sync_state"}
    assert dict(columns) == {
        "updated_at": "timestamp with time zone",
        "last_event_time": "timestamp with time zone",
        "is_final": "boolean",
        "finalized_at": "timestamp with time zone",
        "sync_state": "text",
    }
    assert {
        "idx_messages_active_calls",
        "idx_messages_updated_at",
        "idx_messages_parent_call_sid",
        "idx_call_events_call_sid",
        "idx_call_events_event_type",
        "idx_call_events_created_at",
        "idx_call_events_source",
        "twilio_webhook_inbox_dedupe_key_key",
    } <= {name for (name,) in indexes}

    for name in DOCUMENTED_ROLLBACKS:
        psql(empty_database_url, SQL / name)
    assert conn.execute("SELECT count(*) FROM messages").fetchone() == (1,)
    assert conn.execute("SELECT to_regclass('call_events')").fetchone() == (None,)


def test_documented_rollbacks_work_on_a_complete_schema(database_url: str, connect: Connect, psql: Psql) -> None:
    """The four documented rollbacks need no others before them, and leave messages writable."""
    conn = connect(database_url)
    for name in DOCUMENTED_ROLLBACKS:
        psql(database_url, SQL / name)
    conn.execute(
        "INSERT INTO messages (twilio_sid, direction, status, from_number, to_number)"
        " VALUES ('CA1', 'inbound', 'completed', '', '')"
    )
    conn.execute("UPDATE messages SET duration = 1")


def test_every_file_has_a_header_and_a_rollback() -> None:
    """Each file opens with its lock; each migration can be undone."""
    assert [file.name[:3] for file in MIGRATIONS] == [file.name[9:12] for file in reversed(ROLLBACKS)]
    for file in MIGRATIONS + ROLLBACKS:
        opening = file.read_text(encoding="utf-8").split("\n\n", 1)[0]
        assert "\n-- lock: " in opening, file.name

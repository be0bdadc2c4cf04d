"""Every road to the schema ends in the same place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.database.migrate import behind, migrate, plan, rollback
from reconciler.database.migration_files import load_migrations
from reconciler.database.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.databases import Connect

    Dump = Callable[[str], dict[str, str]]

VERSIONS = [migration.version for migration in load_migrations()]
WIDENED = {"column messages.from_number", "column messages.to_number", "column messages.price"}


def test_empty_database_verifies_after_migration(empty_database_url: str, connect: Connect) -> None:
    """A database made from nothing is what this version needs."""
    conn = connect(empty_database_url)
    applied = migrate(conn)
    assert [(version, "applied") for version in VERSIONS] == [(a.version, a.outcome) for a in applied]
    assert verify(conn) == []


def test_field_database_verifies_after_migration(field_database_url: str, connect: Connect) -> None:
    """The tables of the Viewer's own scripts become what this version needs; their objects count as adopted."""
    conn = connect(field_database_url)
    outcomes = {a.version: a.outcome for a in migrate(conn)}
    assert {version: "adopted" if version <= 4 else "applied" for version in VERSIONS} == outcomes
    assert verify(conn) == []


def test_field_database_loses_nothing_of_the_viewers(field_database_url: str, connect: Connect, dump: Dump) -> None:
    """Tables, columns, indexes, triggers and functions of the Viewer stay, save three columns that got wider."""
    before = dump(field_database_url)
    migrate(connect(field_database_url))
    after = dump(field_database_url)
    assert {name for name in before if after.get(name) != before[name]} == WIDENED


def test_up_down_up_from_nothing(empty_database_url: str, connect: Connect, dump: Dump) -> None:
    """After a rollback to nothing, the next migration makes the same schema."""
    conn = connect(empty_database_url)
    migrate(conn)
    before = dump(empty_database_url)
    undone = rollback(conn, to=-1)
    assert [a.version for a in undone] == VERSIONS[::-1]
    assert dump(empty_database_url) == {}
    migrate(conn)
    assert dump(empty_database_url) == before


def test_up_down_up_from_the_field(field_database_url: str, connect: Connect, dump: Dump) -> None:
    """After a rollback to the Viewer's own state, the next migration makes the same schema and keeps the calls."""
    conn = connect(field_database_url)
    migrate(conn)
    before = dump(field_database_url)
    rollback(conn, to=4)
    assert [m.version for m in behind(conn)] == VERSIONS[5:]
    migrate(conn)
    assert dump(field_database_url) == before
    assert conn.execute("SELECT count(*) FROM messages").fetchone() == (2503,)


def test_viewer_can_write_after_everything_is_rolled_back(field_database_url: str, connect: Connect) -> None:
    """A trigger that kept updated_at goes with the column, also one that is not ours."""
    conn = connect(field_database_url)
    migrate(conn)
    rollback(conn, to=-1, drop_data=True)
    conn.execute("UPDATE messages SET duration = 1 WHERE id = 1")
    assert conn.execute("SELECT count(*), sum(duration) FILTER (WHERE id = 1) FROM messages").fetchone() == (2503, 1)


def test_each_version_up_down_up(database_url: str, connect: Connect, dump: Dump) -> None:
    """Undoing one version more each time and migrating again always ends in the same schema."""
    conn = connect(database_url)
    before = dump(database_url)
    for version in reversed(VERSIONS):
        rollback(conn, to=version - 1)
        migrate(conn)
        assert dump(database_url) == before, f"after undoing {version:03}"


def test_second_migration_does_nothing(database_url: str, connect: Connect) -> None:
    """A database that is up to date is left alone."""
    conn = connect(database_url)
    assert plan(conn) == []
    assert behind(conn) == []
    assert migrate(conn) == []


def test_plan_changes_nothing(field_database_url: str, connect: Connect, dump: Dump) -> None:
    """A dry run tells each step with its lock, and leaves not even a ledger behind."""
    before = dump(field_database_url)
    steps = plan(connect(field_database_url))
    assert [(s.migration.version, s.outcome) for s in steps][3:6] == [(3, "adopted"), (4, "adopted"), (5, "applied")]
    assert steps[5].migration.up.lock == "ACCESS EXCLUSIVE on messages for a moment"
    assert dump(field_database_url) == before

"""Every road to the schema ends in the same place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.migrate import migrate, verify

if TYPE_CHECKING:
    from tests.conftest import Connect


def test_field_database_verifies_after_migration(field_database_url: str, connect: Connect) -> None:
    """What the Viewer's own scripts left becomes what this version needs."""
    conn = connect(field_database_url)
    migrate(conn)
    assert verify(conn) == []


def test_empty_database_verifies_after_migration(database_url: str, connect: Connect) -> None:
    """A database made from nothing is what this version needs."""
    assert verify(connect(database_url)) == []

"""Why a row is refused: names of the schema are told, values of the row are not, in whatever language."""

from __future__ import annotations

import psycopg
import pytest

from reconciler.database import connection as db

NUMBER = "geheim 4711"


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("SELECT $v$geheim 4711$v$::int", "invalid input syntax for type integer: …"),
        (
            "INSERT INTO kept VALUES (NULL, 1)",
            'null value in column "name" of relation "kept" violates not-null constraint',
        ),
        (
            "INSERT INTO kept VALUES ('geheim 4711', -1)",
            'new row for relation "kept" violates check constraint "kept_n"',
        ),
        ("INSERT INTO kept VALUES ('taken', 1)", 'duplicate key value violates unique constraint "kept_pkey"'),
        ("DO $$BEGIN RAISE 'no \"geheim 4711\" here'; END$$", "no … here"),
        ("DO $$BEGIN RAISE 'ungültiger Wert »geheim 4711« in Spalte »name«'; END$$", "ungültiger Wert … in Spalte …"),
        ("DO $$BEGIN RAISE 'ungültige Eingabe: »geheim 4711'; END$$", "ungültige Eingabe: …"),
        ("DO $$BEGIN RAISE 'valeur « geheim 4711 » refusée'; END$$", "valeur … refusée"),
        ("DO $$BEGIN RAISE 'значение \"geheim 4711\" вне диапазона'; END$$", "значение … вне диапазона"),
    ],
)
def test_a_reason_holds_names_and_no_values(conn: db.Connection, statement: str, reason: str) -> None:
    """PostgreSQL's own messages, and those of a trigger of the Viewer's."""
    conn.execute("CREATE TEMP TABLE kept (name text PRIMARY KEY, n int, CONSTRAINT kept_n CHECK (n > 0))")
    conn.execute("INSERT INTO kept VALUES ('taken', 1)")
    with pytest.raises(psycopg.Error) as refused:
        conn.execute(statement.encode())
    told = db.refusal(refused.value)
    assert told is not None
    assert told.startswith(reason)
    assert NUMBER not in told

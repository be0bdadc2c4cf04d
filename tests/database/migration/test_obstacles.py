"""Obstacles to a migration are reported before anything is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from reconciler.database import migrate
from reconciler.database.verify import verify
from reconciler.errors import Refused, SchemaError
from tests.harness.databases import drop_database

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.database.connection import Connection
    from tests.harness.databases import Connect

    Dump = Callable[[str], dict[str, str]]

VIEWERS = """
CREATE TABLE messages (
    id {id}, conversation_id integer, twilio_sid varchar(100) NOT NULL{unique}, direction varchar(50) NOT NULL,
    status {status} NOT NULL, from_number varchar(20) NOT NULL, to_number varchar(20) NOT NULL, duration integer,
    price numeric(10, 4), price_unit varchar(10), start_time {start}, end_time timestamp, recording_url text,
    parent_call_sid varchar(100), metadata jsonb DEFAULT '{{}}', created_at timestamp DEFAULT now(){key}
){kind}
"""


def viewers(
    *, id_: str = "serial PRIMARY KEY", status: str = "varchar(50)", start: str = "timestamp", kind: str = ""
) -> str:
    """The Viewer's table, with the given differences."""
    if kind:
        return VIEWERS.format(
            id="serial", unique="", status=status, start=start,
            key=", PRIMARY KEY (id, twilio_sid), UNIQUE (twilio_sid)", kind=kind,
        )  # fmt: skip
    return VIEWERS.format(id=id_, unique=" UNIQUE", status=status, start=start, key="", kind="")


REFUSED = [
    (
        viewers(kind=" PARTITION BY HASH (twilio_sid)")
        + "; CREATE TABLE m0 PARTITION OF messages FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        "messages is a partitioned table; it has to be an ordinary table",
    ),
    (viewers() + "; ALTER TABLE messages RENAME TO m; CREATE VIEW messages AS TABLE m", "messages is a view"),
    (
        viewers() + "; ALTER TABLE messages RENAME TO m; CREATE MATERIALIZED VIEW messages AS TABLE m",
        "materialized view",
    ),
    (viewers(id_="uuid PRIMARY KEY"), "messages.id is uuid, which cannot hold our integer"),
    (viewers(id_="text PRIMARY KEY"), "messages.id is text, which cannot hold our integer"),
    ("CREATE TYPE state AS ENUM ('ringing'); " + viewers(status="state"), "messages.status is state"),
    (viewers(status="char(50)"), r"messages.status is character\(50\)"),
    (viewers(start="timestamptz"), "messages.start_time is timestamp with time zone"),
    (viewers(start="text"), "messages.start_time is text"),
    (viewers() + "; ALTER TABLE messages DROP COLUMN price_unit", "messages has no column price_unit"),
    (viewers() + "; CREATE TABLE sync_state (key text, value text)", "sync_state has no column"),
    ("CREATE VIEW call_events AS SELECT 1 AS id", "call_events is a view"),
    ("CREATE SEQUENCE reconciler_migrations", "reconciler_migrations is a sequence"),
]


@pytest.mark.parametrize(("database", "reason"), REFUSED)
def test_tables_that_ours_cannot_be_made_of(
    database: str, reason: str, empty_database_url: str, connect: Connect, dump: Dump
) -> None:
    """The plan and the migration refuse alike, and leave the database as it was."""
    conn = connect(empty_database_url)
    conn.execute(database.encode())
    before = dump(empty_database_url)
    for refuse in (migrate.plan, migrate.migrate):
        with pytest.raises(SchemaError, match=reason) as refused:
            refuse(conn)
        assert refused.value.hint is not None
        assert refused.value.hint.startswith("nothing was changed")
    assert dump(empty_database_url) == before


def test_a_database_wider_than_ours_is_migrated_and_verified(empty_database_url: str, connect: Connect) -> None:
    """Large ids, SIDs as text, and constraints with an ORM's names."""
    conn = connect(empty_database_url)
    conn.execute(viewers(id_="bigserial PRIMARY KEY").encode())
    conn.execute("ALTER TABLE messages ALTER twilio_sid TYPE text")
    conn.execute("ALTER TABLE messages RENAME CONSTRAINT messages_twilio_sid_key TO uq_messages_twilio_sid")
    assert len(migrate.plan(conn)) == len(migrate.migrate(conn))
    assert verify(conn) == []


@pytest.mark.parametrize("encoding", ["LATIN1", "WIN1252"])
def test_a_database_without_room_for_every_name(encoding: str, server_url: str, connect: Connect, dump: Dump) -> None:
    """It is refused at once; half of the calls would fit and the others could never be held."""
    name = f"test_{encoding.lower()}"
    url = make_conninfo(server_url, dbname=name)
    admin = connect(server_url)
    admin.execute(
        sql.SQL("CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE template0").format(
            sql.Identifier(name), sql.Literal(encoding)
        )
    )
    try:
        conn = connect(url)
        for refuse in (migrate.behind, migrate.plan, migrate.migrate):
            with pytest.raises(SchemaError, match=f"the database has encoding {encoding}"):
                refuse(conn)
        assert dump(url) == {}
    finally:
        drop_database(server_url, url)


def test_bytes_as_they_come_are_room_enough(server_url: str, connect: Connect) -> None:
    """SQL_ASCII converts nothing."""
    url = make_conninfo(server_url, dbname="test_sql_ascii")
    connect(server_url).execute("CREATE DATABASE test_sql_ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    try:
        conn = connect(url)
        migrate.migrate(conn)
        assert verify(conn) == []
    finally:
        drop_database(server_url, url)


@pytest.mark.parametrize("table", ["messages", "call_events", "reconciler_migrations"])
@pytest.mark.parametrize("policy", ["", "CREATE POLICY all_rows ON {} USING (true)"])
def test_a_role_that_sees_only_some_rows(
    table: str, policy: str, database_url: str, connect: Connect, stranger: str
) -> None:
    """It is refused for every kind of policy, although the role may read the table."""
    owner = connect(database_url)
    owner.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {stranger}".encode())
    owner.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY".encode())
    owner.execute(policy.format(table).encode() or "SELECT")
    with pytest.raises(Refused, match=f"row-level security hides rows of {table} from {stranger}"):
        migrate.behind(connect(make_conninfo(database_url, user=stranger)))
    assert migrate.behind(owner) == []
    owner.execute(f"ALTER ROLE {stranger} BYPASSRLS".encode())
    assert migrate.behind(connect(make_conninfo(database_url, user=stranger))) == []


PLANTED = [
    (
        "CREATE FUNCTION call_status_is_final(varchar) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN true",
        "function call_status_is_final",
    ),
    (
        "CREATE FUNCTION messages_keep_final() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "function messages_keep_final",
    ),
    (
        "CREATE FUNCTION make_interval(secs integer) RETURNS interval LANGUAGE sql RETURN interval '0'",
        "function make_interval",
    ),
    (
        (
            "CREATE FUNCTION same(oid, regclass) RETURNS boolean LANGUAGE sql RETURN true;"
            "CREATE OPERATOR = (LEFTARG = oid, RIGHTARG = regclass, FUNCTION = same)"
        ),
        "operator =",
    ),
    ("CREATE TABLE sync_state (job_name text PRIMARY KEY, cursor jsonb)", "table sync_state"),
    ("CREATE TABLE reconciler_migrations (version integer, name text, checksum text)", "table reconciler_migrations"),
]


@pytest.mark.parametrize(("planted", "what"), PLANTED)
def test_what_a_stranger_planted_is_refused(
    planted: str, what: str, field_database_url: str, connect: Connect, stranger: str, dump: Dump
) -> None:
    """Our statements could take it for what they mean, and run it as the role that migrates, even a superuser."""
    owner = connect(field_database_url)
    owner.execute("DROP TABLE sync_state")
    owner.execute(f"GRANT CREATE ON SCHEMA public TO {stranger}".encode())
    connect(make_conninfo(field_database_url, user=stranger)).execute(planted.encode())
    before = dump(field_database_url)
    for refuse in (migrate.plan, migrate.migrate):
        with pytest.raises((Refused, SchemaError)) as refused:
            refuse(owner)
        if isinstance(refused.value, Refused):
            assert what in str(refused.value)
            assert f"belongs to {stranger}" in str(refused.value)
            assert "REVOKE CREATE" in str(refused.value.hint)
    assert dump(field_database_url) == before


@pytest.mark.parametrize(
    "made", ["TABLE messages_open ()", "SEQUENCE call_events_dedupe_key", "INDEX messages_open ON other (id)"]
)
@pytest.mark.parametrize("where", ["empty_database_url", "field_database_url"])
def test_a_name_of_our_indexes_that_is_taken_is_refused(
    made: str, where: str, request: pytest.FixtureRequest, connect: Connect, dump: Dump
) -> None:
    """CREATE INDEX IF NOT EXISTS would make nothing, and every run would fail without the index."""
    url = request.getfixturevalue(where)
    conn = connect(url)
    conn.execute("CREATE TABLE other (id integer)")
    conn.execute(f"CREATE {made}".encode())
    before = dump(url)
    for refuse in (migrate.plan, migrate.migrate):
        with pytest.raises(SchemaError, match="has the name of one of our indexes"):
            refuse(conn)
    assert dump(url) == before


@pytest.mark.parametrize(
    "planted",
    [
        "CREATE DOMAIN text AS pg_catalog.varchar CHECK (false)",
        "CREATE TABLE pg_class (oid oid, relname name, relnamespace oid)",
        "CREATE TABLE staged_observations (call_sid text)",
        "CREATE SEQUENCE messages_id_seq",
        "CREATE TYPE evil AS (value pg_catalog.text)",
    ],
)
def test_what_a_stranger_may_have_does_not_matter(
    planted: str, empty_database_url: str, connect: Connect, stranger: str
) -> None:
    """These hide nothing of ours: PostgreSQL's own objects come first, and our staging table is named in full."""
    owner = connect(empty_database_url)
    owner.execute(f"GRANT CREATE ON SCHEMA public TO {stranger}".encode())
    connect(make_conninfo(empty_database_url, user=stranger)).execute(planted.encode())
    migrate.migrate(owner)
    assert verify(owner) == []


def test_what_the_owner_and_extensions_have_is_their_business(
    field_database_url: str, connect: Connect, stranger: str
) -> None:
    """The Viewer's own functions may have names of PostgreSQL's."""
    owner = connect(field_database_url)
    owner.execute("CREATE FUNCTION format(integer) RETURNS text LANGUAGE sql RETURN ''")
    owner.execute(f"ALTER TABLE messages OWNER TO {stranger}".encode())
    owner.execute("CREATE FUNCTION min(integer, text) RETURNS text LANGUAGE sql RETURN ''")
    owner.execute(f"ALTER FUNCTION min(integer, text) OWNER TO {stranger}".encode())
    assert migrate.plan(owner)
    owner.execute("ALTER TABLE messages OWNER TO CURRENT_USER")


def test_a_stranger_cannot_see_its_functions_used(database_url: str, connect: Connect, stranger: str) -> None:
    """A function that was planted after we migrated fits a varchar exactly, and the triggers do not call it."""
    owner: Connection = connect(database_url)
    owner.execute(f"GRANT CREATE ON SCHEMA public TO {stranger}".encode())
    planted = connect(make_conninfo(database_url, user=stranger))
    planted.execute(
        "CREATE FUNCTION call_status_is_final(varchar) RETURNS boolean LANGUAGE plpgsql"
        " AS $$ BEGIN RAISE 'planted'; END $$"
    )
    owner.execute(
        "INSERT INTO messages (twilio_sid, direction, status, from_number, to_number)"
        " VALUES ('CA1', 'inbound', 'completed', '', '')"
    )
    owner.execute("UPDATE messages SET status = 'ringing'")
    assert owner.execute("SELECT status, is_final FROM messages").fetchone() == ("completed", True)
    assert {finding.subject for finding in verify(owner)} == {"function call_status_is_final(character varying)"}

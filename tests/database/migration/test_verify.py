"""`verify` reads the catalog, not the ledger."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reconciler.database.catalog import expected_objects, normal, read_objects
from reconciler.database.migrate import migrate
from reconciler.database.verify import Finding, fits, verify
from tests.programs.schema_snapshot import SNAPSHOT, take_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.database.connection import Connection
    from tests.harness.databases import Connect

ROOT = Path(__file__).parents[3]


@pytest.fixture
def conn(shared_database_url: str, connect: Connect) -> Iterator[Connection]:
    """A connection to the shared database, in a transaction that takes all damage back."""
    conn = connect(shared_database_url)
    with conn.transaction(force_rollback=True):
        yield conn


def test_the_snapshot_is_what_the_files_make(empty_database_url: str, connect: Connect) -> None:
    """Every server says the same of what the files make: `python -m tests.programs.schema_snapshot` wrote it down."""
    assert take_snapshot(connect(empty_database_url)) == SNAPSHOT.read_text(encoding="ascii")


DAMAGE = [
    ("DROP TABLE sync_state", "column sync_state.cursor", "is missing; migration 003 makes it"),
    (
        "ALTER TABLE messages DROP COLUMN answered_by",
        "column messages.answered_by",
        "is missing; migration 006 makes it",
    ),
    ("ALTER TABLE messages ALTER price TYPE numeric(10, 4)", "column messages.price", "is numeric(10,4), not numeric"),
    (
        "ALTER TABLE messages ALTER sync_state DROP NOT NULL",
        "column messages.sync_state",
        "is text, not text NOT NULL",
    ),
    (
        "ALTER TABLE messages ALTER price SET NOT NULL",
        "column messages.price",
        "is numeric NOT NULL, not numeric",
    ),
    (
        "ALTER TABLE twilio_webhook_inbox ALTER retry_count DROP DEFAULT",
        "default twilio_webhook_inbox.retry_count",
        "is missing; migration 001 makes it",
    ),
    (
        "ALTER TABLE messages ALTER sync_state SET DEFAULT 'frozen'",
        "default messages.sync_state",
        "is 'frozen'::text, not 'active'::text",
    ),
    ("ALTER TABLE call_events ALTER id DROP DEFAULT", "default call_events.id", "is missing; migration 002 makes it"),
    (
        "ALTER TABLE messages DROP CONSTRAINT messages_twilio_sid_key",
        "unique messages.twilio_sid",
        "is missing; migration 000 makes it",
    ),
    (
        "ALTER TABLE messages DROP CONSTRAINT messages_twilio_sid_key, ADD UNIQUE (twilio_sid) DEFERRABLE",
        "unique messages.twilio_sid",
        "is missing; migration 000 makes it",
    ),
    ("DROP INDEX messages_open", "index messages.messages_open", "is missing; migration 020 makes it"),
    (
        "ALTER TABLE messages RESET (vacuum_index_cleanup)",
        "option messages.vacuum_index_cleanup",
        "is missing; migration 022 makes it",
    ),
    (
        "DROP INDEX call_events_created_at",
        "index call_events.call_events_created_at",
        "is missing; migration 018 makes it",
    ),
    (
        "DROP INDEX call_events_created_at; CREATE INDEX call_events_created_at ON call_events (created_at)",
        "index call_events.call_events_created_at",
        (
            "is CREATE INDEX call_events_created_at ON call_events USING btree (created_at), not CREATE INDEX"
            " call_events_created_at ON call_events USING brin (created_at) WITH (autosummarize='on')"
        ),
    ),
    (
        "DROP INDEX messages_unfrozen; CREATE INDEX messages_unfrozen ON messages (end_time)",
        "index messages.messages_unfrozen",
        (
            "is CREATE INDEX messages_unfrozen ON messages USING btree (end_time), not CREATE INDEX messages_unfrozen"
            " ON messages USING btree (finalized_at) WHERE (is_final AND (sync_state <> 'frozen'::text))"
        ),
    ),
    (
        (
            "DROP INDEX call_events_facts; CREATE INDEX call_events_facts"
            " ON call_events (call_sid, replace(dedupe_key, call_sid::text || ':', ''))"
        ),
        "index call_events.call_events_facts",
        (
            "is CREATE INDEX call_events_facts ON call_events USING btree"
            " (call_sid, replace(dedupe_key, ((call_sid)::text || ':'::text), ''::text)), not CREATE UNIQUE INDEX"
            " call_events_facts ON call_events USING btree"
            " (call_sid, replace(dedupe_key, ((call_sid)::text || ':'::text), ''::text))"
        ),
    ),
    ("DROP INDEX call_events_facts", "index call_events.call_events_facts", "is missing; migration 025 makes it"),
    (
        "ALTER TABLE call_events DISABLE TRIGGER call_events_append_only",
        "trigger call_events.call_events_append_only",
        "is disabled",
    ),
    (
        "ALTER TABLE messages DISABLE TRIGGER USER",
        "trigger messages.messages_guard_1_frozen",
        "is disabled",
    ),
    (
        "ALTER TABLE messages ENABLE REPLICA TRIGGER messages_guard_4_keep_open",
        "trigger messages.messages_guard_4_keep_open",
        "is disabled",
    ),
    (
        "DROP TRIGGER messages_guard_2_final ON messages",
        "trigger messages.messages_guard_2_final",
        "is missing; migration 014 makes it",
    ),
    (
        (
            "CREATE OR REPLACE TRIGGER messages_guard_2_final BEFORE UPDATE ON messages FOR EACH ROW"
            " EXECUTE FUNCTION messages_keep_final()"
        ),
        "trigger messages.messages_guard_2_final",
        "is not as our file makes it",
    ),
    (
        (
            "CREATE OR REPLACE TRIGGER messages_guard_2_final BEFORE INSERT ON messages FOR EACH ROW"
            " EXECUTE FUNCTION messages_keep_final()"
        ),
        "trigger messages.messages_guard_2_final",
        "is not as our file makes it",
    ),
    (
        (
            "CREATE OR REPLACE FUNCTION messages_keep_frozen() RETURNS trigger LANGUAGE plpgsql"
            " SET search_path = pg_catalog, pg_temp AS 'BEGIN RETURN NEW; END'"
        ),
        "function messages_keep_frozen()",
        "is not as our file makes it",
    ),
    (
        "ALTER FUNCTION messages_keep_frozen() RESET search_path",
        "function messages_keep_frozen()",
        "is not as our file makes it",
    ),
    (
        "ALTER FUNCTION call_events_refuse_change() SECURITY DEFINER",
        "function call_events_refuse_change()",
        "is not as our file makes it",
    ),
    (
        (
            "CREATE OR REPLACE FUNCTION call_status_is_final(status text) RETURNS boolean LANGUAGE sql IMMUTABLE"
            " RETURN false"
        ),
        "function call_status_is_final(text)",
        "is not as our file makes it",
    ),
    (
        """
        ALTER TABLE messages DROP CONSTRAINT messages_final_agrees;
        ALTER TABLE messages ADD CONSTRAINT messages_final_agrees CHECK (true)
        """,
        "constraint messages.messages_final_agrees",
        (
            "is CHECK (true), not CHECK (((is_final = call_status_is_final((status)::text)) AND"
            " ((finalized_at IS NOT NULL) = is_final) AND (is_final OR (sync_state <> 'frozen'::text))))"
        ),
    ),
    (
        """
        ALTER TABLE messages DROP CONSTRAINT messages_observed_via_known;
        ALTER TABLE messages ADD CONSTRAINT messages_observed_via_known
            CHECK (observed_via IN ('rest', 'webhook')) NOT VALID
        """,
        "constraint messages.messages_observed_via_known",
        "is not validated",
    ),
    ("DROP FUNCTION call_status_rank(text)", "function call_status_rank(text)", "is missing; migration 006 makes it"),
    (
        "CREATE FUNCTION call_status_rank(varchar) RETURNS smallint LANGUAGE sql RETURN 4::smallint",
        "function call_status_rank(character varying)",
        "has the name of a function of ours, and PostgreSQL may take it for that one",
    ),
    (
        "ALTER TABLE messages ADD COLUMN tenant integer NOT NULL",
        "column messages.tenant",
        "is NOT NULL without default: our rows lack it",
    ),
]


@pytest.mark.parametrize(("damage", "subject", "problem"), DAMAGE)
def test_damage_is_found(damage: str, subject: str, problem: str, conn: Connection) -> None:
    """Every difference from the schema that we need is named, although the ledger says that all was applied."""
    conn.execute(damage.encode())
    assert Finding(subject, problem) in verify(conn)


@pytest.mark.parametrize(
    "damage",
    [
        *(damage for damage, _, problem in DAMAGE if "price SET NOT NULL" not in damage),
        "ALTER TABLE messages DROP COLUMN gone_at",  # and two indexes with it
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'messages_open'::regclass",
    ],
)
def test_what_verify_says_mends_it(damage: str, database_url: str, connect: Connect, psql_binary: Path) -> None:
    """The commands of its hints, typed in their order, are all that it takes."""
    conn = connect(database_url)
    conn.execute(damage.encode())
    hints = list(dict.fromkeys(finding.hint for finding in verify(conn)))
    assert hints
    path = f"{psql_binary.parent}:{os.environ['PATH']}"
    for hint in hints:
        command = hint[hint.index('psql "$DATABASE_URL"') :]
        subprocess.run(
            ["sh", "-c", command], cwd=ROOT, check=True, env={"PATH": path, "DATABASE_URL": database_url},
            capture_output=True,
        )  # fmt: skip
    assert verify(conn) == []


FREE = [
    "ALTER TABLE messages ADD COLUMN note text, ADD COLUMN stars integer NOT NULL DEFAULT 0",
    "CREATE INDEX idx_note ON messages (conversation_id)",
    "ALTER TABLE messages ADD CONSTRAINT positive CHECK (duration >= 0)",
    (
        "CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER own BEFORE UPDATE ON messages FOR EACH ROW EXECUTE FUNCTION own()"
    ),
    "ALTER TABLE messages ALTER metadata SET NOT NULL, ALTER created_at SET NOT NULL",
    "ALTER TABLE messages ALTER metadata DROP DEFAULT, ALTER metadata TYPE json USING metadata::json",
    "ALTER TABLE messages ALTER conversation_id TYPE uuid USING NULL",
]


@pytest.mark.parametrize("change", FREE)
def test_objects_of_the_viewers_are_none_of_our_business(change: str, conn: Connection) -> None:
    """The Viewer may add objects to its tables, and may change columns that are its own."""
    conn.execute(change.encode())
    assert verify(conn) == []


WIDER = [
    "ALTER TABLE messages ALTER id TYPE bigint",
    "ALTER TABLE messages ALTER duration TYPE bigint",
    "ALTER TABLE messages ALTER start_time TYPE timestamp(3)",
    "ALTER TABLE messages ALTER price_unit TYPE varchar(20), ALTER parent_call_sid TYPE varchar",
    "ALTER TABLE messages RENAME CONSTRAINT messages_twilio_sid_key TO uq_messages_twilio_sid",
    (
        "ALTER TABLE messages DROP CONSTRAINT messages_twilio_sid_key;"
        "CREATE UNIQUE INDEX of_an_orm ON messages (twilio_sid) INCLUDE (status)"
    ),
    "ALTER TABLE call_events ALTER id DROP DEFAULT, ALTER id ADD GENERATED ALWAYS AS IDENTITY",
    "ALTER TABLE twilio_webhook_inbox ALTER dedupe_key TYPE text",
    "ALTER TABLE messages SET (autovacuum_vacuum_scale_factor = 0.5, fillfactor = 90)",
]


@pytest.mark.parametrize("change", WIDER)
def test_what_holds_our_values_is_as_good(change: str, conn: Connection) -> None:
    """A wider type, a unique key of another name, another value for autovacuum."""
    conn.execute(change.encode())
    assert verify(conn) == []


def test_text_for_every_varchar(empty_database_url: str, connect: Connect) -> None:
    """Where SIDs and statuses are text from the start, definitions lack our casts and mean the same."""
    conn = connect(empty_database_url)
    conn.execute(
        """
        CREATE TABLE messages (
            id bigserial PRIMARY KEY, conversation_id integer,
            twilio_sid text NOT NULL CONSTRAINT uq_messages_twilio_sid UNIQUE,
            direction text NOT NULL, status text NOT NULL, from_number text NOT NULL, to_number text NOT NULL,
            duration integer, price numeric(10, 4), price_unit text, start_time timestamp, end_time timestamp,
            recording_url text, parent_call_sid text, metadata jsonb, created_at timestamp,
            sync_state varchar(20) NOT NULL DEFAULT 'active'
        )
        """
    )
    conn.execute(
        """
        CREATE TABLE twilio_webhook_inbox (
            id bigserial PRIMARY KEY, source varchar(50) NOT NULL, event_type varchar NOT NULL, call_sid text,
            recording_sid text, dedupe_key text NOT NULL UNIQUE, payload jsonb NOT NULL,
            received_at timestamptz DEFAULT CURRENT_TIMESTAMP, processed_at timestamptz,
            processing_status varchar NOT NULL DEFAULT 'pending', error text, retry_count integer NOT NULL DEFAULT 0
        )
        """
    )
    migrate(conn)
    conn.execute("ALTER TABLE messages ALTER created_at SET DEFAULT now()")
    narrower = [finding for finding in verify(conn) if "varying" in finding.problem]
    assert verify(conn) == narrower
    assert {f.subject for f in narrower} == {"column messages.sync_state", "column twilio_webhook_inbox.source"}


@pytest.mark.parametrize(
    ("actual", "wanted", "holds"),
    [
        ("bigint", "integer", True),
        ("integer", "bigint", False),
        ("smallint", "integer", False),
        ("uuid", "integer", False),
        ("text", "character varying(100)", True),
        ("character varying", "text", True),
        ("character varying(20)", "text", False),
        ("character varying(34)", "character varying(100)", False),
        ("character(34)", "character varying(34)", False),
        ("numeric(10,4)", "numeric", False),
        ("timestamp with time zone", "timestamp without time zone", False),
        ("timestamp(3) without time zone", "timestamp without time zone", True),
        ("timestamp(3) with time zone", "timestamp with time zone", False),
        ("json", "jsonb", False),
        ('"Status"', "character varying(50)", False),
    ],
)
def test_which_types_hold_which(actual: str, wanted: str, holds: bool) -> None:
    """Wider is as good, and nothing else is."""
    assert fits(actual, wanted) is holds


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CHECK ((f((status)::text) AND b))", "CHECK ((f(status) AND b))"),
        ("WHERE ((s)::text <> 'frozen'::text)", "WHERE (s <> 'frozen'::text)"),
        (
            "(((p)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[])))",
            "((p = ANY (ARRAY['a'::text, 'b'::text])))",
        ),
        ("'active'::character varying", "'active'::text"),
    ],
)
def test_casts_between_text_and_varchar_do_not_count(one: str, other: str) -> None:
    """PostgreSQL writes them where a column is varchar and not where it is text."""
    assert normal(one) == normal(other)


def test_no_two_objects_of_ours_look_alike() -> None:
    """`normal` removes casts only: each index, constraint and trigger stays different."""
    objects = [e.object for e in expected_objects() if e.object.kind in ("index", "constraint", "trigger", "function")]
    assert len({normal(o.definition) for o in objects}) == len(objects)


def test_another_schema_with_the_same_tables_is_not_looked_at(conn: Connection) -> None:
    """A schema that search_path does not name may hold anything."""
    conn.execute("CREATE SCHEMA other")
    conn.execute("CREATE TABLE other.messages (id uuid)")
    conn.execute("CREATE FUNCTION other.call_status_rank(varchar) RETURNS smallint LANGUAGE sql RETURN 4::smallint")
    assert verify(conn) == []
    assert not {o.definition for o in read_objects(conn, functions=()) if o.definition == "uuid"}

"""`verify --explain`: whether the statements that poll use the indexes made for them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest
from psycopg.conninfo import make_conninfo

from reconciler.database import connection as db
from reconciler.database.connection import load_queries
from reconciler.database.migrate import migrate
from reconciler.database.migration_files import TABLES
from reconciler.database.plans import MANY_ROWS, explain, polling_statements
from reconciler.database.store import _MERGE_SESSION
from tests.harness.databases import name_of, new_database
from tests.harness.volume import fill

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.database.connection import Connection
    from tests.harness.databases import Connect

# Read a table of ours, and are no polls: they go by keys at hand, or read a small table.
NO_POLLS = {
    "inbox.claim_dead_by_id", "inbox.complete", "inbox.fill_answered_by", "inbox.find", "inbox.give_up",
    "inbox.has_letter", "inbox.not_dead", "inbox.put_off", "merge.merge_staged", "report.jobs",
    "report.refused_recordings", "sync_state.read_cursor",
    "sync_state.cursors_of_kind", "sync_state.first_looks", "sync_state.move_cursor", "sync_state.note_first_look",
    "report.leaders_note", "thaw.thaw", "migrations.ledger",
    "budgets.keep", "budgets.lock", "sync_state.forget_slices",
    "sync_state.forget_jobs", "sync_state.progress_of",
}  # fmt: skip


# Each reads its table whole if that is smaller, or takes whichever index costs least: the statement names them all.
ANY_OF = {
    "messages.count_open", "messages.stuck_calls", "messages.freeze_due", "webhook_evidence.lost_calls",
    "webhook_evidence.forget_faults", "webhook_evidence.forget_alerts",
}  # fmt: skip

# Tables that grow with the calls, not with the accounts.
GROWING = ("messages", "call_events", "twilio_webhook_inbox")
CALLS = 30_000


@pytest.fixture(scope="module")
def full(server_url: str, template: str) -> Iterator[str]:
    """The URL of a database that has seen a year."""
    with new_database(server_url, template) as url:
        with db.connect(url, purpose="test") as conn:
            fill(conn, CALLS, now=datetime.now(UTC))
        yield url


def take_statistics_of_a_quiet_hour(conn: Connection) -> None:
    """Analyse the calls while none is open or waits to be frozen. In the field nobody analyses them again for hours."""
    conn.execute("ALTER TABLE messages DISABLE TRIGGER USER")
    conn.execute("CREATE TEMPORARY TABLE busy AS SELECT * FROM messages WHERE sync_state <> 'frozen'")
    conn.execute("DELETE FROM messages WHERE sync_state <> 'frozen'")
    conn.execute("ANALYZE messages")
    conn.execute("INSERT INTO messages SELECT * FROM busy")


SESSIONS: dict[str, dict[str, str]] = {"of the jobs": _MERGE_SESSION, "of the views": {}}


@pytest.mark.parametrize("session", SESSIONS)
@pytest.mark.parametrize("statistics", ["fresh", "of an hour in which nobody talked"])
def test_every_polling_statement_reads_its_indexes_alone(full: str, session: str, statistics: str) -> None:
    """No table that grows with the calls is read whole, and each statement takes the indexes that its comment names.

    The planner takes others where it knows no better: with statistics from an hour in which no call was open or waited,
    and in a session of the views, which may read whole tables.
    """
    with db.connect(full, purpose="test", settings=SESSIONS[session]) as conn, conn.transaction(force_rollback=True):
        if statistics != "fresh":
            take_statistics_of_a_quiet_hour(conn)
        plans, findings = explain(conn)
    assert findings == []
    assert {plan.note for plan in plans} == {""}
    assert {plan.statement: plan.reads_whole for plan in plans if set(plan.reads_whole) & set(GROWING)} == {}
    unused = {plan.statement: plan.unused for plan in plans if plan.unused and plan.statement not in ANY_OF}
    assert unused == {}


def test_what_the_jobs_poll_is_not_read_for_other_accounts(full: str) -> None:
    """hot and warm, each minute: the account's open and its unfrozen calls, whatever the statistics say."""
    with db.connect(full, purpose="test", settings=_MERGE_SESSION) as conn, conn.transaction(force_rollback=True):
        take_statistics_of_a_quiet_hour(conn)
        uses = {plan.statement: plan.uses for plan in explain(conn)[0]}
    assert uses["messages.open_calls"] == ["messages_open"]
    assert uses["messages.unfrozen_calls"] == ["messages_unfrozen_account"]


# No test here shares a database: rows that are rolled back stay in the table's file until autovacuum comes. The planner
# looks at the file's size, and at what autovacuum found.


@pytest.fixture(scope="module")
def plain_template(server_url: str) -> Iterator[str]:
    """The name of a migrated database in which strings are compared byte by byte, as the embedded server does."""
    with new_database(server_url, collation="C") as url:
        with db.connect(url, purpose="template") as conn:
            migrate(conn)
        yield name_of(url)


def test_every_statement_that_reads_our_tables_names_its_index() -> None:
    """The comment above a statement is what makes it asked; nothing else lists them."""
    asked = {statement.name for statement in polling_statements()}
    read = set()
    for file in files("reconciler.database").joinpath("queries").iterdir():
        table = file.name.removesuffix(".sql")
        for name, query in load_queries(table).items():
            text = re.sub("--.*", "", query)
            if table != "demo" and re.search(rf"\b(FROM|UPDATE|JOIN) ({'|'.join(TABLES)})\b", text):
                read.add(f"{table}.{name}")
    assert read - asked - NO_POLLS == set()
    assert asked & NO_POLLS == set()


def test_empty_tables_raise_no_alarm(conn: Connection) -> None:
    """Reading all of an empty table is right. Each statement is asked, and each that only reads has run."""
    plans, findings = explain(conn)
    assert findings == []
    assert [plan.statement for plan in plans] == [statement.name for statement in polling_statements()]
    assert {plan.note for plan in plans} == {""}
    has_run = {plan.statement: plan.milliseconds is not None for plan in plans}
    assert has_run["messages.open_calls"]
    assert not has_run["messages.freeze_due"]
    assert not has_run["inbox.claim_due"]


def add_calls(conn: Connection, count: int, status: str) -> None:
    """Calls of one account, all with the same status."""
    conn.execute(
        "INSERT INTO messages (twilio_sid, account_sid, direction, status, from_number, to_number, start_time)"
        " SELECT 'CA' || md5(%(status)s || n), 'AC1', '', %(status)s, '', '', now() - n * interval '1 minute'"
        " FROM generate_series(1, %(count)s::int) AS n",
        {"status": status, "count": count},
    )


def test_large_tables_are_read_by_their_indexes(conn: Connection) -> None:
    """With current statistics the planner takes the indexes made for each statement."""
    add_calls(conn, 3 * MANY_ROWS, "completed")
    conn.execute("UPDATE messages SET sync_state = 'frozen'")
    add_calls(conn, 10, "ringing")
    conn.execute("ANALYZE messages")
    plans, findings = explain(conn)
    assert findings == []
    used = {plan.statement: plan.uses for plan in plans}
    assert used["messages.open_calls"] == ["messages_open"]
    assert used["messages.unfrozen_calls"] == ["messages_unfrozen_account"]
    assert used["messages.count_calls"] == ["messages_account_time"]
    assert {plan.statement: plan.rows for plan in plans}["messages.open_calls"] == 10


def test_most_of_a_large_table_may_be_read_whole(conn: Connection) -> None:
    """Right after an import every call waits to be frozen: no index is better then."""
    add_calls(conn, 3 * MANY_ROWS, "completed")
    conn.execute("ANALYZE messages")
    _, findings = explain(conn)
    assert findings == []


def test_a_large_table_read_in_vain_is_named(conn: Connection) -> None:
    """An index that could serve and is not used: the statistics are old, and the hint mends them."""
    add_calls(conn, 2 * MANY_ROWS, "completed")
    conn.execute("UPDATE messages SET sync_state = 'frozen'")
    conn.execute("SET enable_indexscan = off")
    conn.execute("SET enable_bitmapscan = off")
    conn.execute("SET enable_indexonlyscan = off")
    conn.execute("ANALYZE messages")
    plans, findings = explain(conn)
    by_statement = {finding.subject: finding for finding in findings}
    assert "reads all of messages" in by_statement["statement messages.open_calls"].problem
    assert "messages_open" in {plan.statement: plan.unused for plan in plans}["messages.open_calls"]


DAMAGES = pytest.mark.parametrize(
    ("damage", "statement"),
    [
        ("DROP INDEX messages_open, idx_messages_active_calls, messages_account_time", "messages.open_calls"),
        ("DROP INDEX messages_account_time", "messages.count_calls"),
        ("ALTER TABLE messages DROP CONSTRAINT messages_twilio_sid_key", "merge.look_up"),
        (
            "DROP INDEX webhook_inbox_unsettled; CREATE INDEX webhook_inbox_unsettled ON twilio_webhook_inbox (error)",
            "inbox.count_dead_letters",
        ),
    ],
)


@DAMAGES
def test_a_statement_without_an_index_is_named(damage: str, statement: str, conn: Connection) -> None:
    """A small table counts too: it will grow."""
    conn.execute(damage.encode())
    _, findings = explain(conn)
    assert f"statement {statement}" in {finding.subject for finding in findings}


@DAMAGES
def test_a_statement_without_an_index_is_named_where_bytes_are_compared(
    damage: str, statement: str, server_url: str, plain_template: str, connect: Connect
) -> None:
    """There an index of the SIDs could be read for all that begin with CA, which are all."""
    with new_database(server_url, plain_template) as url:
        conn = connect(url)
        conn.execute(damage.encode())
        _, findings = explain(conn)
        assert f"statement {statement}" in {finding.subject for finding in findings}


def test_unique_keys_have_any_name(conn: Connection) -> None:
    """A key under an ORM's name serves as well."""
    conn.execute("ALTER TABLE messages RENAME CONSTRAINT messages_twilio_sid_key TO uq_messages_twilio_sid")
    plans, findings = explain(conn)
    assert findings == []
    assert {plan.statement: plan for plan in plans}["merge.look_up"].unused == []


def test_what_the_role_may_not_do_is_not_asked(database_url: str, connect: Connect, stranger: str) -> None:
    """A role without DELETE on the inbox gets the other plans, and is told."""
    owner = connect(database_url)
    for table in TABLES:
        owner.execute(f"GRANT SELECT, INSERT, UPDATE ON {table} TO {stranger}".encode())
    plans, findings = explain(connect(make_conninfo(database_url, user=stranger)))
    assert findings == []
    assert [plan.statement for plan in plans if plan.note] == [
        "housekeeping.prune_inbox", "housekeeping.prune_events", "webhook_evidence.forget_alerts",
        "webhook_evidence.forget_faults",
    ]  # fmt: skip


def test_nothing_is_changed_or_locked(database_url: str, connect: Connect) -> None:
    """PostgreSQL keeps each question read-only, and another session may go on with the rows."""
    conn, other = connect(database_url), connect(database_url)
    add_calls(conn, 10, "completed")
    before = conn.execute("SELECT array_agg(m ORDER BY id)::text, array_agg(xmin::text) FROM messages AS m").fetchone()
    explain(conn)
    with other.transaction():
        other.execute("SELECT FROM messages FOR UPDATE NOWAIT")
    after = conn.execute("SELECT array_agg(m ORDER BY id)::text, array_agg(xmin::text) FROM messages AS m").fetchone()
    assert before == after

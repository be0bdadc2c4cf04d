"""The rules of messages that hold for every writer (007), and the constraint behind them (009)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reconciler.database.connection import Connection
    from tests.harness.databases import Connect

    Add = Callable[..., int]
    Read = Callable[..., Any]
    Update = Callable[..., None]

ENDED = datetime(2025, 6, 1, 10, 0, 42, tzinfo=UTC)
TERMINAL = ["completed", "busy", "no-answer", "canceled", "failed"]
OPEN = ["queued", "initiated", "ringing", "in-progress", "answered", "whatever"]

FROZEN: dict[str, Any] = {
    "twilio_sid": "CA00000000000000000000000000000f00",
    "status": "completed",
    "from_number": "+15550100001",
    "to_number": "+15550200000",
    "duration": 42,
    "price": -1,
    "price_unit": "USD",
    "start_time": ENDED.replace(tzinfo=None) - timedelta(seconds=42),
    "end_time": ENDED.replace(tzinfo=None),
    "parent_call_sid": "CA00000000000000000000000000000f01",
    "account_sid": "AC00000000000000000000000000000001",
    "answered_by": "human",
    "date_created": ENDED,
    "last_event_time": ENDED,
    "is_final": True,
    "finalized_at": ENDED,
    "sync_state": "frozen",
    "observed_at": ENDED,
    "observed_via": "rest",
}

OTHER: dict[str, Any] = {
    "twilio_sid": "CA0000000000000000000000000000beef",
    "status": "failed",
    "duration": 1,
    "price": -2,
    "is_final": False,
    "sync_state": "active",
    "observed_via": "webhook",
    **dict.fromkeys(("from_number", "to_number", "price_unit", "parent_call_sid", "account_sid", "answered_by"), "x"),
    **dict.fromkeys(("start_time", "end_time"), datetime(2020, 1, 1)),
    **dict.fromkeys(
        ("date_created", "last_event_time", "finalized_at", "observed_at"), datetime(2020, 1, 1, tzinfo=UTC)
    ),
}


@pytest.fixture
def conn(shared_database_url: str, connect: Connect) -> Iterator[Connection]:
    """A connection to the shared database; the calls go with the test."""
    conn = connect(shared_database_url)
    yield conn
    conn.execute("DELETE FROM public.messages")


@pytest.mark.parametrize("column", FROZEN)
def test_frozen_call_keeps_what_twilio_owns(column: str, add_call: Add, update_call: Update, read_call: Read) -> None:
    """No writer changes a frozen call, and none is told so by an error."""
    call = add_call(**FROZEN)
    update_call(call, **{column: OTHER[column]})
    assert read_call(call, *FROZEN) == tuple(FROZEN.values())


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("conversation_id", 7),
        ("direction", "outbound-api"),
        ("recording_url", "https://recordings.example/1"),
        ("metadata", '{"a": 1}'),
        ("created_at", datetime(2020, 1, 1)),
        ("updated_at", datetime(2020, 1, 1, tzinfo=UTC)),
    ],
)
def test_frozen_call_leaves_the_viewers_columns_free(
    column: str, value: Any, add_call: Add, update_call: Update, read_call: Read
) -> None:
    """The Viewer may change its own columns at any time."""
    call = add_call(**FROZEN)
    update_call(call, **{column: value})
    assert read_call(call, column) == ({"a": 1} if column == "metadata" else value)


def test_frozen_call_can_be_thawed_through_the_door(
    conn: Connection, add_call: Add, update_call: Update, read_call: Read
) -> None:
    """A person thaws a call with a setting that ends with the transaction."""
    call = add_call(**FROZEN)
    with conn.transaction():
        conn.execute("SELECT set_config('reconciler.thaw', 'on', true)")
        update_call(call, sync_state="active", price=-2)
    assert read_call(call, "sync_state", "price") == ("active", -2)


def test_thaw_door_closes_with_the_transaction(
    conn: Connection, add_call: Add, update_call: Update, read_call: Read
) -> None:
    """In the next transaction of the same connection the call is frozen again."""
    call = add_call(**FROZEN)
    with conn.transaction():
        conn.execute("SELECT set_config('reconciler.thaw', 'on', true)")
    update_call(call, price=-2)
    assert read_call(call, "price") == -1


def test_open_call_cannot_be_frozen(add_call: Add, update_call: Update, read_call: Read) -> None:
    """Frozen implies final: sealing a ringing call leaves it active."""
    call = add_call(status="ringing")
    update_call(call, sync_state="frozen", is_final=True)
    assert read_call(call, "status", "sync_state", "is_final") == ("ringing", "active", False)


def test_final_call_can_be_frozen(add_call: Add, update_call: Update, read_call: Read) -> None:
    """Freezing is an ordinary UPDATE."""
    call = add_call(status="completed")
    update_call(call, sync_state="frozen")
    assert read_call(call, "sync_state") == "frozen"


@pytest.mark.parametrize("status", OPEN)
def test_final_call_does_not_go_back(status: str, add_call: Add, update_call: Update, read_call: Read) -> None:
    """A late webhook may write what it likes; the call stays final, and so does its time."""
    call = add_call(status="completed", finalized_at=ENDED)
    update_call(call, status=status, is_final=False, finalized_at=None)
    assert read_call(call, "status", "is_final", "finalized_at") == ("completed", True, ENDED)


def test_refused_status_does_not_refuse_the_rest(add_call: Add, update_call: Update, read_call: Read) -> None:
    """The statement that carried a stale status passes, with everything else it said."""
    call = add_call(status="completed")
    update_call(call, status="ringing", recording_url="https://recordings.example/1", duration=9)
    assert read_call(call, "status", "recording_url", "duration") == ("completed", "https://recordings.example/1", 9)


def test_final_status_may_be_corrected_to_another_final_one(
    add_call: Add, update_call: Update, read_call: Read
) -> None:
    """Twilio corrects itself, and the end of the call stays where it was."""
    call = add_call(status="completed", finalized_at=ENDED)
    update_call(call, status="failed")
    assert read_call(call, "status", "is_final", "finalized_at") == ("failed", True, ENDED)


@pytest.mark.parametrize("status", TERMINAL)
def test_terminal_status_makes_the_call_final(status: str, add_call: Add, update_call: Update, read_call: Read) -> None:
    """A writer that knows nothing of is_final sets a terminal status, and the row agrees."""
    call = add_call(status="in-progress")
    update_call(call, status=status)
    is_final, finalized_at = read_call(call, "is_final", "finalized_at")
    assert is_final
    assert finalized_at is not None


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"finalized_at": ENDED, "end_time": datetime(2020, 1, 1)}, ENDED),
        ({"end_time": ENDED.replace(tzinfo=None), "last_event_time": datetime(2020, 1, 1, tzinfo=UTC)}, ENDED),
        ({"last_event_time": ENDED}, ENDED),
    ],
    ids=["what the writer says", "end of the call", "last event"],
)
def test_finalized_at_is_the_best_time_at_hand(
    known: dict[str, Any], expected: datetime, conn: Connection, add_call: Add, read_call: Read
) -> None:
    """The end of the call on Twilio's clock, in whatever time zone the writer's session is."""
    conn.execute("SET timezone = 'America/New_York'")
    assert read_call(add_call(status="completed", **known), "finalized_at") == expected


def test_finalized_at_is_now_when_nothing_else_is_known(conn: Connection, add_call: Add, read_call: Read) -> None:
    """A writer that knows no time must not fail."""
    with conn.transaction():
        row = conn.execute("SELECT now()").fetchone()
        assert row == (read_call(add_call(status="failed"), "finalized_at"),)


@pytest.mark.parametrize("wrong", [{"is_final": False}, {"is_final": None}, {"is_final": True, "finalized_at": None}])
def test_insert_of_a_terminal_call_is_corrected(wrong: dict[str, Any], add_call: Add, read_call: Read) -> None:
    """An INSERT with wrong flags passes and is set right."""
    call = add_call(status="busy", end_time=ENDED.replace(tzinfo=None), **wrong)
    assert read_call(call, "is_final", "finalized_at") == (True, ENDED)


@pytest.mark.parametrize(
    "wrong", [{"is_final": True}, {"is_final": None}, {"finalized_at": ENDED}, {"sync_state": "frozen"}]
)
@pytest.mark.parametrize("status", OPEN)
def test_insert_of_an_open_call_is_corrected(
    status: str, wrong: dict[str, Any], add_call: Add, read_call: Read
) -> None:
    """An INSERT that seals a call which is not over passes and stays open."""
    call = add_call(status=status, **wrong)
    assert read_call(call, "is_final", "finalized_at", "sync_state") == (False, None, "active")


def test_viewers_upsert_is_corrected(conn: Connection, add_call: Add, read_call: Read) -> None:
    """INSERT ... ON CONFLICT DO UPDATE meets the same rules as an UPDATE."""
    call = add_call(twilio_sid="CA1", status="completed", finalized_at=ENDED)
    conn.execute(
        "INSERT INTO messages (twilio_sid, direction, status, from_number, to_number)"
        " VALUES ('CA1', 'inbound', 'ringing', '', '')"
        " ON CONFLICT (twilio_sid) DO UPDATE SET status = EXCLUDED.status, is_final = EXCLUDED.is_final"
    )
    assert read_call(call, "status", "is_final", "finalized_at") == ("completed", True, ENDED)


def test_guards_work_for_a_writer_with_another_search_path(conn: Connection) -> None:
    """A backend that names schemas in full is not told that our functions are missing."""
    conn.execute("SELECT set_config('search_path', 'pg_catalog', false)")
    conn.execute(
        "INSERT INTO public.messages (twilio_sid, direction, status, from_number, to_number)"
        " VALUES ('CA1', 'inbound', 'completed', '', '')"
    )
    conn.execute("UPDATE public.messages SET status = 'ringing', sync_state = 'frozen'")
    conn.execute("UPDATE public.messages SET price = 1")
    assert conn.execute("SELECT status, price FROM public.messages").fetchone() == ("completed", None)


@pytest.mark.parametrize(
    "broken",
    [
        "status = 'ringing', is_final = true, finalized_at = now()",
        "status = 'completed', is_final = false, finalized_at = NULL",
        "status = 'completed', is_final = true, finalized_at = NULL",
        "status = 'ringing', is_final = false, finalized_at = now()",
        "status = 'ringing', is_final = false, finalized_at = NULL, sync_state = 'frozen'",
    ],
)
def test_constraint_holds_without_the_guards(broken: str, conn: Connection, add_call: Add) -> None:
    """With the triggers switched off, a row that contradicts itself still cannot be written."""
    add_call()
    with conn.transaction(force_rollback=True):
        conn.execute("ALTER TABLE messages DISABLE TRIGGER USER")
        with pytest.raises(psycopg.errors.CheckViolation, match="messages_final_agrees"):
            conn.execute(f"UPDATE messages SET {broken}".encode())


def test_updated_at_moves_with_a_change(add_call: Add, update_call: Update, read_call: Read) -> None:
    """A program that polls by updated_at sees every change."""
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    call = add_call(updated_at=long_ago)
    update_call(call, duration=1)
    assert read_call(call, "updated_at") > long_ago


def test_updated_at_of_the_statement_itself_is_kept(add_call: Add, update_call: Update, read_call: Read) -> None:
    """A writer that sets updated_at is taken at its word."""
    call = add_call()
    update_call(call, duration=1, updated_at=ENDED)
    assert read_call(call, "updated_at") == ENDED


@pytest.mark.parametrize(
    ("status", "rank"),
    [("queued", 0), ("initiated", 1), ("ringing", 2), ("in-progress", 3), ("answered", 3), ("", -1), (None, -1)]
    + [(status, 4) for status in TERMINAL],
)
def test_status_ranks(status: str | None, rank: int, conn: Connection) -> None:
    """Calls move up these ranks; a status nobody knows yields to any known one."""
    row = conn.execute("SELECT call_status_rank(%s), call_status_is_final(%s)", (status, status)).fetchone()
    assert row == (rank, rank == 4)


@pytest.mark.parametrize("function", ["call_status_rank", "call_status_is_final"])
def test_status_functions_are_inlined(function: str, conn: Connection) -> None:
    """They cost no function call for each row."""
    plan = conn.execute(f"EXPLAIN VERBOSE SELECT {function}(status) FROM messages".encode()).fetchall()
    assert function not in str(plan)

"""`reconcile call CA… --repair`: one call made equal to Twilio's record, in one commit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from reconciler.database.transaction import Transaction
from reconciler.simulator import Fault
from tests.harness.equality import versions
from tests.harness.names import ACCOUNT, SUBACCOUNT, TOKEN, sid

HOURS_AGO = timedelta(hours=2)


@pytest.fixture
def call(account):
    """A call that ended, complete, two hours ago."""
    return account.call(datetime.now(UTC) - HOURS_AGO, from_="+12025550100")


@pytest.fixture
def hold(conn, call):
    """Inserts a row of the call as the Viewer or an earlier run left it."""

    def insert(status: str, **columns) -> None:
        columns = {"account_sid": ACCOUNT, "from_number": call.from_, "to_number": call.to, **columns}
        conn.execute(
            "INSERT INTO messages (twilio_sid, direction, status, {}) VALUES (%s, 'outbound-api', %s, {})".format(
                ", ".join(columns), ", ".join(["%s"] * len(columns))
            ),
            (call.sid, status, *columns.values()),
        )

    return insert


@pytest.fixture
def repair(signed_in, call):
    """`reconcile call CA… --repair --json`."""
    return lambda *words: signed_in("call", call.sid, "--repair", *words, "--json")


def changed(done) -> dict[str, tuple]:
    """Return the written fields, before and after, without times."""
    return {
        change["field"]: (change["before"], change["after"])
        for change in done.result["changes"]
        if not change["field"].endswith("_time") and change["field"] != "date_created"
    }


def test_a_missing_call(repair, not_equal, events, call):
    """0, a row, one event, and every field as what changed; the numbers masked."""
    done = repair()
    assert (done.code, done.result["repaired"], done.result["thawed"], not_equal()) == (0, True, False, [])
    fields = changed(done)
    assert fields["status"] == (None, "completed")
    assert fields["from_number"] == (None, "***00")
    assert fields["account_sid"] == (None, ACCOUNT)
    assert {"start_time", "end_time", "date_created"} < {change["field"] for change in done.result["changes"]}
    assert events(call.sid) == [("call.created", "completed", "reconcile_call")]
    assert done.result["row"]["sync_state"] == "frozen"


def test_a_call_that_is_behind(repair, hold, not_equal, events, call):
    """0: the status, the fields that come with it, and the events of a call that ended."""
    hold("ringing")
    done = repair()
    assert (done.code, not_equal()) == (0, [])
    assert changed(done)["status"] == ("ringing", "completed")
    assert [event for event, *_ in events(call.sid)] == ["call.status_changed", "call.frozen"]


def test_an_incomplete_call(repair, hold, not_equal):
    """0, and nothing but the fields that were missing."""
    end = datetime.now(UTC)
    hold("completed", duration=60, price_unit="USD", finalized_at=end, observed_at=end - HOURS_AGO)
    done = repair()
    assert (done.code, not_equal()) == (0, [])
    fields = changed(done)
    assert "status" not in fields
    assert fields["price"][0] is None
    assert Decimal(fields["price"][1]) == Decimal("-0.01400")


def test_for_a_person(signed_in, hold, call):
    """The output has each field before and after, then row and record, which agree."""
    hold("ringing")
    done = signed_in("call", call.sid, "--repair")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert done.code == 0
    assert "Twilio's record was merged." in lines
    assert "changed before after" in lines
    assert "status ringing completed" in lines
    assert "price nothing -0.01400" in lines
    assert "Row and record agree." in lines


def test_what_is_equal_stays_as_it_is(repair, conn, events, call):
    """The second repair writes nothing."""
    repair()
    before = versions(conn), events(call.sid)
    done = repair()
    assert (done.code, done.result["repaired"], done.result["changes"]) == (0, False, [])
    assert (versions(conn), events(call.sid)) == before


def test_frozen_takes_a_thaw(signed_in, repair, account, held, conn, not_equal):
    """1 and the command; with --thaw too it is equal, frozen again, and says what changed."""
    account.change(held, price="-0.05000")
    before = versions(conn)
    done = signed_in("call", held, "--repair")
    assert done.code == 1
    assert f"It is frozen; `reconcile call {held} --thaw` lets Twilio's record win." in done.out
    assert versions(conn) == before
    done = signed_in("call", held, "--repair", "--thaw", "--json")
    assert (done.code, done.result["thawed"], list(changed(done)), not_equal()) == (0, True, ["price"], [])
    assert done.result["row"]["sync_state"] == "frozen"


def test_thaw_goes_with_what_is_not_frozen(repair, hold, not_equal):
    """Together they put right whatever state the row is in."""
    hold("ringing")
    done = repair("--thaw")
    assert (done.code, done.result["thawed"], not_equal()) == (0, False, [])


def test_twilio_does_not_know_it(signed_in, repair, hold, account, call, conn):
    """Without a row: 1, and nothing is written. A row is marked as gone: 0, also the next time."""
    account.delete(call.sid, datetime.now(UTC) - timedelta(minutes=1))
    done = signed_in("call", call.sid, "--repair")
    assert done.code == 1
    assert f"Twilio has no such call in {ACCOUNT}. Nothing was changed." in done.out
    assert "We have no such call." in done.out
    hold("ringing", start_time=datetime.now(UTC) - HOURS_AGO)
    done = signed_in("call", call.sid, "--repair")
    assert done.code == 0
    assert f"Twilio has no such call in {ACCOUNT}. It is marked as gone." in done.out
    assert conn.execute("SELECT status, gone_at IS NOT NULL FROM messages").fetchone() == ("ringing", True)
    assert repair().code == 0


@pytest.mark.parametrize("age", [timedelta(minutes=1), HOURS_AGO])
def test_it_may_not_be_gone(signed_in, hold, account, call, conn, age):
    """A call of a minute ago, or a row that names no account where there are several: absence proves nothing."""
    account.delete(call.sid, datetime.now(UTC) - timedelta(seconds=30))
    hold("ringing", start_time=datetime.now(UTC) - age, account_sid=ACCOUNT if age < HOURS_AGO else None)
    done = signed_in("call", call.sid, "--repair", RECONCILER_ACCOUNTS=f"{ACCOUNT},{SUBACCOUNT}")
    assert done.code == 1
    assert "Nothing was changed." in done.out
    assert conn.execute("SELECT gone_at FROM messages").fetchone() == (None,)


def test_a_record_that_cannot_be_read(repair, hold, account, call, conn):
    """1 and the reason; the row stays, and the record is kept in the inbox."""
    hold("ringing")
    before = versions(conn)
    account.change(call.sid, price="a lot")
    done = repair()
    assert done.code == 1
    assert "Twilio's record cannot be read: price 'a lot' is not a number." in done.result["note"]
    assert versions(conn) == before
    assert conn.execute("SELECT call_sid, processing_status FROM twilio_webhook_inbox").fetchall() == [
        (call.sid, "dead_letter")
    ]


def test_a_row_that_is_ahead(signed_in, hold, account, conn):
    """A call never goes back: 1, and why."""
    alive = account.call(datetime.now(UTC) - HOURS_AGO, talks_for=5 * 3600)
    conn.execute(
        "INSERT INTO messages (twilio_sid, account_sid, direction, status, from_number, to_number)"
        " VALUES (%s, %s, 'outbound-api', 'completed', '', '')",
        (alive.sid, ACCOUNT),
    )
    done = signed_in("call", alive.sid, "--repair")
    assert done.code == 1
    assert "Our row is ahead of Twilio's record, and a call never goes back" in done.out
    assert conn.execute("SELECT status FROM messages").fetchone() == ("completed",)


def test_a_call_of_another_account(signed_in, account, twilio):
    """Without a row nobody knows whose it is: --account tells."""
    other = account.add_subaccount(SUBACCOUNT, auth_token=TOKEN)
    theirs = other.call(datetime.now(UTC) - HOURS_AGO)
    assert signed_in("call", theirs.sid, "--repair").code == 1
    done = signed_in("call", theirs.sid, "--repair", "--account", SUBACCOUNT, "--json")
    assert (done.code, done.result["row"]["account_sid"]) == (0, SUBACCOUNT)
    assert signed_in("call", theirs.sid, "--account", "nobody").code == 64


def of_recordings(request) -> bool:
    """Whether a request is about recordings."""
    return "/Recordings" in request.path


def test_a_refusal_of_recordings_that_passes_is_no_lacking_permission(repair, hold, twilio, conn):
    """77, and the row is as before: the next try reads the recordings."""
    hold("ringing")
    twilio.faults.when(of_recordings, Fault.forbidden(70051), times=1)
    assert repair().code == 77
    assert conn.execute("SELECT status FROM messages").fetchone() == ("ringing",)
    assert repair().code == 0


def test_without_the_permission_for_recordings_the_call_is_repaired(repair, hold, twilio, not_equal):
    """Twilio refuses recordings alone, and again."""
    hold("ringing")
    twilio.faults.when(of_recordings, Fault.forbidden(70051))
    assert (repair().code, not_equal()) == (0, [])


@pytest.mark.parametrize("own", [sid(1)[:-1], "local_1700000000_abc"])
def test_what_is_no_calls_sid(signed_in, own, twilio):
    """64, and Twilio is not asked."""
    done = signed_in("call", own, "--repair")
    assert (done.code, done.out) == (64, "")
    assert "a call's SID is CA and 32 hexadecimal digits" in done.err
    assert 0 == len(twilio.requests)


def test_a_repair_dies_whole(repair, hold, conn, events, call, monkeypatch):
    """Row and events are one commit: if it fails at its end, the row is as before."""
    hold("ringing")
    before = versions(conn)
    apply = Transaction.apply

    def fail(self, *args, **options):
        apply(self, *args, **options)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "apply", fail)
        assert repair().code == 70
    assert (versions(conn), events(call.sid)) == (before, [])
    assert repair().code == 0


def test_a_stuck_call(signed_in, hold, account, conn):
    """Row and record say in-progress for days. The output tells how to end the call at Twilio, and the next step."""
    stuck = account.call(datetime.now(UTC) - timedelta(days=2), talks_for=20 * 86400)
    assert signed_in("call", stuck.sid, "--repair").code == 0
    done = signed_in("call", stuck.sid)
    assert done.code == 0
    assert "Both say in-progress, for 2 d." in done.out
    assert f"twilio api:core:calls:update --sid {stuck.sid} --status completed" in done.out
    assert f"Then `reconcile call {stuck.sid} --repair`." in done.out
    account.hang_up(stuck.sid, datetime.now(UTC) - timedelta(minutes=10))
    assert f"`reconcile call {stuck.sid} --repair` does so now" in signed_in("call", stuck.sid).out
    assert signed_in("call", stuck.sid, "--repair").code == 0
    assert conn.execute("SELECT status FROM messages").fetchone() == ("completed",)

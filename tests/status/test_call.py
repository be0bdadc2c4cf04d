"""`reconcile call`: one call from both sides, and the one door through which a frozen row changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from psycopg.types.json import Jsonb

from reconciler.cli import call as command
from reconciler.database import locks
from reconciler.jobs.repair import REPAIR
from reconciler.status import call as call_facts
from tests.harness.equality import versions
from tests.harness.names import ACCOUNT, sid

NUMBER = "+12025550100"
SHAPE = [
    "call_sid",
    "row",
    "twilio",
    "fields",
    "differs",
    "thawed",
    "repaired",
    "changes",
    "recordings",
    "note",
    "events",
    "has_older_events",
]


@pytest.fixture
def nobody_signed_in(run):
    """Without credentials Twilio is not asked."""
    return run


def test_equal(signed_in, held):
    """0, every field on both sides, and the events as a timeline."""
    done = signed_in("call", held)
    assert (done.code, done.err) == (0, "")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert lines[0] == f"{held} frozen, outbound-api"
    assert "status completed the same" in lines
    assert "price -0.01400 the same" in lines
    assert "from_number ***00 the same" in lines
    assert "Row and record agree." in lines
    timeline = lines[lines.index("Events") + 1 :]
    assert [line.split()[2] for line in timeline if line] == ["call.created"]


def test_what_differs_is_marked(signed_in, held, account):
    """1, a mark at each field, and what to do about it."""
    account.change(held, price="-0.05000")
    done = signed_in("call", held)
    assert done.code == 1
    marked = [" ".join(line.split()) for line in done.out.splitlines() if line.startswith("≠")]
    assert marked == ["≠ price -0.01400 -0.05000"]
    assert f"`reconcile call {held} --thaw`" in done.out


def test_its_recordings_are_shown(signed_in, held, account, conn):
    """1 while no event tells of one, and how to tell it now; --repair writes the event and fills the URL."""
    call = account.find(held)
    began = datetime.fromtimestamp(call.created, UTC)
    made = account.add_recording(began, began + timedelta(seconds=20), call_sid=held)
    done = signed_in("call", held)
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    (line,) = [line for line in lines if line.startswith(made.sid)]
    assert (done.code, line.split()[1], line.split()[-2:]) == (1, "ready", ["20", "no"])
    assert f"`reconcile call {held} --repair` does so now" in done.out
    done = signed_in("call", held, "--repair", "--json")
    (shown,) = done.result["recordings"]
    assert (done.code, shown["recording_sid"], shown["is_told"]) == (0, made.sid, True)
    assert {event["event"] for event in done.result["events"]} == {"call.created", "recording.ready"}
    assert conn.execute("SELECT recording_url FROM messages").fetchall() == [(made.media_url,)]
    assert signed_in("call", held).code == 0


def test_the_json_is_a_contract(signed_in, held, account):
    """Its keys; times in ISO form, money as text, numbers masked."""
    account.change(held, price="-0.05000")
    done = signed_in("call", held, "--json")
    result = done.result
    assert (done.code, list(result), result["differs"], result["thawed"]) == (1, SHAPE, True, False)
    fields = {field["field"]: field for field in result["fields"]}
    assert list(fields) == [*call_facts.COMPARED, "forwarded_from", "queue_time"]
    assert result["row"]["other_fields"] == result["twilio"]["other_fields"]
    assert fields["forwarded_from"]["ours"] == result["row"]["other_fields"]["forwarded_from"] == "***23"
    assert Decimal(fields["price"]["ours"]) == Decimal("-0.01400")
    assert (fields["price"]["twilio"], fields["price"]["differs"]) == ("-0.05000", True)
    assert [name for name, field in fields.items() if field["differs"]] == ["price"]
    assert result["row"]["from_number"] == result["twilio"]["from_number"] == "***00"
    assert result["row"]["start_time"] == result["twilio"]["start_time"] == fields["start_time"]["twilio"]
    assert list(result["events"][0]) == ["at", "event", "status", "source", "run_id", "recorded_at", "payload"]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_numbers_are_plain_if_told_so(signed_in, held, conn, options):
    """Otherwise all are masked, also in the payload of another writer's event."""
    conn.execute(
        "INSERT INTO call_events (call_sid, event_type, event_time, source, payload)"
        " VALUES (%s, 'x', now(), 'webhook', %s)",
        (held, Jsonb({"From": NUMBER})),
    )
    masked, plain = signed_in("call", held, *options), signed_in("call", held, *options, RECONCILER_LOG_PII="plain")
    assert NUMBER not in masked.out
    assert plain.out.count(NUMBER) >= 2


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_callers_name_and_a_forwarding_number_are_masked(signed_in, held, account, options):
    """Row, record and events mask them, unless RECONCILER_LOG_PII is plain."""
    account.change(held, fields={"caller_name": "EXAMPLE, ALICE", "forwarded_from": "+12025550188"})
    masked, plain = signed_in("call", held, *options), signed_in("call", held, *options, RECONCILER_LOG_PII="plain")
    assert masked.code == 1
    assert not any(private in masked.out for private in ("ALICE", "5550188"))
    assert all(private in plain.out for private in ("EXAMPLE, ALICE", "+12025550188"))


def test_a_frozen_row_of_an_older_version_lacks_fields(signed_in, held, conn):
    """1: it is no drift, and the next run that reads the call fills them, as does --repair without --thaw."""
    with conn.transaction():
        conn.execute("SELECT set_config('reconciler.thaw', 'on', true)")
        conn.execute("UPDATE messages SET other_fields = NULL")
    done = signed_in("call", held)
    assert (done.code, "--thaw" in done.out) == (1, False)
    assert f"`reconcile call {held} --repair`" in done.out
    events = conn.execute("SELECT count(*) FROM call_events").fetchone()
    repaired = signed_in("call", held, "--repair", "--json")
    assert (repaired.code, repaired.result["differs"], repaired.result["thawed"]) == (0, False, False)
    assert {change["field"]: change["before"] for change in repaired.result["changes"]} == {
        "forwarded_from": None, "queue_time": None,
    }  # fmt: skip
    assert repaired.result["row"]["sync_state"] == "frozen"
    assert conn.execute("SELECT count(*) FROM call_events").fetchone() == events


def test_without_credentials(nobody_signed_in, add_call):
    """Our side alone, saying why; 0."""
    call = add_call(1, account_sid=ACCOUNT)
    done = nobody_signed_in("call", call)
    assert done.code == 0
    assert "Twilio was not asked: TWILIO_ACCOUNT_SID is not set" in done.out
    assert "ringing" in done.out
    result = nobody_signed_in("call", call, "--json").result
    assert (result["twilio"], result["fields"], result["differs"]) == (None, [], None)
    unknown = nobody_signed_in("call", sid(2))
    assert unknown.code == 1
    assert "We have no such call, and Twilio was not asked." in unknown.out


def test_not_found_anywhere(signed_in):
    """1, in clear words."""
    done = signed_in("call", sid(404))
    assert done.code == 1
    assert f"Twilio has no such call in {ACCOUNT}." in done.out
    assert "We have no such call." in done.out


def test_known_to_twilio_alone(signed_in, account):
    """1, and how to bring it back."""
    call = account.call(datetime.now(UTC) - timedelta(hours=2))
    done = signed_in("call", call.sid)
    assert done.code == 1
    assert "only Twilio knows it" in done.out
    assert f"`reconcile call {call.sid} --repair` brings it back" in done.out


@pytest.mark.parametrize(("gone_at", "code"), [(None, 1), (datetime(2026, 6, 1, tzinfo=UTC), 0)])
def test_gone_at_twilio(signed_in, add_call, gone_at, code):
    """A difference until it is noted."""
    done = signed_in("call", add_call(1, account_sid=ACCOUNT, gone_at=gone_at))
    assert done.code == code
    assert "Twilio has no such call" in done.out


def test_an_account_that_cannot_be_seen(signed_in, add_call):
    """77 and no word of the call: there every call is unknown."""
    done = signed_in("call", add_call(1, account_sid="AC" + 32 * "9"))
    assert (done.code, done.out) == (77, "")
    assert "reconcile: Twilio" in done.err


@pytest.mark.parametrize("word", ["", "CA12", "AC" + 32 * "1", sid(1) + "0", "CA" + 32 * "g"])
def test_what_is_no_sid(run, word):
    """64, before anything is looked at."""
    done = run("call", word, DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert (done.code, done.out) == (64, "")
    assert "CA and 32 hexadecimal digits" in done.err


@pytest.mark.parametrize("own", ["local_1700000000_abc", "SM" + 32 * "0", "TJS" + 32 * "0", "vapi:0190-ab"])
@pytest.mark.parametrize("options", [(), ("--thaw",)])
def test_a_row_whose_sid_is_no_calls(signed_in, twilio, add_call, conn, own, options):
    """0, the row, and that Twilio cannot be asked; without such a row it is no SID at all."""
    unknown = signed_in("call", own)
    assert (unknown.code, unknown.out) == (64, "")
    assert "CA and 32 hexadecimal digits, and no row has this one" in unknown.err
    conn.execute("UPDATE messages SET twilio_sid = %s WHERE twilio_sid = %s", (own, add_call(1)))
    done = signed_in("call", own, *options)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(own)
    if not options:
        assert "Twilio cannot be asked" in done.out
        assert signed_in("call", own, "--json").result["differs"] is None
    assert 0 == len(twilio.requests)


def test_an_event_of_another_writer_is_harmless(run, add_call, conn):
    """Escape sequences, markup, and a payload nested deeper than JSON can be read."""
    call = add_call(1)
    for number, payload in enumerate(['{"a": "\\u001b[31m[/bold]"}', "[" * 3000 + "]" * 3000]):
        conn.execute(
            "INSERT INTO call_events (call_sid, event_type, event_time, source, payload)"
            " VALUES (%s, '[red]odd', 'infinity', 'webhook', %s)",
            (call, payload),
        )
        done = run("call", call)
        assert (done.code, "\x1b" in done.out) == (0, False)
        assert "[red]odd" in done.out
        assert len(run("call", call, "--json").result["events"]) == number + 1


def test_of_many_events_the_newest_are_shown(run, add_call, conn):
    """The Viewer once wrote one a minute."""
    call = add_call(1)
    conn.execute(
        "INSERT INTO call_events (call_sid, event_type, event_time, source, payload)"
        " SELECT %s, 'n' || n, to_timestamp(n), 'webhook', '{}' FROM generate_series(1, 300) AS n",
        (call,),
    )
    result = run("call", call, "--json").result
    assert [event["event"] for event in result["events"]] == [f"n{n}" for n in range(101, 301)]
    assert result["has_older_events"]
    assert "older ones than these 200 are not shown" in run("call", call).out


@pytest.mark.parametrize("width", [30, 60, 80])
def test_every_width_shows_everything(held, conn, account, twilio, paper, width):
    """Nothing is wider than the terminal; on 80 columns no SID is torn."""
    from reconciler.twilio.records import decode_page

    written = paper(width)
    body = b'{"calls": [%s], "next_page_uri": null}' % _json(account.record(held, twilio.clock.now()))
    page = decode_page(body, observed_at=twilio.clock.now())
    command._print(call_facts.Seen(call_facts.call(conn, held), ACCOUNT, page, None), masked=True)
    text = written.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert (text.count(held), text.count(ACCOUNT)) == (1, 1) or width < 80


def _json(record) -> bytes:
    import msgspec

    return msgspec.json.encode(record)


@pytest.mark.parametrize("options", [(), ("--thaw",)])
def test_looking_writes_nothing(signed_in, held, conn, options):
    """--thaw writes nothing either if the row is not frozen."""
    if options:
        conn.execute("SELECT set_config('reconciler.thaw', 'on', false)")
        conn.execute("UPDATE messages SET sync_state = 'active'")
    before = versions(conn), conn.execute("SELECT count(*) FROM call_events").fetchone()
    done = signed_in("call", held, *options)
    assert done.code == 0
    assert ("It is not frozen: there is nothing to thaw." in done.out) is bool(options)
    assert (versions(conn), conn.execute("SELECT count(*) FROM call_events").fetchone()) == before
    assert conn.execute("SELECT 1 FROM sync_state WHERE job_name = 'call'").fetchall() == []


def test_thawed_after_drift(signed_in, held, account, conn, events, not_equal):
    """The drift was reported and nothing changed; thawed, the row is what Twilio says, and frozen again."""
    account.change(held, price="-0.05000", status="failed")
    drifting = signed_in("--since", "1d")
    assert drifting.code == 1
    assert events(held)[-1][0] == "call.frozen_drift"
    assert len(not_equal()) == 2 + 1  # status, price, duration
    done = signed_in("call", held, "--thaw", "--json")
    assert (done.code, done.result["differs"], done.result["thawed"]) == (0, False, True)
    assert not_equal() == []
    assert conn.execute("SELECT sync_state FROM messages").fetchone() == ("frozen",)
    assert events(held)[-3:] == [
        ("call.thawed", "completed", "reconcile_call"),
        ("call.corrected", "failed", "reconcile_call"),
        ("call.frozen", "failed", "reconcile_call"),
    ]
    assert [event["event"] for event in done.result["events"]][-2:] == ["call.thawed", "call.frozen"]
    assert {"call.thawed", "job.finished"} == {line["event"] for line in done.logs}
    # Neither a backfill nor a look at the call finds anything left to do.
    assert signed_in("--since", "1d").code == 0
    assert signed_in("call", held).code == 0


def test_a_price_that_came_too_late(signed_in, account, conn, events, not_equal):
    """Frozen by its deadline without a price; thawed, it has one and the event says which fields came."""
    call = account.call(datetime.now(UTC) - timedelta(days=2), priced_after=None)
    assert signed_in("--since", "3d").code == 0
    assert conn.execute("SELECT sync_state, price FROM messages").fetchone() == ("frozen", None)
    account.change(call.sid, priced=call.ended)
    assert signed_in("call", call.sid).code == 1
    assert signed_in("call", call.sid, "--thaw").code == 0
    assert not_equal() == []
    assert [event for event, *_ in events(call.sid)] == [
        "call.created",
        "call.thawed",
        "call.enriched",
        "call.frozen",
    ]


def test_the_record_wins_whatever_the_clocks_say(signed_in, held, account, conn, not_equal):
    """The row was observed in the future, by Twilio's clock."""
    conn.execute("SELECT set_config('reconciler.thaw', 'on', false)")
    conn.execute("UPDATE messages SET observed_at = now() + interval '1 day'")
    account.change(held, price="-0.05000")
    assert signed_in("call", held, "--thaw").code == 0
    assert not_equal() == []


def test_thawed_three_times(signed_in, held, account, twilio, events, not_equal):
    """A value that returns to an earlier one drifts, is reported and thawed again; each drift is one event."""
    for price in ("-0.05000", "-0.01400", "-0.05000"):
        account.change(held, price=price)
        for is_news in (True, False):
            twilio.clock.advance(timedelta(seconds=2))
            drifting = signed_in("--since", "1d")
            assert drifting.code == 1
            assert ("call.frozen_drift" in {line["event"] for line in drifting.logs}) is is_news
        assert signed_in("call", held, "--thaw").code == 0
        assert not_equal() == []
    told = [event for event, *_ in events(held)]
    counts = [told.count(f"call.{kind}") for kind in ("created", "frozen_drift", "thawed", "enriched", "frozen")]
    assert counts == [1, 3, 3, 3, 3]


def test_without_a_record_nothing_is_thawed(signed_in, held, account, conn):
    """Twilio has deleted it: the row stays frozen, and it says so."""
    account.delete(held, datetime.now(UTC) - timedelta(minutes=1))
    before = versions(conn)
    done = signed_in("call", held, "--thaw")
    assert done.code == 1
    assert f"Twilio has no such call in {ACCOUNT}. Nothing was changed." in done.out
    assert versions(conn) == before


def test_a_thaw_that_cannot_ask_twilio_changes_nothing(run, held, conn, monkeypatch):
    """Missing credentials are 78, wrong ones 77."""
    before = versions(conn)
    monkeypatch.delenv("TWILIO_AUTH_TOKEN")
    assert run("call", held, "--thaw").code == 78
    assert run("call", held, "--thaw", TWILIO_AUTH_TOKEN="another-token").code == 77
    assert versions(conn) == before


def test_a_thaw_dies_whole(signed_in, held, account, conn, monkeypatch):
    """If the merge fails, the row is still frozen and no event reports a thaw."""
    from reconciler.database.transaction import Transaction

    account.change(held, price="-0.05000")
    before = versions(conn)

    def fail(*_args, **_options):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "apply", fail)
        assert signed_in("call", held, "--thaw").code == 70
    assert versions(conn) == before
    assert conn.execute("SELECT 1 FROM call_events WHERE event_type = 'call.thawed'").fetchall() == []


def test_two_people_at_once(signed_in, held, connect, database_url):
    """The second one is told to try again."""
    assert locks.try_advisory_lock(connect(database_url), str(REPAIR))
    done = signed_in("call", held, "--thaw")
    assert (done.code, done.out) == (75, "")
    assert "another process is running call" in done.err


def test_the_door_closes_behind_the_thaw(signed_in, held, account, conn, monkeypatch):
    """A later merge in the same transaction meets the guard of frozen rows again."""
    from reconciler.database.transaction import Transaction

    seen = []
    apply = Transaction.apply

    def look(self, *args, **options):
        seen.append(self._conn.execute("SELECT current_setting('reconciler.thaw')").fetchone())
        return apply(self, *args, **options)

    account.change(held, price="-0.05000")
    monkeypatch.setattr(Transaction, "apply", look)
    assert signed_in("call", held, "--thaw").code == 0
    assert seen == [("off",)]

"""Dead letters read again, and the commands that show them."""

from __future__ import annotations

import json

import pytest

from reconciler.cli.main import main
from reconciler.database.store import Store
from reconciler.database.transaction import Origin
from reconciler.model import DeadLetter
from reconciler.twilio.records import dead_letter_of
from tests.harness.contexts import run_replay
from tests.harness.names import ACCOUNT, NOW, sid
from tests.harness.rows import T0

from .payloads import recording, webhook

RECORD = {
    "sid": sid(9),
    "account_sid": ACCOUNT,
    "status": "completed",
    "from": "+15005550100",
    "to": "+15005550101",
    "direction": "inbound",
    "duration": "60",
    "price": "-0.00850",
    "start_time": "Wed, 10 Jun 2026 11:00:00 +0000",
    "end_time": "Wed, 10 Jun 2026 11:01:00 +0000",
}
DEAD = {"processing_status": "dead_letter", "error": "an older version could not read it"}


@pytest.fixture
def again(store):
    """Read dead letters again, those named or all."""

    def run(*ids: int, **more):
        return run_replay(store, clock=lambda: NOW, ids=list(ids) or None, **more)

    return run


def _keep(store: Store, letter: DeadLetter) -> None:
    store.commit_page([], origin=Origin("reconcile_backfill", "run"), now=T0, dead_letters=[letter])


def test_what_can_be_read_today_is_merged_and_completed(again, put, calls, state, conn):
    """Webhooks, recordings and REST records alike; the reason goes."""
    ids = [put(webhook(), **DEAD), put(recording(), event_type="recording-complete", **DEAD)]
    worked = again()
    assert (worked.rows, worked.completed, worked.exit_code) == (2, 2, 0)
    assert calls() == {sid(1): "completed"}
    assert [state(id_) for id_ in ids] == ["completed"] * 2
    assert conn.execute("SELECT DISTINCT error, processed_at FROM twilio_webhook_inbox").fetchall() == [(None, NOW)]


def test_a_rest_record_is_read_again_as_one(again, store, work, conn):
    """It is kept as text, is never claimed by the job, and a price in it stays exact."""
    _keep(store, dead_letter_of(RECORD, reason="an older version could not read it"))
    assert work().rows == 0
    assert again().completed == 1
    found = conn.execute("SELECT status, price::text, sync_state, observed_via FROM messages").fetchone()
    assert found == ("completed", "-0.00850", "frozen", "rest")


def test_what_still_cannot_be_read_stays(again, store, put, reason):
    """The row gets the new reason."""
    _keep(store, dead_letter_of({**RECORD, "status": "exploded"}, reason="an older version"))
    bad = put(webhook("exploded"), **DEAD)
    worked = again()
    assert (worked.rows, worked.completed, worked.dead_letters, worked.exit_code) == (2, 0, 2, 1)
    assert reason(bad) == "unknown status 'exploded'"


def test_only_those_named_are_read(again, put, state):
    """Batch by batch."""
    ids = [put(webhook(call=n), **DEAD) for n in range(5)]
    assert again(*ids[1:4], batch=2).rows == 3
    assert [state(id_) for id_ in ids] == ["dead_letter", "completed", "completed", "completed", "dead_letter"]


def test_all_are_read_once_in_batches(again, put):
    """Letters that stay are not read again and again."""
    for n in range(7):
        put(webhook("exploded" if n % 2 else "completed", call=n), **DEAD)
    worked = again(batch=2)
    assert (worked.rows, worked.dead_letters) == (7, 3)


def test_an_old_letter_changes_nothing_that_is_newer(again, put, merge_final, conn, events):
    """A replay follows the same rules: a frozen row stays as it is."""
    put(webhook("ringing", call=9), **DEAD)
    before = conn.execute("SELECT xmin::text, status FROM messages").fetchall()
    again()
    assert conn.execute("SELECT xmin::text, status FROM messages").fetchall() == before
    assert events(9)[-1] == ("call.status_changed", "ringing")


@pytest.fixture
def merge_final(store):
    from reconciler.twilio.records import read_record

    store.commit_page([read_record(RECORD, observed_at=NOW)], origin=Origin("reconcile_backfill", "run"), now=NOW)


@pytest.fixture
def run(monkeypatch, capsys, database_url):
    """`reconcile inbox …`: its exit code and what it printed."""
    monkeypatch.setenv("DATABASE_URL", database_url)

    def command(*words: str) -> tuple[int, str, str]:
        try:
            code = main(["inbox", *words])
        except SystemExit as exc:
            code = int(exc.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


def test_list_shows_the_newest_first_and_how_many_there_are(run, put):
    """Fifty of them."""
    for n in range(52):
        put(webhook(call=n), **DEAD)
    put(webhook())
    code, out, _ = run("list", "--json")
    listed = json.loads(out)
    assert (code, listed["total"], len(listed["dead_letters"])) == (0, 52, 50)
    numbers = [letter["id"] for letter in listed["dead_letters"]]
    assert numbers == sorted(numbers, reverse=True)
    assert set(listed["dead_letters"][0]) == {"id", "received_at", "source", "event_type", "call_sid", "reason"}
    assert listed["dead_letters"][0]["reason"] == DEAD["error"]
    assert "newest 50 of 52" in run("list")[1]


def test_list_is_safe_to_look_at(run, put):
    """A stranger's reason holds numbers, escape sequences and what a table takes for markup."""
    put(webhook(), **{**DEAD, "error": "from +15005550100 \x1b[31m[/bold]"}, event_type="[red]odd")
    _, out, _ = run("list")
    assert "+15005550100" not in out
    assert "\x1b" not in out
    assert "[/bold]" in out
    assert "[red]odd" in out


def test_an_empty_list_says_so(run):
    """The text says so, and the JSON."""
    assert run("list")[:2] == (0, "There are no dead letters.\n")
    assert json.loads(run("list", "--json")[1]) == {"dead_letters": [], "total": 0}


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_show_masks_numbers_unless_told(run, put, monkeypatch, options):
    """It masks each value of the payload, and the record of a REST letter."""
    id_ = put({"From": "sip:alice@example.com", "record": json.dumps(RECORD), "list": [{"To": "+15005550101"}]}, **DEAD)
    code, out, _ = run("show", str(id_), *options)
    assert code == 0
    assert not any(number in out for number in ("5005550100", "5005550101", "alice"))
    assert sid(9) in out
    if options:
        assert json.loads(out)["payload"]["From"] == "sip:***"
    monkeypatch.setenv("RECONCILER_LOG_PII", "plain")
    assert "+15005550101" in run("show", str(id_), *options)[1]


def test_replay_ends_in_1_if_one_stays(run, put):
    """It prints the counts."""
    good, bad = put(webhook(), **DEAD), put(webhook("exploded"), **DEAD)
    code, out, err = run("replay", str(good), "--json")
    assert (code, json.loads(out)) == (0, {"replayed": 1, "completed": 1, "dead_letters": 0, "put_off": 0})
    code, out, err = run("replay", "--all")
    assert (code, out) == (1, "0 completed, 1 could still not be read.\n")
    assert "record.dead_lettered" in err
    assert run("replay", str(bad), str(bad), "--json")[0] == 1


def test_replay_counts_what_another_session_locks(run, put, conn, connect, database_url):
    """It is neither completed nor a dead letter: the inbox job tries it again."""
    run("replay", str(put(webhook("ringing"), **DEAD)))
    locked = put(webhook(), **DEAD)
    holder = connect(database_url)
    with holder.transaction():
        holder.execute("SELECT FROM messages FOR UPDATE")
        _, out, _ = run("replay", str(locked), "--json")
    assert json.loads(out) == {"replayed": 1, "completed": 0, "dead_letters": 0, "put_off": 1}
    assert conn.execute("SELECT processing_status FROM twilio_webhook_inbox WHERE id = %s", (locked,)).fetchone() == (
        "failed",
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "required"),
        (("replay",), "say which"),
        (("replay", "1", "--all"), "say which"),
        (("replay", "7"), "no dead letters: 7"),
        (("replay", "-7"), "not the number of a row"),
        (("show", "7"), "no row 7"),
        (("show", "x"), "not the number of a row"),
        (("show", "9" * 19), "not the number of a row"),
        (("show",), "required"),
    ],
)
def test_what_cannot_be_meant_is_refused(run, words, complaint):
    """The exit code is 64, and nothing changes."""
    code, out, err = run(*words)
    assert (code, out) == (64, "")
    assert complaint in err

"""The recordings job, and the recordings of cold and backfill: each is told once, whichever source is first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import pytest

from reconciler.database.store import Store
from reconciler.errors import ExitCode, Refused
from reconciler.jobs.backfill import Window
from reconciler.simulator import Callbacks, Fault, Switches, listing, viewer
from reconciler.simulator.messages import Request
from reconciler.simulator.recordings import Recording
from reconciler.simulator.webhooks import Channel, webhooks
from reconciler.sync.counts import Outcome
from reconciler.twilio.permissions import HINT
from tests.harness.contexts import run_backfill, run_inbox, run_replay
from tests.harness.names import ACCOUNT, NOW, SUBACCOUNT, TOKEN
from tests.harness.world import MINUTE, World, day

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LISTING = "Recordings.json?DateCreated%3E="
CONFERENCE = "CF" + 32 * "0"
URL = "https://api.twilio.com/2010-04-01/Accounts/{}/Recordings/{}"


def listings(world: World) -> list[str]:
    """Return the listings of recordings that the last run asked for."""
    return [question for question in world.asked() if question.startswith("Recordings")]


def all_recordings(world: World) -> list[Recording]:
    """Return the recordings that Twilio has, ready by now."""
    from reconciler.simulator.filters import Span

    return [r for r in world.account.recordings_between(Span()) if r.ready <= world.clock.now().timestamp()]


def recorded(world: World, count: int, **changes: Any) -> list[Recording]:
    """Calls that ended some hours ago, each with one recording."""
    made = []
    for number in range(count):
        began = NOW - 3 * HOUR + number * timedelta(seconds=3)
        call = world.account.call(began, talks_for=60)
        made.append(world.account.add_recording(began, began + MINUTE, call_sid=call.sid, **changes))
    return made


def look_first(world: World) -> None:
    """Have this installation look after the account since a day ago."""
    world.clock.set(NOW - DAY)
    world.hot()
    world.clock.set(NOW)


def urls(world: World) -> dict[str, str | None]:
    """Return recording_url by call."""
    return dict(world.conn.execute("SELECT twilio_sid, recording_url FROM messages").fetchall())


def events(world: World) -> list[Any]:
    """Return the events of recordings."""
    rows = world.conn.execute(
        "SELECT to_jsonb(e) FROM call_events AS e WHERE event_type LIKE 'recording.%' ORDER BY id"
    )
    return [row[0] for row in rows]


@pytest.fixture
def quiet(world: World) -> World:
    """An account whose calls have no recordings of their own."""
    world.account.callbacks = Callbacks(recorded=0)
    return world


# Events of recordings


def test_a_recording_whose_callback_was_lost_comes_back(quiet: World) -> None:
    """One event, with the callback's key and payload, and the URL in the row of its call."""
    look_first(quiet)
    (made,) = recorded(quiet, 1)
    quiet.know()
    counts = quiet.recordings()
    assert (counts.recordings_seen, counts.recordings_told, counts.recordings_deleted) == (1, 1, 0)
    (event,) = events(quiet)
    assert (event["call_sid"], event["event_type"], event["source"]) == (
        made.call_sid, "recording.ready", "reconcile_recordings",
    )  # fmt: skip
    assert event["dedupe_key"] == f"{made.call_sid}:recording:{made.sid}"
    assert datetime.fromisoformat(event["event_time"]).timestamp() == made.ready
    url = URL.format(ACCOUNT, made.sid)
    assert event["payload"] == {
        "recording_sid": made.sid, "recording_url": url, "duration": "60", "channels": "1",
        "source": "StartCallRecordingAPI", "start_time": "Wed, 10 Jun 2026 09:00:00 +0000",
    }  # fmt: skip
    assert urls(quiet) == {made.call_sid: url}
    assert quiet.said("recording.recovered") == [
        {"call_sid": made.call_sid, "recording_sid": made.sid, "late_seconds": 3 * 3600 - 63},
    ]


def test_what_was_ready_before_the_first_look_is_imported(quiet: World) -> None:
    """Its event says so; it counts as no loss, and is not named."""
    (made,) = recorded(quiet, 1)
    counts = quiet.recordings()
    assert (counts.recordings_seen, counts.recordings_told, quiet.said("recording.recovered")) == (1, 0, [])
    assert [event["payload"]["imported"] for event in events(quiet)] == [True]
    assert quiet.told() == [made.sid]


def test_what_a_callback_told_is_not_told_again(quiet: World) -> None:
    """The listing may follow the callback, or the callback the listing. Both payloads are the same."""
    look_first(quiet)
    first, second = recorded(quiet, 2)
    quiet.know()
    deliver(quiet, [first])
    inbox(quiet)
    quiet.recordings()
    deliver(quiet, [second])
    inbox(quiet)
    quiet.recordings()
    found = {event["payload"]["recording_sid"]: event for event in events(quiet)}
    assert {sid: event["source"] for sid, event in found.items()} == {
        first.sid: "reconcile_inbox", second.sid: "reconcile_recordings",
    }  # fmt: skip
    by_callback, by_listing = found[first.sid]["payload"], found[second.sid]["payload"]
    assert by_callback.keys() == by_listing.keys()
    assert quiet.told() == sorted([first.sid, second.sid])


def deliver(world: World, made: Iterable[Recording]) -> None:
    """Have the callbacks of these recordings arrive; nobody works them off."""
    wanted = {recording.sid for recording in made}
    sent = [
        webhook
        for webhook in webhooks(world.account, NOW - DAY, world.clock.now())
        if webhook.kind == "recording" and webhook.params["RecordingSid"] in wanted
    ]
    assert len(sent) == len(wanted)
    viewer.receive(world.conn, Channel(seed=1).deliver(sent))


def inbox(world: World) -> None:
    """Work off what is in the inbox."""
    with Store(world.database_url) as store:
        run_inbox(store, clock=lambda: world.now() + HOUR, grace=timedelta(0))


@pytest.mark.parametrize("first", ["listing", "callback"])
def test_conferences_and_trunks_are_told_once(world: World, first: str) -> None:
    """A conference's recording names the conference, by both sources; a trunk call's names the call."""
    world.account.callbacks = Callbacks(recorded=1, recorded_trunks=1, conferences=0.5)
    world.account.generate(60, NOW - 5 * HOUR, NOW - HOUR, trunk_share=0.3)
    world.know()
    steps: list[Callable[[], object]] = [
        lambda: deliver(world, all_recordings(world)),
        lambda: inbox(world),
        world.recordings,
    ]
    for step in steps if first == "callback" else [steps[2], *steps[:2]]:
        step()
    made = all_recordings(world)
    assert {"Conference", "Trunking"} <= {recording.source for recording in made}
    subjects = {event["payload"]["recording_sid"]: event["call_sid"] for event in events(world)}
    assert subjects == {recording.sid: recording.conference_sid or recording.call_sid for recording in made}
    assert world.told() == sorted(recording.sid for recording in made)
    of_calls = {recording.call_sid for recording in made if recording.conference_sid is None}
    assert {sid for sid, url in urls(world).items() if url} == of_calls


def test_an_event_that_the_viewer_wrote_counts(quiet: World) -> None:
    """It has no key, and a payload of its own."""
    (made,) = recorded(quiet, 1)
    quiet.conn.execute(
        "INSERT INTO call_events (call_sid, event_type, event_time, source, payload) VALUES (%s, %s, %s, %s, %s)",
        (made.call_sid, "recording.ready", NOW, "webhook", json.dumps({"RecordingSid": made.sid})),
    )
    assert quiet.recordings().recordings_told == 0
    assert len(events(quiet)) == 1


def test_a_url_of_the_viewers_stays(quiet: World) -> None:
    """Where there is one; an empty one is none. A frozen row takes the URL, and nothing else of it changes."""
    kept, empty = recorded(quiet, 2)
    quiet.know()
    quiet.conn.execute("UPDATE messages SET recording_url = 'mine' WHERE twilio_sid = %s", (kept.call_sid,))
    quiet.conn.execute("UPDATE messages SET recording_url = '' WHERE twilio_sid = %s", (empty.call_sid,))
    before = quiet.row(empty.call_sid or "")
    assert before["sync_state"] == "frozen"
    quiet.recordings()
    assert urls(quiet) == {kept.call_sid: "mine", empty.call_sid: URL.format(ACCOUNT, empty.sid)}
    after = quiet.row(empty.call_sid or "")
    assert {name for name in after if after[name] != before[name]} == {"recording_url", "updated_at"}


def test_a_second_run_writes_nothing(quiet: World) -> None:
    """It writes no row and no event."""
    recorded(quiet, 3)
    quiet.know()
    quiet.recordings()
    rows = quiet.conn.execute("SELECT twilio_sid, xmin::text FROM messages ORDER BY 1").fetchall()
    quiet.clock.advance(MINUTE)
    quiet.recordings()
    assert quiet.conn.execute("SELECT twilio_sid, xmin::text FROM messages ORDER BY 1").fetchall() == rows
    assert len(events(quiet)) == 3


def test_a_deleted_recording_is_marked_once(quiet: World) -> None:
    """An event marks it; the row keeps the URL. If nobody told of it before, it is never ready."""
    told, untold = recorded(quiet, 2)
    quiet.know()
    quiet.account.delete_recording(untold.sid, NOW)
    assert quiet.recordings().recordings_deleted == 1
    quiet.account.delete_recording(told.sid, NOW)
    quiet.clock.advance(MINUTE)
    assert quiet.cold().recordings_deleted == 1
    quiet.clock.advance(MINUTE)
    quiet.cold()
    assert quiet.told() == [told.sid]
    assert quiet.told("recording.deleted") == sorted([told.sid, untold.sid])
    assert urls(quiet) == {told.call_sid: URL.format(ACCOUNT, told.sid), untold.call_sid: None}


@pytest.mark.parametrize("status", ["absent", "processing"])
def test_what_is_not_ready_is_not_told(quiet: World, status: str) -> None:
    """No row gets its URL."""
    recorded(quiet, 1, status=status)
    quiet.know()
    counts = quiet.recordings()
    assert (counts.recordings_seen, counts.recordings_told, events(quiet)) == (1, 0, [])
    assert set(urls(quiet).values()) == {None}


def test_a_long_recording_is_found_although_it_is_listed_from_its_start(quiet: World) -> None:
    """Twilio may date it by its start, before the place that the job has read to."""
    quiet.twilio.switches = Switches(recording_created="start")
    call = quiet.account.call(NOW - HOUR, talks_for=5 * 3600)
    made = quiet.account.add_recording(NOW - HOUR, NOW + 4 * HOUR, call_sid=call.sid)
    for _ in range(22):
        quiet.recordings()
        quiet.clock.advance(15 * MINUTE)
    assert quiet.told() == [made.sid]
    quiet.recordings()
    quiet.clock.advance(15 * MINUTE)
    quiet.recordings()
    assert "T17%3A20" in listings(quiet)[0]  # it no longer reaches back to the start


# What it costs


def test_an_account_without_recordings_is_asked_once(quiet: World) -> None:
    """The first run asks; then only cold does, once a sweep."""
    quiet.account.call(NOW - 3 * HOUR)
    quiet.recordings()
    assert len(quiet.asked()) == 1
    for _ in range(5):
        quiet.clock.advance(15 * MINUTE)
        counts = quiet.recordings()
        assert (quiet.asked(), counts.requests, counts.outcome) == ([], 0, Outcome.SUCCEEDED)
    quiet.cold()
    assert len(listings(quiet)) == 1


def test_once_there_are_recordings_each_run_asks_once(quiet: World) -> None:
    """Runs ask from the first URL on, whichever job filled it. They stop a week after the last one."""
    quiet.recordings()
    (made,) = recorded(quiet, 1)
    quiet.know()
    deliver(quiet, [made])
    inbox(quiet)
    quiet.clock.advance(15 * MINUTE)
    for _ in range(3):
        quiet.recordings()
        assert len(quiet.asked()) == len(listings(quiet)) == 1
        quiet.clock.advance(15 * MINUTE)
    quiet.clock.advance(8 * DAY)
    quiet.recordings()
    assert quiet.asked() == []


def test_cold_tells_the_job_of_recordings_of_conferences_alone(quiet: World) -> None:
    """Their events name no call of the account; the proofs of days do."""
    quiet.recordings()
    quiet.account.add_recording(day(1), day(1) + MINUTE, conference_sid=CONFERENCE)
    quiet.cold()
    quiet.clock.advance(HOUR)
    quiet.recordings()
    assert len(listings(quiet)) == 1


def test_no_other_account_makes_an_account_be_asked(quiet: World) -> None:
    """Only an account's own calls with recordings make the job ask."""
    quiet.account.add_subaccount(SUBACCOUNT, TOKEN)
    quiet.recordings(SUBACCOUNT)
    recorded(quiet, 1)
    quiet.know()
    quiet.recordings()
    quiet.clock.advance(15 * MINUTE)
    quiet.recordings(SUBACCOUNT)
    assert quiet.asked() == []


# Faults


def test_a_stopped_listing_goes_on_where_it_was(quiet: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job asks for no page twice, lists new recordings too, and tells each recording once."""
    monkeypatch.setattr(listing, "MAX_PAGE_SIZE", 5)
    quiet.page_size = 5
    recorded(quiet, 1)
    quiet.recordings()
    made = [quiet.account.add_recording(NOW + MINUTE, NOW + n * MINUTE, conference_sid=CONFERENCE) for n in range(12)]
    quiet.clock.advance(15 * MINUTE)
    quiet.stop_after_commits(2)
    assert quiet.recordings().outcome is Outcome.INTERRUPTED
    asked = listings(quiet)
    quiet.go_on()
    made.append(quiet.account.add_recording(NOW, NOW + 16 * MINUTE, conference_sid=CONFERENCE))
    quiet.clock.advance(15 * MINUTE)
    quiet.recordings()
    again = listings(quiet)
    assert (len(asked), len(again)) == (2, 3)
    assert not set(asked) & set(again)
    assert {recording.sid for recording in made} < set(quiet.told())
    assert len(set(quiet.told())) == len(quiet.told()) == 14


def test_many_recordings_are_read_in_parts(quiet: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part has whole days; several are read at once. Each recording is told once, and the days are proven."""
    monkeypatch.setattr(listing, "MAX_PAGE_SIZE", 5)
    quiet.page_size = 5
    for number in range(120):
        began = day(3) + number * timedelta(minutes=37)
        call = quiet.account.call(began, talks_for=60)
        quiet.account.add_recording(began, began + MINUTE, call_sid=call.sid)
    counts = quiet.cold()
    parts = {question.partition("&PageSize")[0] for question in listings(quiet) if question.startswith(LISTING)}
    assert len(parts) == 5  # the window, and its four days
    assert (counts.recordings_seen, len(set(quiet.told())), len(quiet.told())) == (120, 120, 120)
    proofs = quiet.proofs().values()
    assert all(proof["recordings_listed"] == proof["recordings_held"] > 30 for proof in proofs)


def test_a_record_that_cannot_be_read_is_kept(quiet: World) -> None:
    """It becomes a dead letter, and the others are told. A replay tells it once the code can read it."""
    made = recorded(quiet, 3)
    quiet.know()
    quiet.twilio.faults.next(Fault.broken_record("unknown_status", index=1))
    assert quiet.recordings().dead_letters == 1
    assert len(quiet.told()) == 2
    ((reason, call_sid, payload),) = quiet.conn.execute(
        "SELECT error, call_sid, payload ->> 'record' FROM twilio_webhook_inbox"
    ).fetchall()
    assert (reason.startswith("unknown status"), call_sid) == (True, made[1].call_sid)
    mended = json.dumps(json.loads(payload) | {"status": "completed"})
    quiet.conn.execute("UPDATE twilio_webhook_inbox SET payload = jsonb_build_object('record', %s::text)", (mended,))
    with Store(quiet.database_url) as store:
        run_replay(store, clock=quiet.now)
    assert quiet.told() == sorted(recording.sid for recording in made)


def test_a_row_that_another_session_locks_is_filled_later(quiet: World) -> None:
    """The other recordings do not wait for it."""
    made = recorded(quiet, 3)
    quiet.know()
    other = quiet.conn
    with Store(quiet.database_url) as store, other.transaction(force_rollback=True):
        other.execute("SELECT FROM messages WHERE twilio_sid = %s FOR UPDATE", (made[1].call_sid,))
        quiet.recordings()
        del store
    assert {sid for sid, url in urls(quiet).items() if url} == {made[0].call_sid, made[2].call_sid}
    inbox(quiet)
    assert {sid for sid, url in urls(quiet).items() if url} == {recording.call_sid for recording in made}
    assert quiet.told() == sorted(recording.sid for recording in made)


def test_a_database_that_refuses_one_event_loses_no_other(quiet: World) -> None:
    """The one becomes a dead letter with the reason; cold says that the day is not complete."""
    made = recorded(quiet, 3)
    quiet.clock.advance(DAY)
    quiet.conn.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$"
    )
    quiet.conn.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON call_events FOR EACH ROW"
        f" WHEN (NEW.payload ->> 'recording_sid' = '{made[1].sid}') EXECUTE FUNCTION refuse()".encode()
    )
    counts = quiet.cold()
    assert quiet.told() == sorted([made[0].sid, made[2].sid])
    assert counts.dead_letters == 1
    (proof,) = [proof for proof in quiet.proofs().values() if proof["recordings_listed"]]
    assert (proof["recordings_listed"], proof["recordings_held"]) == (3, 2)
    assert (proof["is_complete"], proof["differences"]["recordings_not_told"]) == (False, 1)
    assert (counts.days_incomplete, counts.days_verified, counts.exit_code) == (1, 2, ExitCode.UNRECONCILED)
    assert [line["differences"] for line in quiet.said("day.incomplete")] == [proof["differences"]]


def shrink(world: World, made: Iterable[Recording]) -> None:
    """Let Twilio list none of these any more, not as deleted ones either."""
    world.account.deleted_recordings.update({each.sid: 0 for each in made})


def of_recordings_listed(world: World) -> list[tuple[Any, ...]]:
    """The proofs of days with recordings: the number listed, is it complete, and by how many the list shrank."""
    return [
        (proof["recordings_listed"], proof["is_complete"], proof["differences"].get("recordings_shrunk"))
        for proof in world.proofs().values()
        if proof["recordings_listed"] is not None
        and (proof["recordings_listed"] or "recordings_shrunk" in proof["differences"])
    ]


def test_a_list_of_recordings_that_is_shorter_than_before_is_not_accepted_at_once(quiet: World) -> None:
    """A wrong region answers with an empty one. The day is not complete, and nothing is called deleted."""
    made = recorded(quiet, 3)
    quiet.clock.advance(DAY)
    quiet.cold()
    assert of_recordings_listed(quiet) == [(3, True, None)]
    quiet.clock.advance(HOUR)
    quiet.twilio.faults.when(of_recordings, Fault.nothing_found())
    for _ in range(2):  # the same day again confirms nothing
        counts = quiet.cold()
        assert of_recordings_listed(quiet) == [(0, False, 3)]
        assert (counts.days_incomplete, counts.exit_code) == (1, ExitCode.UNRECONCILED)
    assert quiet.told("recording.deleted") == []
    quiet.twilio.faults.clear()
    counts = quiet.cold()
    assert (counts.days_incomplete, counts.exit_code) == (0, ExitCode.DONE)
    assert of_recordings_listed(quiet) == [(3, True, None)]
    assert "fewer_recordings" not in quiet.cursor("cold")
    assert quiet.told() == sorted(each.sid for each in made)


def test_a_day_whose_recordings_differed_stays_incomplete_until_they_are_read(
    quiet: World, quick_retries: None
) -> None:
    """A sweep proves the calls and cannot list the recordings. The next one lists them, and the day is complete."""
    recorded(quiet, 3)
    quiet.clock.advance(DAY)
    quiet.cold()
    quiet.twilio.faults.when(of_recordings, Fault.nothing_found())
    quiet.cold()
    assert of_recordings_listed(quiet) == [(0, False, 3)]
    quiet.twilio.faults.clear()
    quiet.twilio.faults.when(of_recordings, Fault.server_error(503))
    for _ in range(2):
        quiet.clock.advance(DAY)  # a sweep of its own
        counts = quiet.cold()
        assert (counts.outcome, counts.days_incomplete) == (Outcome.FAILED, 1)
        assert of_recordings_listed(quiet) == [(0, False, 3)]
        assert quiet.said("day.incomplete")[-1]["differences"] == {"recordings_shrunk": 3, "recordings_unread": 1}
    told = len(quiet.said("day.incomplete"))
    quiet.twilio.faults.clear()
    counts = quiet.cold()
    assert of_recordings_listed(quiet) == [(3, True, None)]
    assert (counts.days_incomplete, len(quiet.said("day.incomplete"))) == (0, told)
    assert not any("recordings_unread" in proof["differences"] for proof in quiet.proofs().values())


def test_recordings_do_not_make_a_day_complete_whose_calls_are_not(quiet: World, quick_retries: None) -> None:
    """Its calls shrank while its recordings could not be read; then the recordings are complete, and the calls not."""
    recorded(quiet, 3)
    quiet.clock.advance(DAY)
    quiet.cold()
    quiet.twilio.faults.when(of_recordings, Fault.nothing_found())
    quiet.cold()
    quiet.twilio.faults.clear()
    quiet.clock.advance(DAY)
    quiet.twilio.faults.when(lambda request: "/Calls" in request.path, Fault.nothing_found())
    quiet.twilio.faults.when(of_recordings, Fault.server_error(503))
    quiet.cold()
    quiet.twilio.faults.clear()
    quiet.twilio.faults.when(lambda request: "/Calls" in request.path, Fault.nothing_found())
    quiet.cold()
    (proof,) = [proof for proof in quiet.proofs().values() if proof["recordings_listed"]]
    assert (proof["is_complete"], sorted(proof["differences"])) == (False, ["shrunk"])


def test_fewer_recordings_are_accepted_when_another_day_lists_the_same(quiet: World) -> None:
    """The rule is that for calls. Other recordings in their place confirm nothing."""
    made = recorded(quiet, 4)
    quiet.clock.advance(DAY)
    quiet.cold()
    shrink(quiet, made[:1])
    quiet.cold()
    assert of_recordings_listed(quiet) == [(3, False, 1)]
    quiet.clock.advance(DAY)
    shrink(quiet, made[1:2])
    quiet.cold()
    assert of_recordings_listed(quiet) == [(2, False, 2)]
    quiet.clock.advance(DAY)
    quiet.cold()
    assert of_recordings_listed(quiet) == [(2, True, None)]
    assert "fewer_recordings" not in quiet.cursor("cold")


def test_credentials_that_may_not_read_recordings_are_no_failure(quiet: World) -> None:
    """It is said, and asked again a day later; cold proves the calls all the same, and backfill brings them."""
    recorded(quiet, 1)
    quiet.hot()

    def refuse() -> None:
        quiet.twilio.faults.clear()
        quiet.twilio.faults.when(lambda request: "/Recordings" in request.path, Fault.forbidden(70051))

    refuse()
    counts = quiet.cold()
    assert (counts.outcome, counts.problem, counts.slices) == (Outcome.SUCCEEDED, None, counts.slices_done)
    assert len(quiet.said("recordings.refused")) == 1
    assert all(proof["is_complete"] and proof["recordings_listed"] is None for proof in quiet.proofs().values())


def of_recordings(request: Request) -> bool:
    """Whether a request is about recordings."""
    return "/Recordings" in request.path


@pytest.mark.parametrize(("fault", "requests"), [(Fault.forbidden(70051), 3), (Fault.unauthorized(), 6)])
def test_what_is_refused_alone_is_a_lacking_permission(
    quiet: World, quick_retries: None, fault: Fault, requests: int
) -> None:
    """Twilio lists calls between two refusals: the job rests for a day, and then asks again."""
    made = recorded(quiet, 1)
    quiet.know()
    quiet.conn.execute("UPDATE messages SET recording_url = 'of the Viewer'")  # so the account has recordings
    quiet.twilio.faults.when(of_recordings, fault)
    assert quiet.recordings().outcome is Outcome.SUCCEEDED
    assert len(quiet.twilio.requests) == requests
    assert quiet.cursor("recordings")["refused_at"]
    assert quiet.said("recordings.refused")[0]["hint"] != HINT  # it names the key, and an auth token is in use
    assert quiet.recordings().requests == 0
    quiet.clock.advance(DAY)
    quiet.recordings()
    assert len(quiet.said("recordings.refused")) == 2
    assert quiet.cold().outcome is Outcome.SUCCEEDED
    quiet.twilio.faults.clear()
    quiet.clock.advance(DAY)
    quiet.recordings()
    assert (quiet.told(), "refused_at" in quiet.cursor("recordings")) == ([made[0].sid], False)


def test_a_refusal_ends_when_twilio_answers_although_no_recording_is_known(quiet: World) -> None:
    """The permission was given meanwhile: the job asks a day later, and status no longer says that it is lacking."""
    quiet.twilio.faults.when(of_recordings, Fault.forbidden(70051))
    quiet.recordings()
    quiet.twilio.faults.clear()
    quiet.clock.advance(DAY)
    assert (quiet.recordings().requests, "refused_at" in quiet.cursor("recordings")) == (1, False)


def test_a_passing_401_at_the_first_request_heals(quiet: World) -> None:
    """The next run reads: nothing was taken for a lacking permission, although Twilio accepted the credentials then."""
    made = recorded(quiet, 1)
    quiet.twilio.faults.next(Fault.unauthorized())
    with pytest.raises(Refused):
        quiet.recordings()
    assert (quiet.said("recordings.refused"), quiet.cursor("recordings")) == ([], {})
    quiet.recordings()
    assert quiet.told() == [made[0].sid]


def test_a_401_that_passes_late_heals(quiet: World, quick_retries: None) -> None:
    """It lasts longer than the repeats of a request: the sweep fails, and the next one reads recordings."""
    made = recorded(quiet, 1)
    quiet.twilio.faults.when(of_recordings, Fault.unauthorized(), times=4)
    counts = quiet.cold()
    assert (counts.outcome, counts.slices - counts.slices_done) == (Outcome.FAILED, 1)
    assert "refused the credentials" in (counts.problem or "")
    assert quiet.said("recordings.refused") == []
    assert quiet.cold().outcome is Outcome.SUCCEEDED
    assert quiet.told() == [made[0].sid]


def test_credentials_that_are_revoked_meanwhile_are_no_lacking_permission(quiet: World, quick_retries: None) -> None:
    """Calls are refused as well."""
    recorded(quiet, 1)

    def revoke(request: Request) -> bool:
        if of_recordings(request):
            quiet.twilio.faults.always(Fault.unauthorized())
        return False

    quiet.twilio.faults.when(revoke, Fault.unauthorized())
    counts = quiet.cold()
    assert (counts.outcome, quiet.said("recordings.refused")) == (Outcome.FAILED, [])


def test_wrong_credentials_are_a_refusal(quiet: World) -> None:
    """Where Twilio has accepted nothing before, the credentials themselves may be wrong."""
    quiet.twilio.faults.always(Fault.unauthorized())
    with pytest.raises(Refused):
        quiet.recordings()


def test_an_ignored_filter_is_noticed(quiet: World, quick_retries: None) -> None:
    """The whole list of recordings is no answer; the cursor stays."""
    quiet.account.add_recording(day(40), day(40) + MINUTE, conference_sid=CONFERENCE)
    quiet.twilio.switches = Switches(ignore_filters=True)
    counts = quiet.recordings()
    assert (counts.outcome, quiet.cursor("recordings"), events(quiet)) == (Outcome.FAILED, {}, [])
    assert "a filter was ignored" in (counts.problem or "")


# Backfill and cold


def run_window(world: World, since: datetime) -> Any:
    """Read a window, as `reconcile --since` does."""
    with Store(world.database_url) as store, world._asking("backfill", ACCOUNT, is_bulk=True) as context:
        window = Window(since, world.now(), {"since": "some", "until": None})
        assert context.session is not None
        return run_backfill(ACCOUNT, window, session=context.session, store=store, clock=world.now)


def test_a_backfill_covers_recordings(world: World) -> None:
    """All of the window in one listing; the rows have their URLs."""
    world.account.callbacks = Callbacks(recorded=0.5)
    world.account.generate(300, day(30), NOW - HOUR)
    counts = run_window(world, day(30))
    made = all_recordings(world)
    assert len(listings(world)) == 1
    assert world.told() == sorted(recording.sid for recording in made)
    assert {sid for sid, url in urls(world).items() if url} == {recording.call_sid for recording in made}
    assert (counts.recordings_seen, counts.slices) == (len(made), counts.slices_done)


@pytest.mark.parametrize("filters", ["instant", "day"])
def test_all_lost_callbacks_come_back(world: World, filters: Any) -> None:
    """1,000 recordings, 30 % of their callbacks lost: each told once, with three requests."""
    world.twilio.switches = Switches(time_filters=filters)
    world.account.callbacks = Callbacks(recorded=0)
    look_first(world)
    for number in range(1_000):
        began = NOW - 20 * HOUR + number * timedelta(seconds=60)
        call = world.account.call(began, talks_for=30)
        world.account.add_recording(began, began + timedelta(seconds=30), call_sid=call.sid)
    made = all_recordings(world)
    sent = [each for each in webhooks(world.account, NOW - DAY, NOW) if each.kind == "recording"]
    viewer.receive(world.conn, Channel(seed=3, loss=0.3).deliver(sent))
    inbox(world)
    arrived = len(world.told())
    assert 650 < arrived < 750
    counts = world.recordings()
    # The page is full, so Twilio promises another one; that is empty, and one request proves that it is the end.
    assert len(world.asked()) == 3
    assert (counts.recordings_told + arrived, world.told()) == (1_000, sorted(recording.sid for recording in made))

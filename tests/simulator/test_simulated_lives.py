"""The life of a call on the clock: statuses, times, duration, price; and calls generated at random."""

from __future__ import annotations

import re
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from reconciler.simulator import Clock, SimulatedAccount, SimulatedCall
from reconciler.simulator.wire import formatted, rfc2822, seconds
from tests.harness.present import present

NOON = datetime(2026, 6, 10, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
KEYS = {
    "account_sid", "annotation", "answered_by", "api_version", "caller_name", "date_created", "date_updated",
    "direction", "duration", "end_time", "forwarded_from", "from", "from_formatted", "group_sid", "parent_call_sid",
    "phone_number_sid", "price", "price_unit", "queue_time", "sid", "start_time", "status", "subresource_uris", "to",
    "to_formatted", "trunk_sid", "uri",
}  # fmt: skip


def seen(account: SimulatedAccount, sid: str, after: int) -> tuple[object, ...]:
    """Return status, start, end, duration and price so many seconds after noon; times as seconds after noon."""
    record = account.record(sid, NOON + after * SECOND)
    assert record is not None
    offset = {rfc2822(seconds(NOON) + n): n for n in range(200)}
    start, end = (record[field] and offset[record[field]] for field in ("start_time", "end_time"))
    return record["status"], start, end, record["duration"], record["price"]


def test_an_outbound_call_goes_through_its_statuses(account):
    """start_time moves from dialling to the moment of answer; duration is end - start; the price comes later."""
    call = account.call(NOON, queued_for=4, rings_for=6, talks_for=30, priced_after=20)
    assert seen(account, call.sid, 3) == ("queued", None, None, None, None)
    assert seen(account, call.sid, 4) == ("ringing", 4, None, None, None)
    assert seen(account, call.sid, 10) == ("in-progress", 10, None, None, None)
    assert seen(account, call.sid, 40) == ("completed", 10, 40, "30", None)
    assert seen(account, call.sid, 60) == ("completed", 10, 40, "30", "-0.01400")


def test_the_price_does_not_move_date_updated(account):
    """date_updated equals end_time of every finished call, priced or not."""
    call = account.call(NOON, priced_after=3600)
    early, late = (account.record(call.sid, NOON + timedelta(hours=hours)) for hours in (1, 3))
    assert (early["price"], late["price"]) == (None, "-0.01400")
    assert early["date_updated"] == late["date_updated"] == late["end_time"]


def test_an_inbound_call_starts_when_it_is_created(account):
    """Ringing counts for inbound calls: start_time stays, and so does the duration's beginning."""
    call = account.call(NOON, direction="inbound", rings_for=6, talks_for=30)
    assert seen(account, call.sid, 7) == ("in-progress", 0, None, None, None)
    assert seen(account, call.sid, 36) == ("completed", 0, 36, "36", None)


@pytest.mark.parametrize("status", ["busy", "no-answer", "failed", "canceled"])
def test_an_unanswered_call_has_both_times_and_duration_0(account, status):
    """Busy, no-answer and failed calls have both times, duration "0" and no price."""
    call = account.call(NOON, rings_for=20, status=status)
    assert (status, 0, 20, "0", None) == seen(account, call.sid, 150)


def test_a_call_canceled_in_the_queue_was_never_dialled(account):
    """All of its times but date_created and date_updated stay null."""
    call = account.call(NOON, queued_for=9, status="canceled", never_dialled=True)
    assert seen(account, call.sid, 8) == ("queued", None, None, None, None)
    assert seen(account, call.sid, 9) == ("canceled", None, None, None, None)


def test_a_failed_call_to_sip_costs_nothing_and_says_so(account):
    """price "0.00000" for a SIP destination."""
    call = account.call(NOON, to="sip:a@pbx.example.com", status="failed", priced_after=0)
    assert seen(account, call.sid, 6) == ("failed", 0, 6, "0", "0.00000")


def test_a_trunking_call_shows_only_when_it_is_over(account):
    """It then appears in its place by date_created, behind calls that were listed before."""
    trunk = account.call(NOON, direction="trunking-terminating")
    other = account.call(NOON + SECOND)
    assert [other.sid] == [call.sid for call in account.calls_at(NOON + 35 * SECOND)]
    assert [other.sid, trunk.sid] == [call.sid for call in account.calls_at(NOON + 36 * SECOND)]


def test_a_record_has_the_keys_and_types_of_the_real_ones(account, real_calls):
    """A call of 2026 and ours have the same keys, and each value is of a type the real records show there."""
    real = [record for record in real_calls if record.keys() == KEYS]
    assert real
    account.generate(500, NOON - timedelta(days=1), NOON)
    for call in account.calls_at(NOON):
        record = call.render(seconds(NOON))
        assert record.keys() == KEYS
        for key in KEYS - {"parent_call_sid", "answered_by"}:
            assert type(record[key]) in {type(other[key]) for other in real_calls if key in other} | {str}, key


def test_calls_follow_the_clock_of_the_server(serve, account, clock):
    """Moving the clock moves the statuses a client sees."""
    call = account.call(NOON + SECOND)
    _, client = serve()
    statuses = []
    for _ in range(4):
        statuses.append([record["status"] for record in client.page()["calls"]])
        clock.advance(timedelta(seconds=4))
    clock.set(NOON + timedelta(hours=1))
    statuses.append([record["status"] for record in client.page()["calls"]])
    assert statuses == [[], ["ringing"], ["in-progress"], ["in-progress"], ["completed"]]
    assert call.sid == client.page()["calls"][0]["sid"]


def test_a_call_can_be_rewritten_hung_up_and_deleted(account):
    """Indexes follow: the call is found by its new end and no longer by the old one."""
    call = account.call(NOON, talks_for=None)
    assert seen(account, call.sid, 100)[0] == "in-progress"
    account.hang_up(call.sid, NOON + 50 * SECOND, status="failed")
    assert seen(account, call.sid, 100) == ("failed", 6, 50, "0", None)
    account.delete(call.sid, NOON + 60 * SECOND)
    assert account.record(call.sid, NOON + 59 * SECOND) is not None
    assert account.record(call.sid, NOON + 60 * SECOND) is None
    assert account.calls_at(NOON + 60 * SECOND) == []
    assert account.call_count == 1


def test_two_calls_of_one_sid_are_refused(account):
    """A SID names one call."""
    call = account.call(NOON)
    with pytest.raises(ValueError, match="same SID"):
        account.call(NOON, sid=call.sid)


def test_a_call_ends_in_a_final_status():
    """`cancelled` with two l is not a status of Twilio's."""
    with pytest.raises(ValueError, match="cancelled"):
        SimulatedAccount("AC", "t").call(NOON, status="cancelled")


def test_numbers_are_formatted_as_twilio_does(real_calls):
    """`*_formatted` of every real record comes out the same."""
    for record in real_calls:
        for field in ("from", "to"):
            if f"{field}_formatted" in record:
                assert record[f"{field}_formatted"] == formatted(record[field])


def test_generated_calls_depend_on_the_seed_alone():
    """The same seed makes the same calls, another one others."""
    made = []
    for seed in (1, 1, 2):
        account = SimulatedAccount("AC1", "t", seed=seed)
        account.generate(200, NOON - timedelta(days=1), NOON)
        made.append(account.calls_at(NOON))
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_generated_calls_are_mixed_like_real_ones():
    """Exactly as many as asked, all kinds and statuses, ties within a second, children within their parents."""
    account = SimulatedAccount("AC1", "t")
    since = NOON - timedelta(days=2)
    account.generate(20_000, since, NOON)
    later = NOON + timedelta(days=2)
    calls = [call for call in account.calls_at(later) if isinstance(call, SimulatedCall)]
    assert 20_000 == len(calls) == len({call.sid for call in calls})
    assert {"inbound", "outbound-api", "outbound-dial", "trunking-originating", "trunking-terminating"} == {
        call.direction for call in calls
    }
    statuses = Counter(call.status for call in calls)
    assert 0.75 < statuses["completed"] / 20_000 < 0.9
    assert all(statuses[status] > 100 for status in ("busy", "no-answer", "failed", "canceled"))
    assert any(call.dialled is None for call in calls)
    assert len({call.created for call in calls}) < 20_000
    assert all(re.fullmatch(r"CA[0-9a-f]{32}", call.sid) for call in calls)
    by_sid = {call.sid: call for call in calls}
    for call in calls:
        script = (call.created, call.dialled, call.answered, call.ended, call.priced)
        times = [time for time in script if time is not None]
        assert times == sorted(times)
        if call.parent_call_sid is not None:
            parent = by_sid[call.parent_call_sid]
            assert parent.created <= call.created
            assert present(call.ended) <= present(parent.ended)


def test_generated_numbers_are_fictitious(account):
    """Every phone number lies in 555-0100 to 555-0199, which are reserved for fiction."""
    account.generate(3000, NOON - timedelta(days=1), NOON)
    addresses = {address for call in account.calls_at(NOON) for address in (call.from_, call.to)}
    numbers = {address for address in addresses if address.startswith("+")}
    assert all(re.fullmatch(r"\+1\d{3}55501\d\d", number) for number in numbers)
    assert {"client", "sip"} <= {address.split(":")[0] for address in addresses - numbers}


def test_a_running_clock_moves_and_a_standing_one_does_not():
    """A standing clock shows what it was set to; a running one never goes back and obeys its speed."""
    standing = Clock(NOON)
    assert standing.now() == standing.now() == NOON
    running = Clock.running(NOON, speed=1e6)
    threading.Event().wait(0.01)
    assert running.now() > NOON + timedelta(hours=1)
    running.set(NOON)
    running.advance(timedelta(days=1))
    assert running.now() >= NOON + timedelta(days=1)
    with pytest.raises(ValueError, match="aware"):
        Clock(datetime(2026, 6, 10))
    assert standing.now().tzinfo == UTC


@pytest.mark.parametrize("direction", ["trunking-originating", "trunking-terminating"])
def test_a_trunking_call_names_its_trunk(account, direction):
    """trunk_sid is filled for calls of trunks and empty for all others."""
    trunk, own, other = (
        account.call(NOON, direction=direction), account.call(NOON, direction=direction, trunk_sid="TK2"),
        account.call(NOON),
    )  # fmt: skip
    records = [account.record(call.sid, NOON + timedelta(hours=1)) for call in (trunk, own, other)]
    assert [f"TK{1:032x}", "TK2", ""] == [record["trunk_sid"] for record in records]


@pytest.mark.parametrize("share", [0.0, 0.06, 0.5, 1.0])
def test_the_share_of_trunking_calls_is_ones_choice(share):
    """A share of none, the usual few, half or all; with none all other kinds are still there."""
    account = SimulatedAccount("AC1", "t")
    account.generate(4_000, NOON - timedelta(days=3), NOON - timedelta(days=1), trunk_share=share)
    directions = Counter(call.render(int(NOON.timestamp()))["direction"] for call in account.calls_at(NOON))
    trunk = sum(count for direction, count in directions.items() if direction.startswith("trunking"))
    # One drawn "dialled" is two calls, so that trunk calls are a little fewer of all calls.
    assert share * 0.7 <= trunk / 4_000 <= share * 1.1
    assert share == 1 or {"inbound", "outbound-api", "outbound-dial"} <= directions.keys()


def test_fields_of_a_record_can_be_given(account):
    """A script may set, and change, fields for which there is no rule."""
    call = account.call(NOON, fields={"caller_name": "EXAMPLE, ALICE", "group_sid": "GP1"})
    record = account.record(call.sid, NOON)
    assert ("EXAMPLE, ALICE", "GP1", None) == tuple(record[key] for key in ("caller_name", "group_sid", "annotation"))
    account.change(call.sid, fields={"annotation": "vip"})
    record = account.record(call.sid, NOON)
    assert ("", None, "vip") == tuple(record[key] for key in ("caller_name", "group_sid", "annotation"))


def test_generated_records_fill_every_field_that_real_ones_fill(account, real_calls):
    """Each key that a real record fills at times is filled at times, and left empty where real ones leave it empty."""
    account.generate(2_000, NOON - timedelta(days=2), NOON - timedelta(days=1), trunk_share=0.1)
    records = [call.render(seconds(NOON)) for call in account.calls_at(NOON)]

    def filled(rows):
        return {key for key in KEYS if any(row.get(key) not in (None, "") for row in rows)}

    def empty(rows):
        return {key for key in KEYS if any(row.get(key, "") in (None, "") for row in rows)}

    today = [record for record in real_calls if record.keys() == KEYS]
    assert filled(today) <= filled(records)
    assert {"caller_name", "trunk_sid", "parent_call_sid", "answered_by"} <= filled(records)
    assert empty(today) - {"date_created", "date_updated", "duration", "start_time", "end_time"} <= empty(records)

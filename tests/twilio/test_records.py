"""From Twilio's bytes to observations: records that are read, records that are refused, and none that is lost."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reconciler.errors import BadObservation, Unavailable
from reconciler.model import Page, Status, Via
from reconciler.simulator.breakage import BREAKAGES, Breakage
from reconciler.twilio.dates import parse_rfc2822
from reconciler.twilio.records import dead_letter_of, dead_letter_of_observation, decode_call, decode_page, read_record
from tests.harness.recorded import REAL_CALLS
from tests.harness.rows import END, SAID, START, make_record


def encode(*records: Any, **envelope: Any) -> bytes:
    """The listing that holds `records`."""
    return json.dumps({"calls": list(records), "next_page_uri": None, **envelope}).encode()


def decode(*records: Any, **envelope: Any) -> Page:
    """The page that holds `records`."""
    return decode_page(encode(*records, **envelope), observed_at=SAID)


def read(**fields: Any) -> Any:
    """The observation of a record with these fields."""
    page = decode(make_record(**fields))
    assert [] == page.dead_letters
    return page.observations[0]


def reason(**fields: Any) -> str:
    """Why a record with these fields is a dead letter."""
    page = decode(make_record(**fields))
    assert [] == page.observations
    return page.dead_letters[0].reason


def when(date: str | None) -> datetime | None:
    """A date as the standard library reads it."""
    return parsedate_to_datetime(date) if date else None


# How Twilio displays numbers and its own addresses: they follow from the rest of a record.
DERIVED = {"from_formatted", "to_formatted", "uri", "subresource_uris"}
COLUMNS = {*make_record()} | {"date_updated"}


def others(record: dict[str, Any]) -> dict[str, Any]:
    """What a record holds beyond the columns. The API's version is that of 2010 where none is kept."""
    kept = {name: value for name, value in record.items() if name not in COLUMNS | DERIVED and value not in (None, "")}
    return {name: value for name, value in kept.items() if (name, value) != ("api_version", "2010-04-01")}


@pytest.mark.parametrize("record", REAL_CALLS, ids=lambda record: record["sid"])
def test_every_real_record_is_read_field_by_field(record):
    """Each value arrives as its own type, exactly; empty text is None."""
    [observation] = decode(record).observations
    date_updated, end_time = when(record["date_updated"]), when(record["end_time"])
    expected = {
        "call_sid": record["sid"],
        "account_sid": record["account_sid"],
        "parent_call_sid": record["parent_call_sid"] or None,
        "direction": record["direction"],
        "status": Status(record["status"]),
        "from_number": record["from"],
        "to_number": record["to"],
        "duration": int(record["duration"]) if record["duration"] else None,
        "price": Decimal(record["price"]) if record["price"] else None,
        "price_unit": record.get("price_unit"),
        "start_time": when(record["start_time"]),
        "end_time": end_time,
        "answered_by": record["answered_by"] or None,
        "date_created": when(record["date_created"]),
        "status_at": end_time or date_updated or SAID,
        "observed_at": SAID,
        "via": Via.REST,
        "other_fields": others(record),
    }
    assert expected == {**observation._asdict(), "other_fields": json.loads(observation.other_fields or "{}")}
    assert [observation] == decode_call(json.dumps(record).encode(), observed_at=SAID).observations
    if observation.price is not None:
        assert record["price"] == str(observation.price)


def test_real_records_make_one_page_without_dead_letters():
    """The typed path reads what Twilio really sends, old forms included."""
    page = decode(*REAL_CALLS)
    assert [record["sid"] for record in REAL_CALLS] == [observation.call_sid for observation in page.observations]
    assert [] == page.dead_letters


@pytest.mark.parametrize("empty", ["", None])
def test_empty_text_and_null_are_unknown(empty):
    """Twilio uses both, and absence, for what it does not know."""
    names = set(make_record()) - {"sid", "status"}
    page = decode(make_record(**dict.fromkeys(names, empty)), {"sid": f"CA{0:032x}", "status": "completed"})
    nulled, absent = page.observations
    assert nulled == absent
    known = {name for name, value in nulled._asdict().items() if value is not None}
    assert {"call_sid", "status", "status_at", "observed_at", "via"} == known


def test_unknown_keys_are_kept_of_a_record_and_ignored_in_the_envelope():
    """Twilio adds and keeps fields unannounced, of any type; numbers are text, as Twilio writes them."""
    extra: dict[str, Any] = {"ai_summary": {"topics": [1, 2.5, None, True]}, "annotation": None}
    page = decode(make_record(**extra), make_record(), meta={"key": "calls"}, total=1e999)
    [known] = decode(make_record()).observations
    kept = '{"ai_summary": {"topics": ["1", "2.5", null, true]}}'
    assert [known._replace(other_fields=kept), known] == page.observations
    assert known.other_fields is None


@pytest.mark.parametrize("field", ["caller_name", "new_field"])
def test_what_postgresql_cannot_hold_is_replaced_in_other_fields(field):
    """No NUL and no half of a surrogate pair costs a call."""
    body = encode(make_record() | {field: "x"}).replace(b'"x"', b'"\\u0000a\\ud800 \\\\u0000"')
    [observation] = decode_page(body, observed_at=SAID).observations
    assert json.loads(observation.other_fields or "") == {field: "\ufffda\ufffd \\u0000"}


def test_of_what_is_nested_too_deep_nothing_is_kept():
    """The call is read all the same."""
    deep: Any = "x"
    for _ in range(60):
        deep = [deep]
    assert "x" not in (read(new_field=deep).other_fields or "")


def test_a_documented_field_of_another_type_is_kept_as_it_is():
    """Only a column wants its own type."""
    assert read(annotation={"a": 1}, queue_time=5, caller_name=["b"]).other_fields == (
        '{"annotation": {"a": "1"}, "queue_time": "5", "caller_name": ["b"]}'
    )


def test_a_dead_letter_of_the_database_holds_the_whole_record():
    """A replay reads the same observation from it."""
    observation = read(caller_name="ALICE", new_field={"a": ["b"]})
    letter = dead_letter_of_observation(observation, "why")
    assert read_record(json.loads(letter.record), observed_at=SAID) == observation


@pytest.mark.parametrize(
    "price", ["-0.00850", "-0.38930", "0.00000", "-0.01", "12", "+1.5", "-1.4E-2", "99999999999.99999"]
)
def test_prices_stay_exact(price):
    """Five decimals, trailing zeros included; no float on the way."""
    assert Decimal(price).as_tuple() == read(price=price).price.as_tuple()


def test_numbers_in_json_are_read_as_their_text():
    """A price or a duration that arrives as a number is worth the same, digit by digit."""
    body = encode(make_record()).replace(b'"-0.00850"', b"-0.10000000000000000001").replace(b'"27"', b"30")
    [observation] = decode_page(body, observed_at=SAID).observations
    assert (Decimal("-0.10000000000000000001"), 30) == (observation.price, observation.duration)


@pytest.mark.parametrize(
    "price",
    [
        "NaN", "sNaN", "Infinity", "-Infinity", "1e12", "1e999999999", "1e99999999999999999999", "0." + "1" * 20_000,
        "9" * 5_000, "1_000", " 1", "\u0663", "-", ".", "1,5", "0E-50", "free", "0x10",
    ],
)  # fmt: skip
def test_what_is_no_amount_of_money_is_refused(price):
    """A price that Python's Decimal reads is not enough: the database must take it, too."""
    assert reason(price=price).startswith("price ")


@pytest.mark.parametrize("price", [float("nan"), float("inf"), 10**400, True, [], {}])
def test_prices_of_other_types_are_refused(price):
    """JSON's NaN and Infinity, integers without end, and values that are no numbers."""
    assert "price" in reason(price=price)


@pytest.mark.parametrize(
    "duration", ["-5", "12.5", "2147483648", "9" * 5_000, "\u0663", "²", "1e3", " 7", "x", True, []]
)
def test_durations_that_are_no_seconds_are_refused(duration):
    """A duration is a whole number that fits its column."""
    assert "duration" in reason(duration=duration)


@pytest.mark.parametrize(("duration", "seconds"), [("0", 0), ("27", 27), ("2147483647", 2147483647)])
def test_durations_are_seconds(duration, seconds):
    """Zero is a duration, not an unknown one."""
    assert seconds == read(duration=duration).duration


@pytest.mark.parametrize(
    ("date", "hour"),
    [
        ("Tue, 10 Jun 2026 20:11:27 +0000", 20),
        ("Tue, 10 Jun 2026 20:11:27 -0000", 20),
        ("Tue, 10 Jun 2026 20:11:27 GMT", 20),
        ("Tue, 10 Jun 2026 22:11:27 +0200", 20),
        ("Tue, 10 Jun 2026 14:41:27 -0530", 20),
        ("10 Jun 2026 20:11:27 UTC", 20),
    ],
)
def test_dates_are_brought_to_utc(date, hour):
    """Twilio sends +0000; another zone is the same instant."""
    assert datetime(2026, 6, 10, hour, 11, 27, tzinfo=UTC) == read(start_time=date).start_time
    assert UTC is read(start_time=date).start_time.tzinfo


@pytest.mark.parametrize(
    "date",
    [
        "Tue, 10 Jun 2026 20:11:27", "Mon, 01 Jan 0001 00:00:00 +0000", "Mon, 01 Jan 0001 00:00:00 +2300",
        "Fri, 31 Dec 9999 23:59:59 +0000", "Fri, 31 Dec 9999 23:59:59 -2359", "Sat, 01 Jan 2000 00:30:00 +0100",
        "Fri, 31 Dec 2099 23:30:00 -0100", "Tue, 31 Jun 2026 20:11:27 +0000", "Tue, 10 Jun 2026 24:11:27 +0000",
        "Tue, 10 Jun 2026 20:11:61 +0000", "Tue, 10 Jun 26 20:11:27 +0000", "Tue, 10xJunx2026x20x11x27 +0000",
        "Tue, \u0661\u0660 Jun 2026 20:11:27 +0000", "Tue, 1_ Jun 2026 20:11:27 +0000",
        "Tue, 10 Jun 2026 20:11:27 +9999", "Tue, 10 Jun 2026 201127.5 +0000", "Tue, 10 Jun 2026 20:11,27 +0000",
        "Fri, 31 Dec 9999 23:59:60 +0000", "Thu, 31 Dec 2099 23:59:60 +0000", "Tue, 10 Jun 2026 20:11:60.5 +0000",
        "Tue, 10 Jun 2026 2\u0661:11:27 +0000", "Tue, 10 Jun 2026T20:11:27 +0000",
        "2026-06-10T20:11:27Z", "yesterday", "Tue, 10 Jun 2026 20:11:27 +0000 ", "x" * 100_000, "\0",
    ],
)  # fmt: skip
def test_implausible_dates_are_refused(date):
    """No zone, an absurd year or no date at all: one dead letter, and never a window gone astray."""
    assert reason(start_time=date).startswith("start_time ")
    with pytest.raises(ValueError):
        parse_rfc2822(date)


@pytest.mark.parametrize(
    "date", ["Sat, 31 Dec 2016 23:59:60 +0000", "Sat, 31 Dec 2016 23:59:60 GMT", "Sun, 01 Jan 2017 00:59:60 +0100"]
)
def test_a_leap_second_is_the_second_after_it(date):
    """PostgreSQL and POSIX read it so; a refused date would make a dead letter of a good record."""
    assert datetime(2017, 1, 1, tzinfo=UTC) == parse_rfc2822(date) == read(start_time=date).start_time


@given(st.integers(10_958, 47_480), st.integers(0, 86_399), st.just(0) | st.integers(-1439, 1439))
def test_every_date_of_the_century_is_read(day, second, offset):
    """For every second and zone the instant equals that of the standard library."""
    moment = datetime.fromtimestamp(day * 86_400 + second, UTC)
    sign, (hours, minutes) = "-" if offset < 0 else "+", divmod(abs(offset), 60)
    local = (moment + timedelta(minutes=offset)).replace(tzinfo=None)
    text = f"{format_datetime(local).removesuffix(' -0000')} {sign}{hours:02}{minutes:02}"
    assert moment == parse_rfc2822(text) == parsedate_to_datetime(text)


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d (\+0000|[+-]\d{4})"))
def test_arbitrary_dates_are_read_or_refused(text):
    """Nothing but a UTC time of this century or ValueError comes out."""
    try:
        moment = parse_rfc2822(text)
    except ValueError:
        return
    assert UTC is moment.tzinfo
    assert 2000 <= moment.year < 2100


@pytest.mark.parametrize(
    "sid",
    ["call-123", "", "CA" + "0" * 31, "CA" + "0" * 33, "CA" + "g" * 32, "AC" + "0" * 32, f"CA{0:032x}\n", "SM" * 17],
)
def test_a_sid_that_is_none_is_refused_and_named_nowhere(sid):
    """The dead letter does not carry it as a call's SID either."""
    [letter] = decode(make_record(sid=sid)).dead_letters
    assert ("sid is not CA and 32 hexadecimal digits", None) == (letter.reason, letter.call_sid)


@pytest.mark.parametrize("field", ["account_sid", "parent_call_sid"])
def test_other_sids_are_checked_too(field):
    """They are keys to other rows."""
    assert reason(**{field: "nobody"}).startswith(f"{field} is not ")


@pytest.mark.parametrize("status", ["on-hold", "", "Completed", "unknown"])
def test_an_unknown_status_is_refused(status):
    """A new status of Twilio's stops nothing and is kept for the day we know it."""
    assert f"unknown status '{status}'" == reason(status=status)


@pytest.mark.parametrize(("name", "status"), [("cancelled", Status.CANCELED), ("answered", Status.IN_PROGRESS)])
def test_twilios_other_spellings_are_known(name, status):
    """Some of its pages write them."""
    assert status == read(status=name).status


@pytest.mark.parametrize("field", ["from", "to", "direction", "price_unit", "answered_by"])
@pytest.mark.parametrize(("text", "why"), [("a\0b", "NUL"), ("a\ud800b", "surrogate"), ("x" * 200_000, "longer")])
def test_text_that_postgresql_cannot_hold_is_refused(field, text, why):
    """One such value would fail the whole page's COPY."""
    assert re.search(rf"^{field} .*{why}", reason(**{field: text}))


def test_long_addresses_are_kept_whole():
    """SIP URIs have no useful bound."""
    uri = f"sip:{'x' * 10_000}@example.com;transport=tls"
    assert uri == read(from_=uri).from_number
    assert "客户端" == read(to="客户端").to_number


@pytest.mark.parametrize("kind", sorted(BREAKAGES))
@pytest.mark.parametrize("at", [0, 500, 999])
def test_one_broken_record_spoils_nothing_else(kind, at):
    """999 observations in their order and one dead letter, or a thousand if the breakage can be read."""
    good = [make_record(number) for number in range(1000)]
    page = decode_page(Breakage(kind, at).encode({"calls": [dict(each) for each in good]}), observed_at=SAID)
    readable = kind in ("huge_sip_uri", "price_with_exponent", "numbers_not_strings")
    assert (1000 if readable else 999, 0 if readable else 1) == (len(page.observations), len(page.dead_letters))
    others = [observation for observation in page.observations if observation.call_sid != f"CA{at:032x}"]
    assert decode(*good[:at], *good[at + 1 :]).observations == others


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"<html><h1>502</h1></html>", b"[]", b"null", b'"calls"', b"{}", b'{"calls": null}',
        b'{"calls": {}}',
        b'{"code": 20003, "status": 401}', encode(make_record())[:-1], encode(make_record())[:200],
        encode() + b"}", b"[" + encode() + b"]", b'{"calls": [], "next_page_uri": []}', b"\xff\xfe\xfd",
        b'{"calls": [], "x": ' + b"[" * 500_000, b'{"calls": [], "x": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_listing_is_worth_asking_again(body):
    """A body that is cut short, HTML, empty or other JSON means Unavailable."""
    with pytest.raises(Unavailable):
        decode_page(body, observed_at=SAID)


@pytest.mark.parametrize("field", ["from", "sid", "caller_name"])
def test_a_byte_that_is_no_utf8_spoils_its_record_alone(field):
    """A caller's name in another code page must not stop all that is listed beside it."""
    spoilt = encode(make_record(0, **{field: "@"}), make_record(1), make_record(2)).replace(b'"@"', b'"Jos\xe9"')
    page = decode_page(spoilt, observed_at=SAID)
    kept = 0 if field == "caller_name" else 1
    assert (3 - kept, kept) == (len(page.observations), len(page.dead_letters))
    assert decode(make_record(1), make_record(2)).observations == page.observations[-2:]


@pytest.mark.parametrize("depth", range(900, 1100, 3))
def test_records_nested_without_end_never_fail_otherwise(depth):
    """Near the interpreter's limit reading may work where writing does not."""
    body = b'{"calls": [{"x": ' + b"[" * depth + b"]" * depth + b"}]}"
    try:
        page = decode_page(body, observed_at=SAID)
    except Unavailable:
        return
    assert 1 == len(page.dead_letters)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("a\ud800"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=8,
)
VALUES = JSON | st.sampled_from(["", "CA" + "0" * 32, "completed", START, END, "-0.00850", "27", "\0", "NaN", -1])
RECORDS = JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(make_record(), VALUES)).map(
    lambda fields: make_record() | fields
)


@given(st.lists(RECORDS, max_size=5))
@example([{"\ud800": 1}])
def test_no_record_is_lost(records):
    """Observations and dead letters together are the records, and each dead letter holds all of its own."""
    body = encode(*records)
    page = decode_page(body, observed_at=SAID)
    assert len(records) == len(page.observations) + len(page.dead_letters)
    assert all(observation.status in Status for observation in page.observations)
    whole = json.loads(body, parse_int=str, parse_float=str, parse_constant=str)["calls"]
    for letter in page.dead_letters:
        assert json.loads(letter.record) in whole
        assert letter.record.isascii()
        assert letter.record.isprintable()
        assert letter.reason.isprintable()


@given(JSON.map(lambda value: json.dumps(value).encode()) | st.binary())
def test_arbitrary_bodies_raise_nothing_unforeseen(body):
    """A page, or Unavailable."""
    with suppress(Unavailable):
        assert isinstance(decode_page(body, observed_at=SAID), Page)
    with suppress(Unavailable):
        assert not decode_call(body, observed_at=SAID).observations


@given(st.integers(min_value=1))
def test_a_page_cut_anywhere_is_no_page(cut):
    """It is none at any length."""
    body = encode(make_record(), make_record(1))
    with pytest.raises(Unavailable):
        decode_page(body[: -(cut % len(body)) or -1], observed_at=SAID)


def test_the_dedupe_key_depends_on_the_record_alone():
    """Order of keys, place and reason do not matter; another record has another key."""
    record = make_record(status="on-hold")
    shuffled = dict(reversed(list(record.items())))
    here, there = decode(record).dead_letters[0], decode(make_record(7), shuffled).dead_letters[0]
    assert here == there
    assert here.dedupe_key == dead_letter_of(record, reason="another").dedupe_key
    assert here.dedupe_key != decode(make_record(status="on-hold", duration="28")).dead_letters[0].dedupe_key
    assert re.fullmatch(r"rest:[0-9a-f]{64}", here.dedupe_key)


def test_a_dead_letter_keeps_the_sid_if_it_is_one():
    """People can find it by its call."""
    assert f"CA{7:032x}" == decode(make_record(7, status="on-hold")).dead_letters[0].call_sid


LATER = "Tue, 10 Jun 2026 20:15:00 +0000"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"status": "completed", "date_updated": LATER}, END),
        ({"status": "busy", "end_time": None, "date_updated": LATER}, LATER),
        ({"status": "in-progress", "end_time": None, "date_updated": LATER}, LATER),
        ({"status": "in-progress", "date_updated": LATER}, LATER),
        ({"status": "ringing", "end_time": None, "date_updated": None}, START),
        ({"status": "queued", "end_time": None, "date_updated": "", "start_time": None, "date_created": END}, END),
    ],
)
def test_status_at_is_when_the_status_was_reached(fields, expected):
    """The end for a final call, else the update, the start, the creation."""
    assert when(expected) == read(**fields).status_at


def test_status_at_without_any_date_is_when_it_was_said():
    """The answer to POST /Calls has none."""
    dates = dict.fromkeys(("start_time", "end_time", "date_created", "date_updated"))
    assert SAID == read(status="queued", **dates).status_at


def test_all_records_of_a_page_were_said_at_once():
    """`observed_at` is the answer's, for the page and each of its records."""
    page = decode(make_record(0), make_record(1, status="queued"), make_record(2, sid="x"))
    assert {SAID} == {page.observed_at, *(observation.observed_at for observation in page.observations)}


@pytest.mark.parametrize("uri", ["/2010-04-01/Accounts/AC/Calls.json?Page=1", None])
@pytest.mark.parametrize("status", ["completed", "on-hold"])
def test_the_next_page_is_named(uri, status):
    """The typed and the lenient path both name it."""
    assert uri == decode(make_record(status=status), next_page_uri=uri).next_uri


NUMBER = "+12025550100"


@pytest.mark.parametrize("field", [*make_record()])
def test_no_phone_number_in_a_repr_or_a_reason(field):
    """Wherever in a broken record a number lands: reprs and reasons end in logs."""
    for number in (NUMBER, NUMBER.removeprefix("+")):
        fields: dict[str, Any] = {field: number, "from": number, "to": number}
        page = decode(make_record(**fields))
        said = [repr(page), *map(repr, page.observations), *map(repr, page.dead_letters)]
        said += [letter.reason for letter in page.dead_letters]
        assert not [text for text in said if "2025550100" in text]


def test_reprs_tell_calls_apart():
    """A SID, a status and a time are what one needs in a traceback."""
    page = decode(make_record())
    assert f"<Observation CA{0:032x} completed by rest at 2026-06-10T20:11:28Z>" == repr(page.observations[0])
    assert "<Page of 1 calls>" == repr(page)


@pytest.mark.parametrize("record", [None, 7, "text", [], {}, {"sid": 1}])
def test_what_is_no_record_is_refused(record):
    """A value of any other type."""
    with pytest.raises(BadObservation):
        read_record(record, observed_at=SAID)

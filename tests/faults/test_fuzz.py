"""Any record of Twilio's, and any form of a stranger's, becomes one of three things.

It is an observation that lands, holds nothing to keep, or becomes a dead letter with its reason. Nothing is lost on the
way into a real PostgreSQL, and PostgreSQL refuses nothing.

Bodies are made as text and not by a JSON encoder, so that keys may repeat and bytes be no UTF-8.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.database.transaction import Origin
from reconciler.errors import BadObservation, Unavailable
from reconciler.model import Observation, Status
from reconciler.twilio.records import decode_page
from reconciler.twilio.webhooks import read_webhook
from tests.harness.contexts import run_inbox
from tests.harness.databases import new_database
from tests.harness.names import ACCOUNT

SAID = datetime(2026, 6, 10, 20, 11, 28, tzinfo=UTC)
NOW = SAID + timedelta(hours=1)
START, END = "Wed, 10 Jun 2026 20:11:00 +0000", "Wed, 10 Jun 2026 20:11:27 +0000"
ORIGIN = Origin("reconcile_backfill", "fuzz")

# Stands for one of three calls of the example at hand, in records and forms alike.
CALLS = ["<call 0>", "<call 1>", "<call 2>"]
RECORD = {
    "sid": CALLS[0], "account_sid": ACCOUNT, "parent_call_sid": None, "status": "completed", "direction": "inbound",
    "from": "+15005550100", "to": "+15005550101", "duration": "27", "price": "-0.00850", "price_unit": "USD",
    "start_time": START, "end_time": END, "answered_by": None, "date_created": START, "date_updated": END,
}  # fmt: skip
STATUSES = [*(status.value for status in Status), "answered", "cancelled", "on-hold", "", "COMPLETED", "completed "]
DATES = [
    START, END, "", "Mon, 01 Jan 0001 00:00:00 +0000", "Fri, 31 Dec 9999 23:59:59 +0000",
    "Sat, 01 Jan 2000 00:00:00 +0000", "Thu, 31 Dec 2099 23:59:59 +0000", "Sun, 31 Dec 2099 23:59:59 -0100",
    "Wed, 10 Jun 2026 20:11:27 -1459",
    "Thu, 31 Feb 2026 20:00:00 +0000", "2026-06-10T20:11:27Z", "Wed, 10 Jun 2026 24:00:00 GMT",
]  # fmt: skip
NUMBERS = [
    "0", "-0", "-5", "27", "2147483647", "2147483648", "99999999999999999999", "1e3", "1E-2", "-1.4E-2", "1e999999999",
    "0E-19", "0E-50", "NaN", "sNaN", "-Infinity", "Infinity", "0x10", "1_000", "\u0663", "12.5", "99999999999.99999",
    "-0.00000000000000000001", "9" * 40, "." + "9" * 39, "+.5", "5.",
]  # fmt: skip
TEXTS = [
    *CALLS, ACCOUNT, "CA12", f"CA{0:033x}", f"CM{0:032x}", "CA" + "g" * 32, "\0", "a\0b", "\ud800", "\udfff\ud800",
    "\udcff", "\udc80x", "\\u0000", "\\N", "\\.", "\t", "\n\\.\n", "NULL", "'; DROP TABLE messages; --", "{}", "$$",
    "%s", "%(now)s", f"sip:{'x' * 10_000}@example.com", "客户端" * 3_000, "x" * 100_001, "x" * 101, "\u202e",
    "\U0001f4de", "+1 (500) 555-0100",
]  # fmt: skip
TEXT = st.sampled_from([*STATUSES, *DATES, *NUMBERS, *TEXTS]) | st.text(max_size=30)
ODD = st.sampled_from([
    *NUMBERS[:12], "1e400", "-1E400", "NaN", "Infinity", "true", "false", "null", "[]", "{}",
    '[{"sid": "CA1"}]', '{"from": 1}', "[" * 200 + "]" * 200, '{"a":' * 200 + "1" + "}" * 200,
])  # fmt: skip


def as_json(text: str, *, escaped: bool) -> str:
    return json.dumps(text, ensure_ascii=escaped)


VALUE = st.one_of(st.builds(as_json, TEXT, escaped=st.booleans()), ODD)
FIELD = st.tuples(st.builds(as_json, st.sampled_from([*RECORD, "annotation"]) | TEXT, escaped=st.booleans()), VALUE)


def record_text(sid: str, fields: list[tuple[str, str]]) -> str:
    """A good record's text with `fields` set, and some of them said twice."""
    given = {json.dumps(name): json.dumps(value) for name, value in (RECORD | {"sid": sid}).items()}
    doubled = fields[: len(fields) // 2]
    pairs = [*(given | dict(fields[len(fields) // 2 :])).items(), *doubled]
    return "{" + ", ".join(f"{name}: {value}" for name, value in pairs) + "}"


RECORD_TEXT = st.one_of(st.builds(record_text, st.sampled_from(CALLS), st.lists(FIELD, max_size=4)), VALUE)

_examples = count(1)


def named(text: str, number: int) -> str:
    """`text` with SIDs of this example's own instead of the placeholders, so that examples do not meet."""
    for index, placeholder in enumerate(CALLS):
        text = text.replace(placeholder, f"CA{number * 16 + index:032x}")
    return text


def listing(records: list[str]) -> bytes:
    """A page's body. Halves of pairs that stand for raw bytes become those, others the bytes they would be."""
    text = '{"calls": [' + ", ".join(records) + '], "next_page_uri": null}'
    with suppress(UnicodeEncodeError):
        return text.encode("utf-8", "surrogateescape")
    return text.encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def base(server_url: str, template: str) -> Iterator[tuple[Store, db.Connection]]:
    """A database for all examples: each has calls of its own."""
    with (
        new_database(server_url, template) as url,
        Store(url) as store,
        db.connect(url, purpose="test") as conn,
    ):
        yield store, conn


SETTINGS = settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])


@SETTINGS
@given(st.lists(RECORD_TEXT, max_size=6))
@example([record_text(CALLS[0], [('"from"', '"a\udcffb"')]), record_text(CALLS[1], [])])
@example([record_text(CALLS[0], [('"caller_name"', '"\udcff"'), ('"status"', '"on-hold"')]), record_text(CALLS[1], [])])
@example(
    [record_text(sid, [('"status"', f'"{status}"')]) for sid in CALLS[:1] for status in ("busy", "completed", "failed")]
)
def test_every_record_of_a_page_lands_or_is_kept(base, records):
    """Each record becomes an observation or a dead letter. All can be written; a second time writes nothing."""
    store, conn = base
    number = next(_examples)
    records = [named(record, number) for record in records]
    page = decode_page(listing(records), observed_at=SAID)
    assert len(page.observations) + len(page.dead_letters) == len(records)
    merged = store.commit_page(page.observations, origin=ORIGIN, now=NOW, dead_letters=page.dead_letters)
    sids = {observation.call_sid for observation in page.observations}
    assert merged.seen == merged.inserted == len(sids)
    assert known(conn, page.observations) == said(page.observations)
    kept = conn.execute(
        "SELECT count(*) FROM twilio_webhook_inbox WHERE dedupe_key = ANY(%s) AND error > ''",
        ([letter.dedupe_key for letter in page.dead_letters],),
    ).fetchone()
    assert kept == (len({letter.dedupe_key for letter in page.dead_letters}),)
    again = store.commit_page(page.observations, origin=ORIGIN, now=NOW, dead_letters=page.dead_letters)
    assert (again.inserted, again.updated, again.late) == (0, 0, 0)


def said(observations: list[Observation]) -> set[tuple[str, str]]:
    """The calls that were spoken of, each with the status it must end with, or any of several final ones."""
    best: dict[str, Status] = {}
    for observation in observations:
        if observation.call_sid not in best or RANK[observation.status] > RANK[best[observation.call_sid]]:
            best[observation.call_sid] = observation.status
    return set(best.items())


RANK = {status: min(rank, 4) for rank, status in enumerate(Status)}


def known(conn: db.Connection, observations: list[Observation]) -> set[tuple[str, str]]:
    """The rows of those calls."""
    sids = list({observation.call_sid for observation in observations})
    return set(conn.execute("SELECT twilio_sid, status FROM messages WHERE twilio_sid = ANY(%s)", (sids,)).fetchall())


@settings(max_examples=300)
@given(st.lists(RECORD_TEXT, max_size=4))
@example([record_text(CALLS[0], [('"caller_name"', '"\udcff"')])])
@example([record_text(CALLS[0], [('"\ud800"', "0")])])
def test_a_broken_neighbour_changes_no_record(records):
    """A page that is read in one go and the same page with a record that forces the slow way say the same."""
    records = [named(record, 1) for record in records]
    alone, beside = (decode_page(listing(page), observed_at=SAID) for page in (records, [*records, "{}"]))
    assert beside.observations == alone.observations
    assert beside.dead_letters[:-1] == alone.dead_letters


@settings(max_examples=300)
@given(st.lists(RECORD_TEXT, min_size=1, max_size=3), st.binary(max_size=3), st.integers(0, 10_000))
def test_bytes_put_into_a_page_are_survived(records, noise, place):
    """A page, or worth asking again; never anything else."""
    body = listing([named(record, 1) for record in records])
    place %= len(body)
    with suppress(Unavailable):
        page = decode_page(body[:place] + noise + body[place + 1 :], observed_at=SAID)
        assert all(letter.reason for letter in page.dead_letters)


# --- forms

FORM = {
    "CallSid": CALLS[0], "AccountSid": ACCOUNT, "CallStatus": "completed", "Direction": "inbound",
    "From": "+15005550100", "To": "+15005550101", "CallDuration": "27", "Duration": "1", "Timestamp": END,
    "SequenceNumber": "3",
}  # fmt: skip
DIAL = {"DialCallSid": CALLS[1], "DialCallStatus": "answered", "DialCallDuration": "7"}
PAIR = st.tuples(st.sampled_from([*FORM, *DIAL, "ParentCallSid", "AnsweredBy"]) | TEXT, TEXT)
EVENT_TYPE = st.sampled_from(["call-status", "call-inbound", "dial-action"])


@st.composite
def posts(draw: st.DrawFn) -> tuple[str, bytes]:
    """An event type, and a body as a stranger may post it."""
    event_type = draw(EVENT_TYPE)
    form = FORM | {"CallSid": draw(st.sampled_from(CALLS)), "CallStatus": draw(st.sampled_from(STATUSES))}
    form |= DIAL if event_type == "dial-action" else {}
    form = dict(draw(st.permutations(list(form.items()))))
    pairs = [*form.items(), *draw(st.lists(PAIR, max_size=3))]
    return event_type, urlencode(pairs, errors="surrogatepass").encode()


def received(body: bytes, *, repeated: bool) -> dict[str, Any]:
    """Return a form as a web framework reads it: of a repeated name the last value, or all of them in a list.

    Bytes that are no UTF-8 are replaced; NUL is left out, for jsonb refuses it and the Viewer could not store it.
    """
    fields: dict[str, Any] = {}
    for name, value in parse_qsl(body.decode().replace("%00", ""), keep_blank_values=True, errors="replace"):
        fields[name] = [fields[name], value] if repeated and name in fields else value
    return fields


@SETTINGS
@given(st.lists(posts(), min_size=1, max_size=6), st.booleans())
def test_every_form_is_an_event_or_nothing_or_a_dead_letter(base, sent, repeated):
    """A readable form is an event of its call; any other is a dead letter with a reason."""
    store, conn = base
    number = next(_examples)
    expected: dict[str, Observation | str | None] = {}
    for place, (event_type, body) in enumerate(sent):
        payload = json.loads(named(json.dumps(received(body, repeated=repeated)), number))
        key = f"fuzz:{number}:{place}"
        received_at = SAID + timedelta(seconds=place)
        conn.execute(
            "INSERT INTO twilio_webhook_inbox (source, event_type, dedupe_key, payload, received_at)"
            " VALUES ('twilio_voice', %s, %s, %s::text::jsonb, %s)",
            (event_type, key, json.dumps(payload), received_at),
        )
        try:
            expected[key] = read_webhook(event_type, payload, received_at=received_at)
        except BadObservation as exc:
            expected[key] = str(exc)
    run_inbox(store, clock=lambda: NOW, grace=timedelta(0), batch=4)
    rows = conn.execute(
        "SELECT dedupe_key, CASE processing_status WHEN 'dead_letter' THEN error WHEN 'completed' THEN '' END"
        " FROM twilio_webhook_inbox WHERE dedupe_key = ANY(%s)",
        (list(expected),),
    ).fetchall()
    assert dict(rows) == {key: what if isinstance(what, str) else "" for key, what in expected.items()}
    observations = [what for what in expected.values() if isinstance(what, Observation)]
    told = conn.execute(
        "SELECT DISTINCT call_sid, event_status FROM call_events WHERE call_sid = ANY(%s)",
        (list({observation.call_sid for observation in observations}),),
    ).fetchall()
    assert set(told) == {(observation.call_sid, observation.status.value) for observation in observations}
    finals = {sid for sid, status in known(conn, observations) if RANK[Status(status)] == 4}
    assert finals == {o.call_sid for o in observations if RANK[o.status] == 4}


@settings(max_examples=300)
@given(
    st.dictionaries(
        st.sampled_from([*FORM, *DIAL, "ParentCallSid"]) | st.text(),
        TEXT | st.none() | st.booleans() | st.integers() | st.floats() | st.lists(TEXT) | st.dictionaries(TEXT, TEXT),
    ),
    EVENT_TYPE | st.just("recording-complete") | st.text(),
)
def test_a_payload_of_any_types_is_read_or_refused(payload, event_type):
    """Numbers where text belongs, lists, objects: an observation, nothing, or a reason that a log can bear."""
    try:
        observation = read_webhook(event_type, FORM | payload, received_at=SAID)
    except BadObservation as exc:
        assert str(exc).isprintable()
        return
    assert observation is None or observation.status in Status

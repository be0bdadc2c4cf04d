"""The log as monitoring reads it: events and their fields, one JSON object a line, no secret and no phone number."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import subprocess
import sys
import uuid
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

import reconciler
from reconciler import logs, masking
from reconciler.jobs.backfill import BackfillCounts
from reconciler.logs import EVENTS, get_logger
from reconciler.masking import bare_url, mask

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
NUMBER = "+12025550100"
SECRET = "0123456789abcdef-auth-token"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Logging set up as for a service; what it wrote. All is put back afterwards."""
    logging.captureWarnings(False)  # another test may have left it on
    root = logging.getLogger()
    before = (root.handlers[:], root.level, warnings.showwarning)
    stream = io.StringIO()
    logs.configure(form="json", level="info", pii="masked", stream=stream)
    yield stream
    logging.captureWarnings(False)
    root.handlers[:], root.level, warnings.showwarning = before
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """The objects written, one a line."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# Every emitted event against the list


def _emitted() -> Iterator[Any]:
    """Each call of a logger in the package, with its fields."""
    package = Path(reconciler.__file__).parent
    for path in sorted(package.rglob("*.py")):
        if "simulator" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr=level), args=[ast.Constant(value=str(event))], keywords=keywords
                ) if level in LEVELS:
                    names = [keyword.arg for keyword in keywords] + ["exception"] * (level == "exception")
                    yield pytest.param(event, names, id=f"{path.stem}:{node.lineno}:{event}")


EMITTED = list(_emitted())


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_event_names_are_a_noun_and_a_verb_in_the_past(event):
    """Monitoring filters on them: one form, for good."""
    assert re.fullmatch(r"[a-z]+\.[a-z_]*(ed|drift|gone|incomplete|stuck|stopping)", event)


@pytest.mark.parametrize(("event", "names"), EMITTED)
def test_every_emitted_event_is_documented_with_its_fields(event, names):
    """No field more, none less; fields given as a mapping (`**counts`) are held by a test of their own."""
    assert event in EVENTS
    documented = {*EVENTS[event]}
    if None in names:
        assert documented > set(names) - {None}
    else:
        assert documented == set(names)


def test_every_documented_event_is_emitted():
    """The list promises nothing that the code does not do."""
    assert set(EVENTS) == {param.values[0] for param in EMITTED}


def test_a_backfills_counts_are_the_fields_of_job_finished():
    """All of them, always, zeros included."""
    assert set(EVENTS["job.finished"]) == {*BackfillCounts().counts(), "lag_seconds"}


# The form of a line


def test_one_json_object_a_line_with_the_fields_of_the_design(stream):
    """Time in RFC 3339 and UTC, level, event, logger and the run's fields. A line break in a value breaks no line."""
    with structlog.contextvars.bound_contextvars(job="hot", account="AC1", run_id="r"):
        get_logger("reconciler.sync.fetch").warning("slice.failed", slice="a\nb", error="x", kind="Unavailable")
    get_logger("reconciler.database.store").info("database.reconnected")
    first, second = lines(stream)
    assert datetime.now(UTC).year == datetime.fromisoformat(first["timestamp"]).year
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", first.pop("timestamp"))
    assert {
        "level": "warning", "event": "slice.failed", "logger": "reconciler.sync.fetch", "job": "hot", "account": "AC1",
        "run_id": "r", "slice": "a\nb", "error": "x", "kind": "Unavailable",
    } == first  # fmt: skip
    assert {"timestamp", "level", "event", "logger"} == set(second)


def test_levels_below_the_one_asked_for_are_left_out(stream):
    """A backfill's gaps are debug, and many."""
    get_logger("x").debug("gap.filled")
    assert "" == stream.getvalue()


def test_values_of_any_type_make_a_line(stream):
    """Times, money, UUIDs and paths as their text; numbers, truth and null as themselves."""
    at = datetime(2026, 6, 10, tzinfo=UTC)
    get_logger("x").info(
        "job.started", a=at, b=Decimal("-0.00850"), c=uuid.UUID(int=5), d=Path("/tmp/x"), e=3, f=1.5, g=None, h=True,
        i=(1, {"x"}), j=MappingProxyType({1: at}), k=ValueError("no"), l=b"\xff",
    )  # fmt: skip
    [line] = lines(stream)
    assert ["2026-06-10 00:00:00+00:00", "-0.00850", str(uuid.UUID(int=5)), "/tmp/x"] == [line[k] for k in "abcd"]
    assert [3, 1.5, None, True, [1, ["x"]]] == [line[k] for k in "efghi"]
    assert {"1": str(at)} == line["j"]
    assert ("no", "b'\\xff'") == (line["k"], line["l"])


def test_library_lines_take_the_same_road(stream):
    """A library's warning becomes an object too; INFO lines hold URLs and are left out."""
    library = logging.getLogger("urllib3.connectionpool")
    library.info("GET /Calls.json?From=%s", NUMBER)
    library.warning("Retrying %s", f"/Calls.json?From={NUMBER}")
    [line] = lines(stream)
    del line["timestamp"]
    assert {"level": "warning", "event": "Retrying /Calls.json?From=***00", "logger": "urllib3.connectionpool"} == line


def test_nothing_goes_to_stdout():
    """Results own stdout; our lines, a library's and Python's warnings go to stderr, one object a line."""
    program = (
        "import logging, warnings\nfrom reconciler import logs\n"
        "logs.configure(form='auto', level='debug', pii='masked')\n"
        "logs.get_logger('x').error('job.failed')\nlogging.getLogger('y').error('no')\n"
        f"warnings.warn('beware of {NUMBER}')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "" == done.stdout
    written = [json.loads(line) for line in done.stderr.splitlines()]
    assert ["x", "y", "py.warnings"] == [line["logger"] for line in written]
    assert "beware of ***00" in written[2]["event"]


def test_a_console_gets_text_with_its_traceback(stream):
    """The same masking, and no warning of structlog's about how tracebacks are printed."""
    logs.configure(form="console", level="info", pii="masked", stream=stream)
    try:
        raise ValueError(NUMBER)
    except ValueError:
        get_logger("x").exception("program.failed", call=NUMBER)
    text = stream.getvalue()
    assert "program.failed" in text
    assert "ValueError: ***00" in text
    assert "2025550100" not in text


def test_a_console_gets_what_a_person_wants(stream):
    """No run, no module of ours and no zero in what a run counted; a library is named."""
    logs.configure(form="console", level="info", pii="masked", stream=stream)
    get_logger("reconciler.sync.run").info(
        "job.finished", job="hot", run_id="f00", calls_seen=3, retries=0, lag_seconds=0.0
    )
    get_logger("reconciler.jobs.cold").info("day.verified", day="2026-06-01", listed=0, held=0)
    logging.getLogger("urllib3").warning("no")
    ours, day, theirs = stream.getvalue().splitlines()
    assert re.fullmatch(r"\S+Z \[info\] job.finished           calls_seen=3 job=hot", ours)
    assert re.fullmatch(r"\S+Z \[info\] day.verified           day=2026-06-01 held=0 listed=0", day)
    assert "[urllib3]" in theirs


# Phone numbers


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (NUMBER, "***00"),
        (f"to {NUMBER}.", "to ***00."),
        (f"from={NUMBER}&to=+442071838750", "from=***00&to=***50"),
        ("From=%2B12025550100&x=1", "From=***00&x=1"),
        ("12025550100", "***00"),
        ("call of 12025550100.", "call of ***00."),
        ("12025550100: busy", "***00: busy"),
        ('{"from":12025550100}', '{"from":***00}'),
        ("tel:2025550100", "tel:***00"),
        ("x+12025550100", "x***00"),
        ("sip:alice@example.com", "sip:***"),
        ("sip:+12025550100@sip.example;user=phone", "sip:***;user=phone"),
        ("SIPS:bob@10.0.0.1:5061 hung up", "SIPS:*** hung up"),
        ("To=sip%3Aalice%40example.com&x=1", "To=sip%3A***&x=1"),
        ("'client:alice'", "'client:***'"),
        ('{"to": "client:bob", "a": 1}', '{"to": "client:***", "a": 1}'),
    ],
)
def test_numbers_and_names_are_masked(text, masked):
    """E.164 with and without its plus, SIP URIs, client names; also inside URLs and JSON."""
    assert masked == mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "CA01234567890123456789012345678901", "CA" + "0" * 32, "PACA00000000000000000000000000000050",
        "12345678-1234-1234-1234-123456789012", "9b2f8d1e-5b1a-4c1e-8a43-001234567890", "2026-06-10T20:11:27.123456Z",
        "2026-06-10T00:00:00Z/2026-06-11T00:00:00Z", "Tue, 10 Jun 2026 20:11:27 +0000", "2026-06-10 20:11:27+00:00",
        "123456789 calls", "0.1234567890123", "12345678901.5 seconds", "rest:" + "1" * 64, "client: hung up",
        "http_client:x", "127.0.0.1:54321",
    ],
)  # fmt: skip
def test_what_is_no_number_stays(text):
    """SIDs, tokens, UUIDs, times, counts and digests are what one searches the logs for."""
    assert text == mask(text)


@given(
    st.text(" ,;:.=\"'()/<>&?\n\t", max_size=3), st.from_regex(r"\+[1-9]\d{6,14}", fullmatch=True), st.text(max_size=5)
)
def test_no_e164_number_survives(before, number, after):
    """The surroundings do not matter, unless they make it another number."""
    if after[:1].isdigit():
        after = f" {after}"
    assert number[1:-2] not in mask(before + number + after)


@given(st.uuids(), st.from_regex("[0-9a-f]{16}|[0-9]{16}", fullmatch=True), st.datetimes(), st.integers(0, 2**128 - 1))
def test_ids_and_times_survive(uuid, run_id, moment, sid):
    """Their digits do not matter."""
    text = f"{uuid} {run_id} {moment.isoformat()} CA{sid:032x}"
    assert text == mask(text)


def test_numbers_are_masked_wherever_they_are(stream):
    """Event, values, keys, nested values, exceptions and tracebacks are masked."""
    try:
        raise ValueError(f"no {NUMBER} and sip:alice@example.com")
    except ValueError as error:
        get_logger("x").exception(
            f"spoke to {NUMBER}", a=[{"from": NUMBER}], b=(NUMBER, {NUMBER: "client:alice"}), c=error, d=Path(NUMBER),
            e={"deep": [[{NUMBER}]]}, f=NUMBER.encode(),
        )  # fmt: skip
    text = stream.getvalue()
    assert "2025550100" not in text
    assert "alice" not in text
    assert "ValueError: no ***00 and sip:***" in lines(stream)[0]["exception"]


def test_library_tracebacks_are_masked(stream):
    """They take the same road."""
    try:
        raise OSError(f"GET /Calls.json?To=client:alice&From={NUMBER}")
    except OSError:
        logging.getLogger("library").exception("failed for %s", NUMBER)
    assert "2025550100" not in stream.getvalue()
    assert "alice" not in stream.getvalue()
    assert "failed for ***00" == lines(stream)[0]["event"]


def test_plain_writes_numbers_but_never_secrets(stream):
    """RECONCILER_LOG_PII=plain is for debugging one call."""
    logs.configure(form="json", level="info", pii="plain", stream=stream)
    masking.protect(SECRET)
    get_logger("x").info("call.frozen_drift", number=NUMBER, secret=SECRET)
    assert (NUMBER, "[secret]") == (lines(stream)[0]["number"], lines(stream)[0]["secret"])


# Secrets


def test_secrets_are_redacted_wherever_they_are(stream):
    """Values, nested values, exceptions and library lines are redacted."""
    masking.protect(SECRET)
    try:
        raise ValueError(f"cannot connect with {SECRET!r}")
    except ValueError as error:
        get_logger("x").exception("job.failed", error=error, url=[f"https://AC:{SECRET}@api"])
        logging.getLogger("library").exception("Authorization: %s", SECRET)
    assert SECRET not in stream.getvalue()
    first, second = lines(stream)
    assert "cannot connect with '[secret]'" == first["error"]
    assert ["https://AC:[secret]@api"] == first["url"]
    assert "Authorization: [secret]" == second["event"]


@pytest.mark.parametrize("secrets", [("hunter22", "hunter22-and-more"), ("hunter22-and-more", "hunter22")])
def test_a_secret_inside_another_leaves_no_rest(stream, secrets):
    """The longer one first, in whatever order they were named."""
    for secret in secrets:
        masking.protect(secret)
    assert "[secret] [secret]" == masking.redact("hunter22-and-more hunter22")


def test_a_secret_that_looks_like_a_number_is_redacted_whole(stream):
    """Masking first would leave its last digits."""
    masking.protect("pass 12025550100")
    get_logger("x").info("job.failed", error="login with pass 12025550100 failed")
    assert "login with [secret] failed" == lines(stream)[0]["error"]


def test_what_is_too_short_to_be_a_secret_is_left_alone(stream):
    """A password of one letter would blacken every line."""
    masking.protect("a")
    assert "a gap" == masking.redact("a gap")


def test_a_console_gets_no_control_characters(stream):
    """A server's words move no cursor and set no title; JSON has escapes for them."""
    words = "no\x1b]0;title\x07 such\x9b31m role"
    logs.configure(form="console", level="info", pii="masked", stream=stream)
    get_logger("x").error("job.failed", error=words)
    assert not {"\x1b", "\x07", "\x9b"} & {*stream.getvalue()}
    stream.truncate(0)
    logs.configure(form="json", level="info", pii="masked", stream=stream)
    get_logger("x").error("job.failed", error=words)
    assert not {"\x1b", "\x07", "\x9b"} & {*stream.getvalue()}


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("https://hooks.example.com/a/b?token=x#rc=2", "https://hooks.example.com/a/b"),
        ("https://user:password@hooks.example.com:8443/x", "https://hooks.example.com:8443/x"),
        ("http://HOOKS.example.com", "http://hooks.example.com"),
        ("", ""),
        ("not a URL", ""),
        ("https://[", ""),
        ("https://host:port/", ""),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url, bare):
    """Login, query and fragment are removed; of a text that is no URL nothing is left."""
    assert bare_url(url) == bare
    assert len(bare_url(f"https://host/{1000 * 'x'}")) <= 500

"""`reconcile demo`, as a newcomer runs it: nothing set, nothing of theirs touched, nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import pytest

from reconciler.demo.compare import Row, State, compare, examine
from reconciler.simulator import SimulatedAccount
from tests.harness.demos import COMMAND, HOSTILE, environment, left_in
from tests.harness.names import NOW
from tests.harness.present import present


class Ran(NamedTuple):
    """The output of a run, and the files and processes that it left."""

    code: int
    out: str
    err: str
    left: Sequence[object]


@pytest.fixture(scope="module")
def ran() -> Ran:
    """The demonstration, once, into a pipe, with HOME empty and read-only."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder, tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o555)
        done = subprocess.run(
            COMMAND, env=environment(Path(folder), home), capture_output=True, text=True, timeout=300, check=False
        )
        return Ran(done.returncode, done.stdout, done.stderr, [*left_in(Path(folder)), *Path(home).iterdir()])


def test_it_ends_with_every_row_equal_to_twilio(ran):
    """Exit code 0, after a comparison of all fields that found no difference, and a second run that wrote nothing."""
    assert ran.code == 0, ran.err
    assert re.search(r"5,000 calls × 15 fields = 75,000 values: 0 differences", ran.out)
    assert re.search(r"right in every field +0 +5,000", ran.out)
    assert re.search(r"a second run: 0 written, \d+ requests", ran.out)
    assert "Every row equals Twilio's record" in ran.out


def test_it_shows_what_the_webhooks_lost(ran):
    """Some calls are missing, wrong and incomplete before, none after; the events and the money of them are there."""
    for state in ("missing", "wrong", "incomplete"):
        [(before, after)] = re.findall(rf"{state}: [\w ,]+? +([\d,]+) +([\d,]+) *\n", ran.out)
        assert before != "0" == after
    assert re.search(r"[\d,]+ created · [\d,]+ status_changed · [\d,]+ enriched", ran.out)
    assert re.search(r"0\.00000 USD known before, [1-9][\d,.]+ USD now", ran.out)


def test_it_says_what_to_type_next(ran):
    """The way on with one's own credentials."""
    for line in (
        "export DATABASE_URL=… TWILIO_ACCOUNT_SID=… TWILIO_AUTH_TOKEN=…",
        "reconcile check",
        "reconcile --since 7d --dry-run",
    ):
        assert f"\n  {line}" in ran.out


def test_it_reads_well_in_a_pipe(ran):
    """80 columns, no colours, no bar, no log line, no traceback."""
    assert not [line for line in ran.out.splitlines() if len(line) > 80]
    assert "\x1b" not in ran.out + ran.err
    assert "Traceback" not in ran.out + ran.err
    assert not re.search(r"\b(warning|error)\b", ran.err)


def test_it_masks_numbers_and_knows_no_secret(ran):
    """It shows the last two digits of a phone number, and none of the caller's settings."""
    assert "***" in ran.out
    assert not re.search(r"\+?\d{7,}", ran.out + ran.err)
    assert not [value for value in HOSTILE.values() if len(value) > 4 and value in ran.out + ran.err]


def test_it_leaves_nothing_behind(ran):
    """No file, no server, nothing in HOME."""
    assert ran.left == []


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", ["Nothing of yours", "PostgreSQL", "$ reconcile --since"])
def test_it_leaves_nothing_behind_when_ended_early(temporary, tmp_path, ending, after):
    """Ctrl-C stops the server and deletes its folder, while that server is starting too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits it if we ignore it
    try:
        process = subprocess.Popen(
            COMMAND, env={**environment(temporary, str(tmp_path)), "PYTHONUNBUFFERED": "1"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            assert any(after in line for line in present(process.stdout))
            os.killpg(process.pid, ending)  # to its children as well, as a terminal does
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "Traceback" not in err
    assert (130 if ending is signal.SIGINT else 143) == process.returncode
    assert left_in(temporary) == []


RIGHT = Row(
    "CA1", "AC1", None, "inbound", "completed", "+12025550100", "+13125550123", 30, Decimal("-0.00850"), "USD",
    NOW, NOW, None, NOW, {"queue_time": "0"},
)  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "state", "differing"),
    [
        (None, State.MISSING, Row._fields),
        (RIGHT._replace(status="ringing", price=None), State.WRONG, ("status", "price")),
        (RIGHT._replace(price=None, end_time=None), State.INCOMPLETE, ("price", "end_time")),
        (RIGHT, State.RIGHT, ()),
    ],
)
def test_a_row_is_missing_wrong_incomplete_or_right(ours, state, differing):
    """Wrong is a value that is not Twilio's, incomplete one that is not there."""
    compared = compare(ours, RIGHT)
    assert (state, differing) == (compared.state, compared.differing)


def test_a_zero_that_only_a_webhook_tells_is_no_difference():
    """A call canceled before it was dialled: REST says no duration, its webhook 0, and null replaces no value."""
    never_dialled = RIGHT._replace(status="canceled", duration=None, start_time=None, end_time=None, price=None)
    assert State.RIGHT is compare(never_dialled._replace(duration=0), never_dialled).state
    assert State.WRONG is compare(never_dialled._replace(duration=1), never_dialled).state
    assert State.WRONG is compare(RIGHT._replace(duration=0), RIGHT._replace(duration=None)).state


def test_rows_unknown_to_twilio_and_calls_without_a_row_are_differences():
    """Neither too few nor too many rows pass for equal; each counts with all its fields."""
    account = SimulatedAccount("AC" + 32 * "0", "token")
    account.generate(2, NOW, NOW.replace(hour=13))
    records = [call.render(int(NOW.timestamp()) + 90_000) for call in account.calls_at(NOW.replace(day=12))]
    comparison = examine([RIGHT], records)
    assert 3 * len(Row._fields) == comparison.differences == comparison.compared
    assert (comparison.strangers, comparison.held, comparison.states[State.MISSING]) == (1, 1, 2)

"""The log on a terminal: lines for people, made of the same events as the JSON."""

from __future__ import annotations

from contextlib import suppress

import pytest
from structlog import DropEvent

from reconciler.terminal.log_lines import LogLines

AT = {"timestamp": "2026-06-10T12:00:05.1Z", "level": "info"}
BAD = {**AT, "level": "warning"}


def told(event, **options):
    """Return the line for an event on a terminal of 80 columns."""
    return LogLines(width=lambda: 80, colours=False, **options)(None, "", event)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            {**AT, "event": "daemon.started", "version": "0.1.0", "http_port": 41371},
            "12:00:05 reconciler 0.1.0 starts; status page on port 41371",
        ),
        (
            {**AT, "event": "daemon.started", "version": "0.1.0", "http_port": None},
            "12:00:05 reconciler 0.1.0 starts",
        ),
        ({**AT, "event": "lead.acquired"}, "12:00:05 this daemon leads"),
        (
            {**BAD, "event": "twilio.retried", "job": "hot", "error": "HTTP 503", "attempt": 2, "wait_seconds": 0.9},
            "12:00:05 ! hot: twilio.retried: HTTP 503, try 2, again in 0.9 s",
        ),
        (
            {**BAD, "event": "job.missed", "job": "hot", "count": 1, "why": "overrun"},
            "12:00:05 ! hot: job.missed: overrun, count 1",
        ),
        (
            {**AT, "event": "gap.filled", "call_sid": "CA" + 32 * "a", "kind": "incomplete", "from_status": "busy",
             "to_status": "busy", "job": "warm"},
            "12:00:05 warm: incomplete call CAaaaa…aaaa filled, busy",
        ),
    ],
)  # fmt: skip
def test_an_event_is_told_in_words(event, line):
    """A warning keeps its name, by which the runbook finds it; the event comes before the numbers."""
    assert told(event) == line


def test_a_command_tells_its_failure_itself():
    """The error of its run stands in its last line; the daemon has no other line than that of the log."""
    failed = {**AT, "level": "error", "event": "job.failed", "job": "hot", "error": "HTTP 503", "kind": "Unavailable"}
    assert told(failed) == "12:00:05 ✗ hot: job.failed: HTTP 503, kind Unavailable"
    with pytest.raises(DropEvent):
        told(failed, says_failures=True)


@pytest.mark.parametrize("job", ["inbox", "freeze", "warm", "housekeeping", "webhooks"])
def test_a_run_that_found_nothing_is_no_line(job):
    """hot and cold have a line all the same: people want to see that they ran."""
    finished = {**AT, "event": "job.finished", "job": job, "calls_seen": 0, "duration_seconds": 0.02}
    with pytest.raises(DropEvent):
        told(finished)
    assert told({**finished, "job": "hot"}) == "12:00:05 hot: nothing new, 0.0 s"


def test_of_many_calls_a_few_are_named():
    """A torrent of them says nothing more; each run begins anew."""
    lines = LogLines(width=lambda: 80, colours=False)
    gone = {**BAD, "event": "call.gone", "job": "cold", "call_sid": "CA" + 32 * "a"}
    for run_id in ("1", "2"):
        said = []
        for _ in range(100):
            with suppress(DropEvent):
                said.append(lines(None, "", {**gone, "run_id": run_id}))
        assert said[:-1] == 5 * ["12:00:05 ! cold: call.gone: call sid CAaaaa…aaaa"]
        assert said[-1] == "12:00:05 ! cold: call.gone: more of them, which the result counts"

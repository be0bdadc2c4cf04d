"""The log for a person at a terminal: one short line for each event, and one line for each finished run.

    21:45:16 hot AC7e57…26c5: 13,818 read, 13,817 inserted, 12.4 s

Design rules
- Programs read JSON. These lines are for people, and may change. A warning or an error keeps the name of its event,
  because the runbook uses that name.
- The last line of a run counts the gaps that the run did not name, and the days that it proved complete.
- Lines are wrapped between words, so a SID is never split.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from structlog import DropEvent

from reconciler.wording import byte_size, counted, rough, short_sids

_LONG: Final = 10.0  # seconds: below this, tenths are shown

_SIGNS: Final = {"warning": ("! ", "\x1b[33m"), "error": ("✗ ", "\x1b[31m"), "critical": ("✗ ", "\x1b[31m")}
_DIM, _BOLD, _RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"
# The counts of a run, the most interesting first; counts of 0 are left out.
_COUNTS: Final = (
    ("calls_seen", "read"), ("inserted", "inserted"), ("imported", "imported"), ("updated", "updated"),
    ("frozen", "frozen"), ("gone", "gone"), ("drifted", "drifted"), ("dead_letters", "dead letters"),
    ("retries", "requests repeated"),
)  # fmt: skip
# Fields that are in the head of the line, or shown in another way.
_SHOWN_ELSEWHERE: Final = frozenset((
    "timestamp", "level", "event", "logger", "run_id", "job", "account", "exception", "twilio_request_id",
))  # fmt: skip
# Events of a daemon that are told in words. The others show their name and fields.
_IN_WORDS: Final = {
    "daemon.started": "reconciler {version} starts", "daemon.readied": "ready: database and Twilio answer",
    "lead.acquired": "this daemon leads", "daemon.stopping": "stops: finishes the pages in hand",
    "daemon.stopped": "stopped", "database.reconnected": "the database answers again",
}  # fmt: skip
# Events of which a run may log one for each of thousands of calls.
_EACH_CALL: Final = frozenset(("call.gone", "call.frozen_drift", "call.stuck", "record.dead_lettered"))
_CALLS_NAMED: Final = 5
# Fields that are sentences: they come first, without their name.
_SENTENCES: Final = ("error", "reason", "why")
# Jobs whose runs are not shown if they found nothing to do.
_QUIET: Final = frozenset(("inbox", "freeze", "warm", "housekeeping", "webhooks"))


class LogLines:
    """A structlog renderer. `width` returns the terminal's columns; None means that lines are not wrapped.

    A command `says_failures` itself: the error of its run is not told twice.
    """

    def __init__(self, *, width: Callable[[], int | None], colours: bool, says_failures: bool = False) -> None:
        self._command_says_it = says_failures
        self._width = width
        self._colours = colours
        self._gaps: Counter[str] = Counter()  # named by each run that is at work
        self._days: Counter[str] = Counter()  # proven by each
        self._calls: Counter[tuple[Any, str]] = Counter()  # events of `_EACH_CALL`, by run and name

    def __call__(self, _logger: object, _method: str, event: Mapping[str, Any]) -> str:
        """Render one event.

        Raises:
            DropEvent: the event is not shown to a person.

        """
        said = self._said(event)
        sign, colour = _SIGNS.get(str(event.get("level")), ("", ""))
        time = str(event.get("timestamp", ""))[11:19]
        whose = " ".join(part for part in (event.get("job"), short_sids(str(event.get("account") or ""))) if part)
        head = f"{sign}{whose}: " if whose else sign
        line = self._wrapped(f"{time} {head}{said}")
        if self._colours:
            line = f"{_DIM}{line[:8]}{_RESET}{line[8:]}"
            line = line.replace(f" {head}", f" {colour or _BOLD}{head}{_RESET}", 1) if head else line
        return f"{line}\n{event['exception']}" if "exception" in event else line

    def _said(self, event: Mapping[str, Any]) -> str:
        match event["event"]:
            case "job.finished":
                return self._finished(event)
            case "job.started":
                if int(event.get("slices") or 0) < 2:
                    raise DropEvent
                return f"begins, {event['slices']:,} slices to read"
            case "job.progressed":
                return f"{event['calls_seen']:,} read, {event['slices_done']:,} of {event['slices']:,} slices"
            case "gap.filled":
                return self._gap(event)
            case "tables.measured":
                return ", ".join(f"{k.removesuffix('_bytes')} {byte_size(v)}" for k, v in _rest(event).items())
            case "day.verified":
                self._days[str(event.get("run_id"))] += 1
                raise DropEvent
            case "daemon.started" if event.get("http_port"):
                return f"reconciler {event['version']} starts; status page on port {event['http_port']}"
            case name if name in _IN_WORDS:
                return _IN_WORDS[name].format(**event)
            case "job.failed" if self._command_says_it:
                raise DropEvent
            case name if name in _EACH_CALL:
                return self._one_of_many(name, event)
            case name:
                return self._plainly(name, event)

    def _plainly(self, name: str, event: Mapping[str, Any]) -> str:
        rest = _rest(event)
        said = [str(rest.pop(key)) for key in _SENTENCES if key in rest]
        said += [_field(key, value) for key, value in rest.items()]
        return f"{name}: {', '.join(said)}" if said else name

    def _finished(self, event: Mapping[str, Any]) -> str:
        run = str(event.get("run_id"))
        named, days = self._gaps.pop(run, 0), self._days.pop(run, 0)
        for name in _EACH_CALL:
            self._calls.pop((event.get("run_id"), name), None)
        gaps = sum(int(value or 0) for name, value in event.items() if name.startswith("gaps_"))
        parts = [f"{event[name]:,} {word}" for name, word in _COUNTS if event.get(name)]
        if gaps > named:
            parts.append(f"{gaps - named:,} more gaps filled" if named else f"{counted(gaps, 'gap')} filled")
        if days:
            parts.append(f"{counted(days, 'day')} proven complete")
        if not parts and event.get("job") in _QUIET:
            raise DropEvent
        seconds = float(event.get("duration_seconds") or 0)
        parts = parts or ["nothing new"]
        return f"{', '.join(parts)}, {f'{seconds:.1f} s' if seconds < _LONG else rough(seconds)}"

    def _one_of_many(self, name: str, event: Mapping[str, Any]) -> str:
        """Tell the first few events of a kind in a run; its result counts the others."""
        seen = self._calls[event.get("run_id"), name] = self._calls[event.get("run_id"), name] + 1
        if seen > _CALLS_NAMED + 1:
            raise DropEvent
        return self._plainly(name, event) if seen <= _CALLS_NAMED else f"{name}: more of them, which the result counts"

    def _gap(self, event: Mapping[str, Any]) -> str:
        self._gaps[str(event.get("run_id"))] += 1
        became = f"{event.get('from_status') or 'no row'} → {event.get('to_status')}"
        if event.get("from_status") == event.get("to_status"):
            became = str(event.get("to_status"))
        return f"{event['kind']} call {short_sids(str(event['call_sid']))} filled, {became}"

    def _wrapped(self, line: str) -> str:
        width = self._width()
        if width is None or len(line) <= width:
            return line
        return textwrap.fill(
            line, width, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False
        )  # fmt: skip


def _rest(event: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: v
        for k, v in event.items()
        if k not in _SHOWN_ELSEWHERE and not k.startswith("_") and v not in (None, "", [])
    }


def _field(name: str, value: object) -> str:
    match name:
        case "attempt":
            return f"try {value}"
        case "wait_seconds":
            return f"again in {_shown(value)} s"
        case _:
            return f"{name.replace('_', ' ')} {_shown(value)}"


def _shown(value: object) -> str:
    match value:
        case float():
            return f"{value:,.1f}"
        case int() if not isinstance(value, bool):
            return f"{value:,}"
        case dict():
            return ", ".join(f"{_shown(item)} {str(key).replace('_', ' ')}" for key, item in value.items())
        case list():
            return ", ".join(map(_shown, value))
    return short_sids(str(value))

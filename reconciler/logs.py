"""Structured logs on stderr: one JSON object a line, stable event names, no secrets and no plain phone numbers.

The steps of a line: `get_logger(__name__).info("noun.verb_past", field=…)` → the context bound for the run (job,
account, run_id) → time and level → secrets and numbers masked, in every value and traceback → JSON, or colours on a
terminal. Lines of libraries take the same steps.

- A warning: the program recovered by itself, or something should be looked at in the morning.
- An error: somebody must look now.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from functools import partial
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from reconciler.masking import mask, printable, redact

# Every event, with its fields besides timestamp, level, logger, job, account and run_id.
# docs/reference.md shows this list, and a test compares every emitted event with it.
EVENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "daemon.started": ("version", "http_port"),
    "daemon.readied": ("leads",),
    "daemon.failed": ("error", "kind", "hint"),
    "daemon.stopping": ("exit_code", "running"),
    "daemon.stopped": ("exit_code", "unfinished", "uptime_seconds"),
    "clock.stepped": ("seconds",),
    "clock.differed": ("seconds",),
    "cursor.corrected": ("until",),
    "login.refused": ("error", "hint", "wait_seconds"),
    "lead.acquired": (),
    "lead.dropped": ("error",),
    "configuration.reloaded": ("changed",),
    "configuration.refused": ("error", "hint"),
    "accounts.failed": ("error", "hint"),
    "migration.started": ("migrations", "hint"),
    "migration.applied": ("version", "name", "adopted", "duration_seconds"),
    "job.started": ("since", "until", "slices", "resumed"),
    "job.progressed": ("calls_seen", "slices_done", "slices"),
    "job.finished": (
        "calls_seen", "requests", "retries", "inserted", "updated", "unchanged", "gaps_missing", "gaps_stale",
        "gaps_incomplete", "gaps_conflict", "imported", "recordings_seen", "recordings_told", "recordings_deleted",
        "frozen", "drifted", "gone", "dead_letters", "lag_seconds", "duration_seconds",
    ),
    "job.failed": ("error", "kind", "will_retry_at"),
    "job.skipped": ("why",),
    "job.missed": ("count", "why"),
    "listing.disordered": (),
    "slice.failed": ("slice", "error", "kind"),
    "window.clamped": ("since", "retention_days"),
    "gap.filled": ("call_sid", "kind", "from_status", "to_status", "late_seconds"),
    "call.frozen_drift": ("call_sid", "fields"),
    "call.gone": ("call_sid",),
    "call.thawed": ("call_sid",),
    "call.stuck": ("call_sid", "account", "status", "open_seconds"),
    "recording.recovered": ("call_sid", "recording_sid", "late_seconds"),
    "recording.deleted": ("call_sid", "recording_sid"),
    "recordings.refused": ("error", "hint"),
    "day.verified": ("day", "listed", "held"),
    "day.incomplete": ("day", "listed", "held", "differences"),
    "day.price_drift": ("day", "billed_price", "held_price", "price_unit"),
    "record.dead_lettered": ("call_sid", "reason"),
    "record.deferred": ("call_sid", "reason"),
    "inbox.backlogged": ("pending", "oldest_seconds"),
    "inbox.pruned": ("rows",),
    "events.pruned": ("rows",),
    "evidence.refused": ("resource", "error", "hint"),
    "tables.measured": (
        "messages_bytes", "call_events_bytes", "inbox_bytes", "sync_state_bytes", "account_days_bytes",
        "twilio_budgets_bytes",
        "webhook_alerts_bytes", "endpoint_faults_bytes",
    ),
    "budget.unshared": ("error",),
    "engine.migrated": ("file",),
    "engine.retried": ("error", "wait_seconds"),
    "task.reclaimed": ("task", "worker"),
    "twilio.throttled": ("concurrency", "retry_after_seconds", "twilio_request_id"),
    "twilio.retried": ("error", "attempt", "wait_seconds"),
    "database.retried": ("error", "attempt", "wait_seconds"),
    "database.awaited": ("error",),
    "database.reconnected": (),
    "command.failed": ("error", "kind", "hint"),
    "program.failed": ("kind", "exception"),
}  # fmt: skip


_FIRST_FIELDS: Final = ("timestamp", "level", "event", "job", "account")


def get_logger(name: str) -> FilteringBoundLogger:
    """Return the logger of one module; `name` becomes the field `logger`."""
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger


def configure(
    *,
    form: str,
    level: str,
    pii: str,
    stream: TextIO | None = None,
    lines: structlog.typing.Processor | None = None,
) -> None:
    """Configure logging for the process.

    - `form`: json, console, or auto (console if `stream` is a terminal).
    - `pii`: masked or plain.
    - `lines`: renders an event on a console; without it structlog's own renderer does, without colours.
    """
    stream = stream or sys.stderr
    console = form == "console" or (form == "auto" and stream.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%SZ" if console else "iso", utc=True),
        structlog.processors.format_exc_info,
        _scrubber(masked=pii != "plain"),
        *([] if lines and console else [_shorten if console else _put_names_first]),
    ]
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if console:
        renderer = lines or structlog.dev.ConsoleRenderer(
            colors=False, pad_level=False, pad_event_to=22, exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=partial(_NamedLogger, stream),
        cache_logger_on_first_use=False,
    )
    _log_libraries(stream, level, shared, renderer)


def _log_libraries(
    stream: TextIO, level: str, shared: list[structlog.typing.Processor], renderer: structlog.typing.Processor
) -> None:
    """Have the lines of libraries take the same steps. Their INFO lines hold URLs, with phone numbers in filters."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    logging.captureWarnings(True)
    root.setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


class _NamedLogger(structlog.WriteLogger):
    def __init__(self, stream: TextIO, name: str) -> None:
        super().__init__(stream)
        self.name = name


def _add_logger_name(logger: Any, _: str, event: EventDict) -> EventDict:
    record = event.get("_record")  # set for a library's line, which comes through the standard library
    event["logger"] = record.name if record is not None else logger.name
    return event


def _shorten(_: Any, __: str, event: EventDict) -> EventDict:
    """Leave out control characters, the module, the run_id, and counts of zero."""
    event = {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}
    is_ours = str(event.get("logger")).startswith("reconciler")
    if is_ours:
        event = {key: value for key, value in event.items() if key not in ("logger", "run_id")}
    if event["event"] == "job.finished":
        event = {key: value for key, value in event.items() if value != 0}
    return event


def _put_names_first(_: Any, __: str, event: EventDict) -> EventDict:
    """Put the important fields first, because a terminal may cut the line off (`journalctl -o cat`)."""
    return {name: event[name] for name in _FIRST_FIELDS if name in event} | dict(event)


def _scrubber(*, masked: bool) -> structlog.typing.Processor:
    def scrub(value: object) -> object:
        match value:
            case None | bool() | int() | float():
                return value
            case str():
                # Secrets first: a secret that is partly masked would not be found.
                return mask(redact(value)) if masked else redact(value)
            case Mapping():
                return {scrub(key): scrub(item) for key, item in value.items()}
            case list() | tuple() | set() | frozenset():
                return [scrub(item) for item in value]
        return scrub(str(value))

    def processor(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for key, value in event.items():
            if not key.startswith("_") and key not in ("timestamp", "level"):
                event[key] = scrub(value)
        return event

    return processor

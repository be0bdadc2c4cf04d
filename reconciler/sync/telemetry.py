"""The log lines and metrics of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from reconciler import metrics
from reconciler.database.decisions import Decision, Merged
from reconciler.database.recordings import Told
from reconciler.logs import get_logger
from reconciler.model import DeadLetter, Gap, JobName, RecordingState
from reconciler.sync.counts import Counts, Outcome

GAPS_NAMED: Final = 5  # of each run; job.finished counts them all

log = get_logger(__name__)


class Labels(NamedTuple):
    """The labels of a job's metrics. `account` is empty for jobs of the whole database."""

    kind: str
    account: str


_shown: Final = set[Labels]()  # the labels whose metrics exist


def log_fields(job: JobName, account_sid: str | None) -> dict[str, str]:
    """Return the fields that every log line of a job has."""
    return {"job": job.kind} if account_sid is None else {"job": job.kind, "account": account_sid}


def report_page(
    merged: Merged, dead_letters: Sequence[DeadLetter] = (), *, named: int = 0, is_bulk: bool = False
) -> None:
    """Log the results of a page, after `named` gaps and recordings of this run.

    A run names its first few gaps and recordings. The others, and all those of bulk work, are logged at level debug.
    """
    for letter in dead_letters:
        log.warning("record.dead_lettered", call_sid=letter.call_sid, reason=letter.reason)
    for letter in merged.held:
        log.warning("record.deferred", call_sid=letter.call_sid, reason=letter.reason)
    names_left = 0 if is_bulk else max(0, GAPS_NAMED - named)
    for recording in merged.recordings:
        names_left -= _log_recording(recording, is_named=names_left > 0)
    is_debugging = log.is_enabled_for(logging.DEBUG)
    for decision in merged.decisions:
        if decision.action == "drift" and decision.is_news:
            log.warning("call.frozen_drift", call_sid=decision.call_sid, fields=sorted(decision.theirs or ()))
        elif decision.gap is not None and (names_left or is_debugging):
            _log_gap(decision, decision.gap, is_named=names_left > 0)
            names_left = max(0, names_left - 1)


def _log_recording(told: Told, *, is_named: bool) -> bool:
    """Log a recording that was told now; return whether it took one of the places for names."""
    if told.is_imported:
        return False
    fields: dict[str, Any] = {"call_sid": told.subject, "recording_sid": told.recording_sid}
    if told.state is RecordingState.DELETED:
        log.info("recording.deleted", **fields) if is_named else log.debug("recording.deleted", **fields)
        return is_named
    fields["late_seconds"] = round(told.late_seconds, 3)
    log.info("recording.recovered", **fields) if is_named else log.debug("recording.recovered", **fields)
    return is_named


def _log_gap(decision: Decision, gap: Gap, *, is_named: bool) -> None:
    fields = {
        "call_sid": decision.call_sid,
        "kind": gap.value,
        "from_status": decision.from_status,
        "to_status": decision.to_status,
        "late_seconds": decision.late_seconds,
    }
    if is_named:
        log.info("gap.filled", **fields)
    else:
        log.debug("gap.filled", **fields)


def log_failure(error: str, kind: str, *, retry_at: datetime | None) -> None:
    """Log that a run failed, and when the job runs next."""
    log.error("job.failed", error=error, kind=kind, will_retry_at=None if retry_at is None else retry_at.isoformat())


def show_counts(labels: Labels, now: datetime) -> None:
    """Create the metrics of a job at 0, before its first run counts.

    Prometheus' `increase()` does not see the first count of a counter that did not exist before. Until the job
    succeeds, its last success is the begin of its first run, `now`.
    """
    if labels in _shown:
        return
    _shown.add(labels)
    for outcome in Outcome:
        metrics.runs.labels(*labels, outcome)
    metrics.missed_runs.labels(*labels)
    metrics.last_success.labels(*labels).set(now.timestamp())
    _add_counts(Counts(), labels)


def forget_counts(account_sid: str) -> None:
    """Remove the metrics of an account whose jobs are no longer scheduled."""
    metrics.forget(account_sid)
    _shown.difference_update([labels for labels in list(_shown) if labels.account == account_sid])


def count_run(counts: Counts, labels: Labels, now: datetime) -> None:
    """Count a run that has ended."""
    metrics.runs.labels(*labels, counts.outcome).inc()
    metrics.run_seconds.labels(*labels).set(counts.seconds)
    metrics.lag.labels(*labels).set(counts.lag.total_seconds())
    _add_counts(counts, labels)
    if counts.outcome is Outcome.SUCCEEDED:
        metrics.last_success.labels(*labels).set(now.timestamp())


def _add_counts(counts: Counts, labels: Labels) -> None:
    metrics.calls_seen.labels(*labels).inc(counts.seen)
    for gap in Gap:
        metrics.gaps.labels(gap.value, *labels).inc(counts.gaps[gap])
    metrics.recordings_told.labels(*labels).inc(counts.recordings_told)
    metrics.drift.labels(labels.account).inc(counts.drifted)
    metrics.frozen.labels(labels.kind).inc(counts.frozen)
    metrics.dead_letters_found.labels(labels.kind).inc(counts.dead_letters)

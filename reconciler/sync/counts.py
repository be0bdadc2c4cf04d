"""The outcome and the counts of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any

from reconciler.database.decisions import Merged
from reconciler.errors import ExitCode
from reconciler.model import Gap, RecordingState


class Outcome(StrEnum):
    """The outcome of a run, as in the label `outcome` of reconciler_runs_total."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REFUSED = "refused"
    INTERRUPTED = "interrupted"
    SKIPPED = "skipped"  # another process runs the job


@dataclass(slots=True)
class Counts:
    """The counts of a run, in calls, and its outcome. `problem` is the reason why the run did not finish its work."""

    seen: int = 0
    inserted: int = 0
    updated: int = 0
    frozen: int = 0
    drifted: int = 0
    gone: int = 0
    dead_letters: int = 0
    gaps: Counter[Gap] = field(default_factory=Counter)
    imported: int = 0  # these would be gaps, but are older than the first look after the account
    recordings_seen: int = 0
    recordings_told: int = 0  # ready ones that nobody had told of before
    recordings_deleted: int = 0
    requests: int = 0
    retries: int = 0
    lag: timedelta = timedelta(0)  # from the newest time that the run covered to the run's end
    seconds: float = 0.0
    slices: int = 0  # in a sweep: UTC days and statuses
    slices_done: int = 0
    outcome: Outcome = Outcome.SUCCEEDED
    problem: str | None = None

    def count_page(self, merged: Merged, *, seen: int | None = None) -> None:
        """Add the counts of a page; `seen` if the run counts only some of the page's calls."""
        self.seen += merged.seen if seen is None else seen
        self.inserted += merged.inserted
        self.updated += merged.updated
        self.frozen += merged.frozen
        self.drifted += merged.drifted
        self.dead_letters += merged.dead_letters
        self.gaps.update(merged.gaps)
        self.imported += merged.imported
        self.recordings_told += merged.told(RecordingState.READY)
        self.recordings_deleted += merged.told(RecordingState.DELETED)

    @property
    def unchanged(self) -> int:
        """The number of calls whose rows already agreed with Twilio."""
        return max(0, self.seen - self.inserted - self.updated)

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a command for this run."""
        return self.usual_exit_code()

    def usual_exit_code(self) -> ExitCode:
        """Return the exit code that every kind of run has for its outcome and counts."""
        if self.outcome is Outcome.INTERRUPTED:
            return ExitCode.INTERRUPTED
        if self.outcome is Outcome.FAILED:
            return ExitCode.TRY_AGAIN
        return ExitCode.UNRECONCILED if self.drifted or self.dead_letters else ExitCode.DONE

    def counts(self) -> dict[str, Any]:
        """Return the fields of the log event `job.finished`, zeros included."""
        return {
            "calls_seen": self.seen,
            "requests": self.requests,
            "retries": self.retries,
            "inserted": self.inserted,
            "updated": self.updated,
            "unchanged": self.unchanged,
            **{f"gaps_{gap.value}": self.gaps[gap] for gap in Gap},
            "imported": self.imported,
            "recordings_seen": self.recordings_seen,
            "recordings_told": self.recordings_told,
            "recordings_deleted": self.recordings_deleted,
            "frozen": self.frozen,
            "drifted": self.drifted,
            "gone": self.gone,
            "dead_letters": self.dead_letters,
            "lag_seconds": round(self.lag.total_seconds(), 3),
            "duration_seconds": round(self.seconds, 3),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the result for `--json`; its shape is a contract."""
        return self.counts()

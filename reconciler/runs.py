"""One execution of a job: its run_id, its counts, its first and last log line, its outcome in `sync_state`."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from structlog.contextvars import bound_contextvars

from reconciler.errors import ExitCode, Retriable
from reconciler.logs import get_logger
from reconciler.model import DeadLetter, Gap
from reconciler.pacing import retrying
from reconciler.source import Source
from reconciler.store import Merged, Origin, Store

log = get_logger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class Totals:
    """What a run did, in calls."""

    seen: int = 0
    inserted: int = 0
    updated: int = 0
    frozen: int = 0
    drifted: int = 0
    dead_letters: int = 0
    gaps: Counter[Gap] = field(default_factory=Counter)
    requests: int = 0
    retries: int = 0
    lag: timedelta = timedelta(0)  # between the end of what was read and now
    seconds: float = 0.0

    def add(self, merged: Merged, *, seen: int | None = None) -> None:
        """Count a page; `seen` if not all of its calls are this one's to count."""
        self.seen += merged.seen if seen is None else seen
        self.inserted += merged.inserted
        self.updated += merged.updated
        self.frozen += merged.frozen
        self.drifted += merged.drifted
        self.dead_letters += merged.dead_letters
        self.gaps.update(merged.gaps)

    @property
    def unchanged(self) -> int:
        """Calls that were as Twilio says already."""
        return max(0, self.seen - self.inserted - self.updated)

    @property
    def exit_code(self) -> ExitCode:
        """How the run ended, for a shell."""
        return ExitCode.UNRECONCILED if self.drifted or self.dead_letters else ExitCode.DONE

    def counts(self) -> dict[str, Any]:
        """The counts of `job.finished`, zeros included."""
        return {
            "calls_seen": self.seen,
            "requests": self.requests,
            "retries": self.retries,
            "inserted": self.inserted,
            "updated": self.updated,
            "unchanged": self.unchanged,
            **{f"gaps_{gap.value}": self.gaps[gap] for gap in Gap},
            "frozen": self.frozen,
            "drifted": self.drifted,
            "dead_letters": self.dead_letters,
            "lag_seconds": round(self.lag.total_seconds(), 3),
            "duration_seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a job, while it runs."""

    job: str  # its name in sync_state
    origin: Origin
    store: Store
    stop: threading.Event
    clock: Callable[[], datetime]

    def persist(self, work: Callable[[], T]) -> T:
        """Do `work` on the store, again after a while when the database was away."""
        return retrying(self.stop, before_sleep=_announce)(work)

    def report(self, merged: Merged, dead_letters: Sequence[DeadLetter] = (), *, is_bulk: bool = False) -> None:
        """Log what a page found. A job that finds a few gaps names each; bulk work names them at level debug."""
        for letter in dead_letters:
            log.warning("record.dead_lettered", call_sid=letter.call_sid, reason=letter.reason)
        for decision in merged.decisions:
            if decision.action == "drift" and decision.is_news:
                log.warning("call.frozen_drift", call_sid=decision.call_sid, fields=sorted(decision.theirs or ()))
            elif decision.gap is not None:
                gap = {
                    "call_sid": decision.call_sid,
                    "kind": decision.gap.value,
                    "from_status": decision.from_status,
                    "to_status": decision.to_status,
                    "late_seconds": decision.late_seconds,
                }
                if is_bulk:
                    log.debug("gap.filled", **gap)
                else:
                    log.info("gap.filled", **gap)


@contextmanager
def run(
    job: str,
    *,
    kind: str,
    account_sid: str | None,
    store: Store,
    source: Source | None,
    totals: Totals,
    stop: threading.Event,
    clock: Callable[[], datetime],
) -> Iterator[Run]:
    """Surround one execution: binds job, account and run_id to the log, measures, says how it ended."""
    run_id = str(uuid.uuid4())
    requests, retries = (source.requests, source.retries) if source else (0, 0)
    started = time.monotonic()
    account = {} if account_sid is None else {"account": account_sid}
    with bound_contextvars(job=kind, **account, run_id=run_id):
        try:
            yield Run(job, Origin(f"reconcile_{kind}", run_id), store, stop, clock)
        except BrokenPipeError:
            raise  # whoever read the differences has seen enough
        except Exception as exc:
            log.error("job.failed", error=str(exc), kind=type(exc).__name__, will_retry_at=None)
            raise
        finally:
            totals.seconds = time.monotonic() - started
            if source is not None:
                totals.requests, totals.retries = source.requests - requests, source.retries - retries
        log.info("job.finished", **totals.counts())


def _announce(error: Retriable, attempt: int, wait: float) -> None:
    log.warning("database.retried", error=str(error), attempt=attempt, wait_seconds=round(wait, 3))

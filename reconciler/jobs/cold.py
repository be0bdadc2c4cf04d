"""The cold job: it proves for each UTC day that no call is missing, and keeps the proof.

Design rules
- cold reads every call of the last days, known or not, and once a week every call of the last weeks.
- Calls that a time filter cannot show are read first, by Status. Each belongs to a day, and the day's proof needs it.
  If not all of them could be read, days are merged but not proven.
- The proof of a day needs its whole listing. After a kill the sweep continues with the days that are not proven, each
  from its first page.
- The recordings of the window are read after its days, in parts if there are many, and complete the days' proofs.
- A sweep that began more than a day ago is begun again, and reaches back as far.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from reconciler import metrics
from reconciler.database.account_days import DayProof, sum_up
from reconciler.database.decisions import Merged
from reconciler.database.transaction import Transaction
from reconciler.errors import ExitCode, NotPermitted, Refused, Retriable, TwilioAnswerError, Unavailable
from reconciler.logs import get_logger
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts
from reconciler.sync.cursors import ColdCursor, SweepCursor
from reconciler.sync.day_proof import DayProofs
from reconciler.sync.fetch import Failed, Fetched
from reconciler.sync.order import Order
from reconciler.sync.recording_proof import RecordingProofs
from reconciler.sync.run import Run, run
from reconciler.sync.slices import (
    NEVER_DIALLED,
    OPEN,
    Slice,
    slice_by_status,
    slice_of_days,
    slice_of_recordings_up_to,
)
from reconciler.sync.sweep import describe, read, read_recordings
from reconciler.times import midnight, next_midnight, utc_days
from reconciler.twilio.listing import RETENTION
from reconciler.twilio.permissions import read_if_permitted

USUAL: Final = timedelta(days=3)
DEEP: Final = timedelta(days=35)
DEEP_EVERY: Final = timedelta(days=7)

_ONE_DAY: Final = timedelta(days=1)

log = get_logger(__name__)


@dataclass(slots=True)
class ColdCounts(Counts):
    """The counts of a sweep: calls, days that it proved complete or found incomplete, and days billed otherwise."""

    days_verified: int = 0
    days_incomplete: int = 0
    price_drifts: int = 0

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the command."""
        usual = self.usual_exit_code()
        is_unreconciled = self.days_incomplete or self.price_drifts
        return ExitCode.UNRECONCILED if usual is ExitCode.DONE and is_unreconciled else usual


def cold(context: JobContext) -> ColdCounts:
    """Read every call of the last 3 days, or in a deep sweep of the last 35, and prove the days that are over.

    - The option `deep` decides whether the sweep is deep. Without it, a sweep is deep a week after the last deep one.
    - After a longer pause the window reaches back to the end of the last sweep.
    - A UTC day that ended more than an hour before it was read is proven. Differences are in account_days and the log.

    Raises:
        ConfigError: the cursor cannot be right; nothing was read.
        Refused: Twilio or the database refused.
        Retriable: the database did not come back.
        JobHeld: another process runs this job.

    """
    with run(context, ColdCounts()) as this:
        last = this.read_cursor(ColdCursor) or ColdCursor(account=this.account.sid)
        sweep = _begin(last, context.options.deep, this.now())
        cursor = replace(last, sweep=sweep)
        problem = _Sweep(this, cursor, sweep).read_all()
        this.counts.lag = this.now() - sweep.until
        if not this.stop.is_set():
            this.fail(problem)
            if this.counts.problem is None:
                sweep.until = min(sweep.until, this.now())  # now that Twilio's clock is known
                this.keep_cursor(_finished(cursor, sweep))
        _show_days(this, sweep)
    return this.counts


def _begin(last: ColdCursor, deep: bool | None, now: datetime) -> SweepCursor:
    """Return the sweep that is under way since less than a day, extended to now, or a new one."""
    left = last.sweep or None  # UNSET if none is under way
    if left is not None and deep in (None, left.is_deep) and timedelta(0) <= now - left.begun_at < _ONE_DAY:
        left.until = now
        return left
    if deep is None:
        # Whole days are compared: a job that starts a little earlier than a week ago must not wait for its next run.
        deep = last.deep_at is None or (now.date() - last.deep_at.date()).days not in range(DEEP_EVERY.days)
    since = midnight(now) - (DEEP if deep else USUAL)
    if last.swept_at is not None:
        since = min(since, midnight(last.swept_at))
    since = max(since, next_midnight(now - RETENTION))
    return SweepCursor(since=since, until=now, begun_at=now, is_deep=deep, settled=[])


def _finished(cursor: ColdCursor, sweep: SweepCursor) -> ColdCursor:
    """Return the cursor after the sweep."""
    deep_at = sweep.until if sweep.is_deep else cursor.deep_at
    return replace(cursor, swept_at=sweep.until, deep_at=deep_at, sweep=UNSET)


class _Sweep:
    """A sweep that is being read: the slices by Status, the days, and the proofs of the days that are over."""

    def __init__(self, this: Run[ColdCounts], cursor: ColdCursor, sweep: SweepCursor) -> None:
        account_sid, window = this.account.sid, (sweep.since, sweep.until)
        days = [slice_of_days(account_sid, *day) for day in reversed(utc_days(*window))]
        self._this = this
        self._cursor = cursor
        self._settled = sweep.settled
        self._open = [slice_by_status(account_sid, status, *window) for status in OPEN]
        self._never_dialled = [slice_by_status(account_sid, status, *window) for status in NEVER_DIALLED]
        self._days = [day for day in days if not (_is_whole(day) and day.since.date() in self._settled)]
        self._whole_days = [day for day in self._days if _is_whole(day)]
        self._proofs = DayProofs(this, self._whole_days)
        self._recordings = slice_of_recordings_up_to(account_sid, sweep.since, sweep.until)
        whole_days = [day.since.date() for day in days if _is_whole(day)]
        self._recording_proofs = RecordingProofs(this, whole_days, cursor, on_proven=self._tell_proven)
        self._told: dict[date, bool] = {}  # the days that this run told of, and whether they are complete
        self._unread: dict[date, DayProof] = {}  # their recordings differed, and are not read yet
        self._may_prove = False
        this.counts.slices = len(self._open) + len(self._never_dialled) + len(self._days) + 1
        log.info(
            "job.started", since=sweep.since.isoformat(), until=sweep.until.isoformat(), slices=this.counts.slices,
            resumed=bool(sweep.settled),
        )  # fmt: skip

    def read_all(self) -> str | None:
        """Read and merge all slices, and prove the days that are over; return why a slice was not read, or None."""
        this = self._this
        failed = read(
            this,
            Order(self._never_dialled, first=self._open),
            move=self._move,
            on_page=self._proofs.note,
            is_bulk=True,
        )
        if self._is_away(failed) or this.stop.is_set():
            return describe(failed)
        self._may_prove = not failed
        usage_problem = self._read_usage() if self._may_prove and self._whole_days else None
        failed += read(this, Order(self._days), move=self._move, on_page=self._settle, is_bulk=True)
        if not this.stop.is_set():
            failed += self._read_recordings()
        return describe(failed + self._proofs.failed) or usage_problem

    def _read_recordings(self) -> list[Failed]:
        """Read the recordings of the window, and add them to the proofs of its days."""
        failed = read_recordings(
            self._this,
            [self._recordings],
            move=self._move,
            on_page=self._recording_proofs.note,
        )
        if failed is None:
            self._this.counts.slices_done += 1
        for proof in self._unread.values():
            self._tell(proof)
        return failed or []

    def _move(self, _: Fetched) -> AbstractContextManager[ColdCursor]:
        return nullcontext(self._cursor)

    def _is_away(self, failed: Sequence[Failed]) -> bool:
        have_all_failed = len(failed) == len(self._open) + len(self._never_dialled)
        return have_all_failed and isinstance(failed[-1].error, Unavailable)

    def _read_usage(self) -> str | None:
        """Read the usage records; return why that failed, or None, also if the credentials may not read usage."""
        first, last = self._whole_days[-1].since.date(), self._whole_days[0].since.date()
        session, account_sid = self._this.session, self._this.account.sid
        usage = partial(session.usage, account_sid, first, last)
        try:
            self._proofs.usage = read_if_permitted(session, account_sid, usage)
        except NotPermitted:
            return None
        except (Refused, Retriable, TwilioAnswerError) as exc:
            return f"usage was not read: {exc}"
        return None

    def _settle(self, item: Fetched, merged: Merged) -> None:
        self._proofs.note(item, merged)
        if item.next_uri is None and self._may_prove and (proof := self._proofs.prove(item.slice)):
            self._settled.append(proof.day)
            self._keep(proof)

    def _keep(self, proof: DayProof) -> None:
        """Write the proof and move the cursor in one commit, and log the proof."""

        def work(transaction: Transaction) -> DayProof:
            kept = transaction.keep_proof(proof)
            self._this.move_cursor(transaction, self._cursor)
            return kept

        kept = self._this.commit(work)
        if "recordings_unread" in kept.differences:
            self._unread[kept.day] = kept
        else:
            self._tell(kept)
        if "price_drift" in proof.differences:
            self._this.counts.price_drifts += 1
            log.warning(
                "day.price_drift", day=proof.day.isoformat(), billed_price=str(proof.billed_price),
                held_price=str(proof.held_price), price_unit=proof.price_unit,
            )  # fmt: skip

    def _tell_proven(self, proofs: Sequence[DayProof]) -> None:
        """Tell of the days whose recordings differ, or differed before."""
        for proof in proofs:
            was_unread = self._unread.pop(proof.day, None) is not None
            if was_unread or (not proof.is_complete and self._told.get(proof.day) is not False):
                self._tell(proof)

    def _tell(self, proof: DayProof) -> None:
        """Log whether a day is complete, and count it so. A day of which the calls were told is not counted twice."""
        counts, day = self._this.counts, proof.day.isoformat()
        self._told[proof.day] = proof.is_complete
        counts.days_incomplete = list(self._told.values()).count(False)
        counts.days_verified = len(self._told) - counts.days_incomplete
        if proof.is_complete:
            log.info("day.verified", day=day, listed=proof.listed, held=proof.held)
        else:
            log.error("day.incomplete", day=day, listed=proof.listed, held=proof.held, differences=proof.differences)


def _is_whole(slice_: Slice) -> bool:
    """Whether the slice is a whole UTC day. Such a day is over and can be proven."""
    return slice_.until - slice_.since == _ONE_DAY


def _show_days(this: Run[ColdCounts], sweep: SweepCursor) -> None:
    """Set the metrics about the days that a deep sweep covers."""
    account_sid, first = this.account.sid, (midnight(sweep.until) - DEEP).date()
    days = this.ask(partial(sum_up, account_sid=account_sid, first=first))
    metrics.incomplete_proofs.labels(account_sid).set(days.incomplete)
    metrics.price_drifts.labels(account_sid).set(days.price_drifts)
    if days.verified_until is not None:
        metrics.day_verified.labels(account_sid).set(days.verified_until.timestamp())

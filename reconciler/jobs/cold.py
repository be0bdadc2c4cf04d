"""The cold job: nothing was missed, and there is a record of it for each UTC day.

Design rules
- Every call of the last days is read, whatever we know of it; once a week of the last weeks.
- The calls that a time filter cannot show are read first, by Status: each belongs to a day, and the day's proof needs
  it. Where these could not all be read, days are merged and not proven.
- A day's whole listing is its proof. So a killed sweep goes on with the days it has not proven, and begins each of
  these from its first page.
- A sweep that was begun more than a day ago is begun anew, and reaches as far back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from psycopg.types.json import Jsonb

from reconciler import metrics
from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.database.transaction import Cursor, Merged, Transaction
from reconciler.errors import ExitCode, Refused, Retriable, TwilioAnswerError, Unavailable
from reconciler.logs import get_logger
from reconciler.model import Job
from reconciler.sync.day_proof import Days, Proof
from reconciler.sync.fetch import Fetched
from reconciler.sync.run import Run, Terms, Totals, run, usual_exit_code
from reconciler.sync.slices import LIVING, NEVER_DIALLED, Slice, slice_by_status, slice_of_days
from reconciler.sync.sweep import describe, work_through
from reconciler.times import midnight, next_midnight, utc_days
from reconciler.twilio.client import Session
from reconciler.twilio.listing import RETENTION

USUAL: Final = timedelta(days=3)
DEEP: Final = timedelta(days=35)
DEEP_EVERY: Final = timedelta(days=7)

_ONE_DAY: Final = timedelta(days=1)

log = get_logger(__name__)

_queries = db.load_queries("account_days")


@dataclass(slots=True)
class Swept(Totals):
    """What a sweep did: calls, and days that it proved, or found to be incomplete."""

    days_verified: int = 0
    days_incomplete: int = 0

    @property
    def exit_code(self) -> ExitCode:
        """How the run ended, for a shell."""
        usual = usual_exit_code(self)
        return ExitCode.UNRECONCILED if usual is ExitCode.DONE and self.days_incomplete else usual


@dataclass(slots=True)
class _Sweep:
    """The cursor: the window under way and the days that are settled, and until when the last sweeps read."""

    account_sid: str
    since: datetime
    until: datetime
    begun_at: datetime
    is_deep: bool
    settled: list[date] = field(default_factory=list)
    swept_at: datetime | None = None
    deep_at: datetime | None = None

    def as_json(self) -> dict[str, Any]:
        """The cursor while the sweep is under way."""
        return {
            **self._past(self.swept_at, self.deep_at),
            "sweep": {
                "since": self.since.isoformat(),
                "until": self.until.isoformat(),
                "begun_at": self.begun_at.isoformat(),
                "is_deep": self.is_deep,
                "settled": [day.isoformat() for day in self.settled],
            },
        }

    def finished(self) -> dict[str, Any]:
        """The cursor when it is done."""
        return self._past(self.until, self.until if self.is_deep else self.deep_at)

    def _past(self, swept_at: datetime | None, deep_at: datetime | None) -> dict[str, Any]:
        return {
            "account": self.account_sid,
            "swept_at": None if swept_at is None else swept_at.isoformat(),
            "deep_at": None if deep_at is None else deep_at.isoformat(),
        }


def cold(account_sid: str, *, job: Job, store: Store, source: Session, terms: Terms, deep: bool | None = None) -> Swept:
    """Read every call of the last 3 days, or with `deep` of the last 35, and prove the days that are over.

    `deep` None: when the last deep sweep was a week ago. After a longer pause the window reaches back to the end of the
    last sweep. Proven is each UTC day that ended more than an hour before it was read; what differs stands in
    account_days and in the log. A killed sweep goes on with the days it has not proven, each from its first page.

    Raises:
        Refused: Twilio or the database does.
        Retriable: the database stayed away.
        JobHeld: another process runs this job.

    """
    totals = Swept()
    with run(job, totals, account_sid=account_sid, store=store, source=source, terms=terms) as this:
        sweep = _begin(this.read_cursor(), account_sid, deep, now=this.now())
        window = (sweep.since, sweep.until)
        living = [slice_by_status(account_sid, status, *window) for status in LIVING]
        never_dialled = [slice_by_status(account_sid, status, *window) for status in NEVER_DIALLED]
        days = [slice_of_days(account_sid, *day) for day in reversed(utc_days(*window))]
        days = [day for day in days if not _is_settled(day, sweep)]
        log.info(
            "job.started", since=sweep.since.isoformat(), until=sweep.until.isoformat(),
            slices=len(living) + len(never_dialled) + len(days), resumed=bool(sweep.settled),
        )  # fmt: skip
        finished_days = [day for day in days if day.until - day.since == _ONE_DAY]
        proofs = Days(this, source, account_sid, finished_days)

        def move(_: Fetched) -> dict[str, Any]:
            return sweep.as_json()

        failed = work_through(this, never_dialled, living=living, source=source, move=move, on_page=proofs.note)
        may_prove = not failed and not this.stop.is_set()

        def settle(item: Fetched, merged: Merged) -> None:
            proofs.note(item, merged)
            if item.next_uri is None and may_prove and (proof := proofs.prove(item.slice)):
                sweep.settled.append(proof.day)
                _keep(this, proof, sweep)

        is_away = len(failed) == len(living) + len(never_dialled) and isinstance(failed[-1].error, Unavailable)
        usage_problem = None
        if not is_away and not this.stop.is_set():
            if may_prove and finished_days:
                usage_problem = _read_usage(source, account_sid, finished_days, proofs)
            failed += work_through(this, days, source=source, move=move, on_page=settle)
        totals.interrupted = this.stop.is_set()
        totals.lag = this.now() - sweep.until
        if not totals.interrupted:
            totals.problem = describe(failed + proofs.failed) or usage_problem
            if totals.problem is None:
                this.save_cursor(sweep.finished())
        _show(this, account_sid, sweep)
    return totals


def _begin(cursor: Mapping[str, Any] | None, account_sid: str, deep: bool | None, *, now: datetime) -> _Sweep:
    """The sweep that was left under way less than a day ago, extended to now; or a new one."""
    if cursor is None or cursor.get("account") != account_sid:
        cursor = {}
    swept_at, deep_at = _moment(cursor.get("swept_at")), _moment(cursor.get("deep_at"))
    left = cursor.get("sweep")
    if left and deep in (None, left["is_deep"]):
        since, begun_at = _moment(left["since"]), _moment(left["begun_at"])
        if since is not None and begun_at is not None and timedelta(0) <= now - begun_at < _ONE_DAY:
            settled = [date.fromisoformat(day) for day in left["settled"]]
            return _Sweep(account_sid, since, now, begun_at, left["is_deep"], settled, swept_at, deep_at)
    if deep is None:
        # In days, so that a job that starts a little earlier than a week ago is not put off to the next one.
        deep = deep_at is None or (now.date() - deep_at.date()).days not in range(DEEP_EVERY.days)
    since = midnight(now) - (DEEP if deep else USUAL)
    if swept_at is not None:
        since = min(since, midnight(swept_at))
    since = max(since, next_midnight(now - RETENTION))
    return _Sweep(account_sid, since, now, now, deep, swept_at=swept_at, deep_at=deep_at)


def _moment(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value).astimezone(UTC)


def _is_settled(slice_: Slice, sweep: _Sweep) -> bool:
    return slice_.until - slice_.since == _ONE_DAY and slice_.since.date() in sweep.settled


def _read_usage(source: Session, account_sid: str, days: list[Slice], proofs: Days) -> str | None:
    """Ask how many calls were billed; returns why that is not known, unless the key may not read usage."""
    try:
        proofs.billed = source.billed_calls(account_sid, days[-1].since.date(), days[0].since.date())
    except Refused:
        return None
    except (Retriable, TwilioAnswerError) as exc:
        return f"usage was not read: {exc}"
    return None


def _keep(this: Run, proof: Proof, sweep: _Sweep) -> None:
    """Write the proof and move the cursor in one commit, and say what was proven."""

    def work(transaction: Transaction) -> None:
        params = {**proof._asdict(), "differences": Jsonb(proof.differences)}
        transaction.conn.execute(_queries["keep_proof"], params)
        transaction.save_cursor(Cursor(this.job, sweep.as_json()), now=this.now())

    this.persist(lambda: this.store.atomically(work))
    assert isinstance(this.totals, Swept)
    if proof.is_complete:
        this.totals.days_verified += 1
        log.info("day.verified", day=proof.day.isoformat(), listed=proof.listed, held=proof.held)
    else:
        this.totals.days_incomplete += 1
        log.error(
            "day.incomplete", day=proof.day.isoformat(), listed=proof.listed, held=proof.held,
            differences=proof.differences,
        )  # fmt: skip


def _show(this: Run, account_sid: str, sweep: _Sweep) -> None:
    """Set the metrics of the days that deep sweeps prove."""
    params = {"account_sid": account_sid, "first": (midnight(sweep.until) - DEEP).date()}
    [(incomplete, verified_until)] = this.ask(_queries, "sum_up", params)
    metrics.incomplete_proofs.labels(account_sid).set(incomplete)
    if verified_until is not None:
        metrics.day_verified.labels(account_sid).set(verified_until.timestamp())

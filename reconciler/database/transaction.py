"""One transaction: it merges observations into rows and events, and writes dead letters, proofs and the job's cursor.

The merge rules are one statement, `merge_staged` in queries/merge.sql. `staging` brings its input, and this module
counts its output.

Design rules
- A page is staged and merged, and its cursor saved, in one transaction. A kill loses all of it or nothing.
- The cursor of a job moves only for the run that took the job over last: each take-over raises the term in the
  cursor's row. A process that was stopped meanwhile finds another term, and its transaction writes nothing.
- The merge decides on its snapshot, and writes only rows that have not changed since. Otherwise it raises Contended,
  and the store merges the whole page again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final, Generic, NamedTuple, TypeVar

import psycopg

from reconciler.database import connection as db
from reconciler.database import recordings as recording_rows
from reconciler.database import retention, staging, webhook_evidence
from reconciler.database.account_days import DayProof, keep_proof
from reconciler.database.decisions import WRITES, Decision
from reconciler.database.events import require_events
from reconciler.database.inbox import InboxRows
from reconciler.database.recordings import RecordingProof, Told
from reconciler.database.retention import Pruned
from reconciler.database.webhook_evidence import AlertCount, EndpointFault
from reconciler.errors import Contended, JobHeld
from reconciler.model import Gap, JobName, Observation, Recording, Said

T = TypeVar("T")
X = TypeVar("X")

# A notification names at most so many changed calls: 200 SIDs take 7,600 of the 8,000 bytes that PostgreSQL allows
# (https://www.postgresql.org/docs/current/sql-notify.html).
NOTIFIED_AT_MOST: Final = 200

# Attempts for a single call. If it fails so often in a row within milliseconds, the cause is a trigger.
SINGLE_ATTEMPTS: Final = 3

_merge = db.load_queries("merge")
_messages = db.load_queries("messages")
_sync_state = db.load_queries("sync_state")
_inbox = db.load_queries("inbox")
_thaw = db.load_queries("thaw")


class Rules(NamedTuple):
    """The two durations that the merge rules depend on."""

    webhook_grace: timedelta = timedelta(seconds=60)
    freeze_after: timedelta = timedelta(hours=24)


class Origin(NamedTuple):
    """The origin of observations: `source`, as in call_events, and the run.

    A status that was reached before `imported_before` is imported, not lost: nobody looked after the account then.
    """

    source: str
    run_id: str
    imported_before: datetime | None = None


class Cursor(NamedTuple):
    """A job's cursor as JSON text, to commit with the rows that it covers."""

    job: JobName
    json: str


# Entered when all rows of a transaction are written, and left after its commit, with the error if it failed. It yields
# the cursor that commits with the rows, or None.
Move = Callable[[], AbstractContextManager[Cursor | None]]


@dataclass(frozen=True, slots=True)
class Hold:
    """A job that a run has taken over, and the term of that.

    `cursors` are the values that the job's cursor may have: the one last confirmed, and each one sent since without a
    confirmation. Another value means that the server has lost commits, after a crash with synchronous_commit off or in
    a failover. A cursor moved on from there would pass over their rows.
    """

    job: JobName
    term: int
    cursors: list[str]  # JSON


class Bisected(NamedTuple, Generic[T, X]):
    """The written results, and the items that were refused or locked by another session, each with the reason."""

    written: list[T]
    refused: list[tuple[X, str]]
    held: list[tuple[X, str]]


class Transaction:
    """One transaction's writes. `changed`: the SIDs of the calls it wrote, except those of a brief merge.

    `until_committed` is closed after the commit. `hold` is the job that the run has taken over, if any.
    """

    def __init__(self, conn: db.Connection, rules: Rules, hold: Hold | None, until_committed: ExitStack) -> None:
        self._conn = conn
        self.inbox = InboxRows(conn)
        self.changed: list[str] = []
        self._rules = rules
        self._hold = hold
        self._until_committed = until_committed
        self._is_staging_empty = True

    def apply(
        self, observations: Sequence[Observation], *, origin: Origin, now: datetime, is_brief: bool = False
    ) -> list[Decision]:
        """Merge `observations` into rows and events; return the decisions. A call may occur several times.

        Raises:
            Contended: another writer changed a row between our decision and our write.
            TableFault: a trigger keeps events away.

        """
        decisions: list[Decision] = []
        for round_ in staging.one_per_call(observations):
            decisions += self._merge_round(round_, origin=origin, now=now, apply=True, is_brief=is_brief)
        self.changed += (d.call_sid for d in decisions if d.action in WRITES and d.call_sid)
        return decisions

    def write(
        self, items: Sequence[Said], *, origin: Origin, now: datetime, is_brief: bool = False
    ) -> list[Decision | Told]:
        """Merge the observations among `items`, see `apply`; write the events of recordings, and fill recording_url."""
        recordings = [item for item in items if isinstance(item, Recording)]
        observations = [item for item in items if isinstance(item, Observation)]
        decisions = self.apply(observations, origin=origin, now=now, is_brief=is_brief)
        told = recording_rows.tell(self._conn, recordings, **origin._asdict(), now=now)
        self.changed += recording_rows.fill_urls(self._conn, recordings, now=now)
        return [*decisions, *told]

    def bisect_refused(
        self, items: Sequence[X], write: Callable[[Sequence[X]], Sequence[T]], *, sets_aside: bool = False
    ) -> Bisected[T, X]:
        """Write `items`. If that fails, halve them until the items to blame are found.

        - An item that PostgreSQL refuses leaves nothing behind.
        - With `sets_aside`, an item that another session locks is found in the same way.
        - `write` may raise Contended if a row was not written as decided.
        """
        attempts = SINGLE_ATTEMPTS if sets_aside and len(items) == 1 else 1
        for _ in range(attempts):
            try:
                with self._conn.transaction():  # a savepoint: locks that we took before stay
                    return Bisected(list(write(items)), [], [])
            except psycopg.Error as exc:
                reason = db.refusal(exc)
                is_passing = reason is None and db.is_contention(exc)
                if reason is None and not (sets_aside and is_passing):
                    raise
            except Contended:
                if not sets_aside:
                    raise
                # This is no lock, but a trigger that returns NULL, or a writer that is faster each time.
                reason, is_passing = "a trigger of this database lets the row not be written", False
        if len(items) == 1:
            why = [(items[0], reason or "another session holds the row")]
            return Bisected([], [], why) if is_passing else Bisected([], why, [])
        middle = len(items) // 2
        one = self.bisect_refused(items[:middle], write, sets_aside=sets_aside)
        other = self.bisect_refused(items[middle:], write, sets_aside=sets_aside)
        return Bisected(one.written + other.written, one.refused + other.refused, one.held + other.held)

    def preview(self, observations: Sequence[Observation], *, origin: Origin, now: datetime) -> list[Decision]:
        """Return the decisions and write nothing. If a call occurs twice, only its first observation is decided."""
        return [
            decision
            for round_ in list(staging.one_per_call(observations))[:1]
            for decision in self._merge_round(round_, origin=origin, now=now, apply=False)
        ]

    def mark_gone(self, call_sids: Sequence[str], *, origin: Origin, now: datetime) -> list[str]:
        """Mark calls as gone, once (rule 11); return the SIDs that were not marked before. No status changes."""
        params = {**origin._asdict(), "call_sids": sorted(call_sids), "now": now}
        return self._note_changed(self._conn.execute(_messages["mark_gone"], params))

    def fill_answered_by(self, observations: Sequence[Observation], *, origin: Origin, now: datetime) -> None:
        """Fill answered_by in rows that the merge did not change: machine detection may end after the call."""
        answers = [observation for observation in observations if observation.answered_by]
        if answers:
            params = {
                **origin._asdict(),
                "now": now,
                "call_sids": [answer.call_sid for answer in answers],
                "answers": [answer.answered_by for answer in answers],
                "said_ats": [answer.observed_at for answer in answers],
            }
            self._note_changed(self._conn.execute(_inbox["fill_answered_by"], params))

    def freeze_due(
        self,
        *,
        freeze_after: timedelta,
        ended_before: datetime,
        kept_since: datetime,
        warm_looks: Mapping[str, datetime],
        warm_is_everywhere: bool,
        limit: int,
        origin: Origin,
        now: datetime,
    ) -> list[str]:
        """Freeze calls that ended at `ended_before` or earlier, the oldest first; return their SIDs.

        - `warm_looks`: warm's last run by account. A call of these accounts freezes only if that run was
          `freeze_after` past its end.
        - `warm_is_everywhere`: warm covers all other accounts too, and has not run for them yet.
        """
        params = {
            **origin._asdict(),
            "now": now,
            "freeze_after": freeze_after,
            "ended_before": ended_before,
            "kept_since": kept_since,
            "accounts": list(warm_looks),
            "looked_at": list(warm_looks.values()),
            "is_anywhere": warm_is_everywhere,
            "batch": limit,
        }
        return self._note_changed(self._conn.execute(_messages["freeze_due"], params))

    def thaw(self, call_sid: str, *, origin: Origin, now: datetime) -> bool:
        """Open a frozen row, so that Twilio's current record counts as newer; return False if it is not frozen."""
        self._conn.execute(_thaw["open_door"])
        params = {**origin._asdict(), "call_sid": call_sid, "now": now}
        is_thawed = bool(self._note_changed(self._conn.execute(_thaw["thaw"], params)))
        self._conn.execute(_thaw["close_door"])
        return is_thawed

    def keep_proof(self, proof: DayProof) -> DayProof:
        """Write the proof of a day; see `account_days.keep_proof`."""
        return keep_proof(self._conn, proof)

    def keep_recording_proofs(self, proofs: Sequence[RecordingProof], *, account_sid: str) -> list[DayProof]:
        """Add the proofs of recordings to those of the same days' calls; see `recordings.keep_proofs`."""
        return recording_rows.keep_proofs(self._conn, proofs, account_sid=account_sid)

    def replace_alerts(
        self, counts: Iterable[AlertCount], *, account_sid: str, since: datetime, kept_since: datetime
    ) -> None:
        """Put `counts` in the place of all alerts that are known of the account from the hour of `since` on."""
        webhook_evidence.replace_alerts(self._conn, counts, account_sid=account_sid, since=since, kept_since=kept_since)

    def keep_faults(
        self, faults: Iterable[EndpointFault], *, account_sid: str, now: datetime, kept_since: datetime
    ) -> None:
        """Note which endpoints are at fault now."""
        webhook_evidence.keep_faults(self._conn, faults, account_sid=account_sid, now=now, kept_since=kept_since)

    def prune_inbox(self, *, place: datetime, before: datetime, limit: int) -> Pruned[datetime]:
        """Delete a batch of completed webhooks; see `retention.prune_inbox`."""
        return retention.prune_inbox(self._conn, place=place, before=before, limit=limit)

    def prune_events(self, *, place: int, before: datetime, limit: int) -> Pruned[int]:
        """Delete a batch of events; see `retention.prune_events`."""
        return retention.prune_events(self._conn, place=place, before=before, limit=limit)

    def move(self, move: Move, *, now: datetime) -> None:
        """Enter `move` until the commit, and move the cursor that it yields.

        Raises:
            JobHeld: see `move_cursor`.

        """
        cursor = self._until_committed.enter_context(move())
        if cursor is not None:
            self.move_cursor(cursor, now=now)

    def move_cursor(self, cursor: Cursor, *, now: datetime) -> None:
        """Move a cursor; that of the job that the run has taken over only from where the run left it, within its term.

        Raises:
            JobHeld: another process has taken over the job, or the server has lost commits of this run.

        """
        params = {"job": str(cursor.job), "cursor": cursor.json, "now": now}
        hold = self._hold
        if hold is None or hold.job != cursor.job:
            self._conn.execute(_sync_state["set_cursor"], params)
            return
        hold.cursors.append(cursor.json)
        self._until_committed.push(partial(_confirm, hold, cursor.json))
        if not self._conn.execute(
            _sync_state["move_cursor"], {**params, "term": hold.term, "expected": hold.cursors}
        ).rowcount:
            raise JobHeld(
                f"another process has taken over {cursor.job}, or the server has lost commits of this run",
                hint="the next run goes on from the cursor in sync_state",
            )

    def forget_jobs(self, names: Sequence[str]) -> None:
        """Delete the rows of slices that a backfill by a fleet has counted."""
        if names:
            self._conn.execute(_sync_state["forget_jobs"], {"names": list(names)})

    def forget_slices(self, account_sid: str) -> None:
        """Delete the rows of all slices that an earlier backfill by a fleet left of an account."""
        self._conn.execute(_sync_state["forget_slices"], {"account_sid": account_sid})

    def notify(self, channel: str) -> None:
        """Notify `channel` of the changed calls at the commit; if there are too many, only of their number."""
        if self.changed:
            calls = sorted(set(self.changed))
            payload = {"calls": calls} if len(calls) <= NOTIFIED_AT_MOST else {"calls": None, "count": len(calls)}
            self._conn.execute("SELECT pg_catalog.pg_notify(%s, %s)", (channel, json.dumps(payload)))

    def _note_changed(self, rows: Iterable[tuple[str, str | None]]) -> list[str]:
        """Add the SIDs that a statement returned to `changed`, and return them.

        Each comes with the key of its event, if the statement did not write that.

        Raises:
            TableFault: a trigger keeps events away.

        """
        changed = list(rows)
        require_events(self._conn, [dedupe_key for _, dedupe_key in changed if dedupe_key is not None])
        call_sids = [call_sid for call_sid, _ in changed]
        self.changed += call_sids
        return call_sids

    def _merge_round(
        self,
        observations: Sequence[Observation],
        *,
        origin: Origin,
        now: datetime,
        apply: bool,
        is_brief: bool = False,
    ) -> list[Decision]:
        staging.stage(self._conn, observations, is_first=self._is_staging_empty)
        self._is_staging_empty = False
        how = {"now": now, "apply": apply, "explain": not apply, "brief": is_brief}
        params = {**self._rules._asdict(), **origin._asdict(), **how, **staging.neighbourhood(observations)}
        rows = self._conn.execute(_merge["merge_staged"], params, prepare=True).fetchall()
        decisions = [Decision(sid, action, Gap(gap) if gap else None, *rest) for sid, action, gap, *rest, _, _ in rows]
        if apply and rows:
            *_, unwritten, written = rows[0]
            if written != sum(d.calls for d in decisions if d.action in WRITES):
                raise Contended("another writer changed a call between our decision and our write")
            require_events(self._conn, unwritten or ())
        return decisions


def _confirm(hold: Hold, cursor: str, error: type[BaseException] | None, *_: object) -> None:
    """Note that the cursor has this value, if its commit was confirmed."""
    if error is None:
        hold.cursors[:] = [cursor]

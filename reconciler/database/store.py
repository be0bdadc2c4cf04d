"""The store: the connection that merges and holds the lock of the job. It has transactions, cursors and outcomes.

Design rules
- The job's advisory lock lives on the connection that merges. A process that loses the lock loses its transaction.
- A run may merge on more connections. Their transactions prove by the term in the row of the cursor that the run still
  owns the job: each take-over raises the term, and waits for a transaction that has moved the cursor.
- A cursor moves only from where the run left it. A server that lost commits has an earlier one, and ends the run.
- If another writer was faster than our merge, or if PostgreSQL ended a deadlock by aborting us, the store merges the
  whole page again.
- A merge does not wait for a lock while it holds rows. It rolls back and begins again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, Self, TypeVar

import psycopg
from psycopg import errors as pg

from reconciler.database import connection as db
from reconciler.database import locks, staging
from reconciler.database.decisions import Decision, Merged
from reconciler.database.recordings import Told, tell
from reconciler.database.transaction import Cursor, Hold, Move, Origin, Rules, Transaction
from reconciler.errors import Contended, JobHeld, Outpaced, ReadOnlyDatabase, ReconcilerError, TableFault, Unavailable
from reconciler.logs import get_logger
from reconciler.model import DeadLetter, JobName, Observation, Recording, Said

# Another writer holds the same rows for milliseconds. To lose so often in a row has another cause.
MERGE_ATTEMPTS: Final = 10
# After so many attempts the page is halved, so that one call does not keep the others from being written.
PAGE_ATTEMPTS: Final = 5
_FIRST_PAUSE: Final = 0.05  # seconds; doubled each time
_LONGEST_PAUSE: Final = 0.5

# The merge must probe the unique index whatever the statistics are, also if its plan was made while the table was
# empty. JIT would take longer to compile the statement than the statement takes to run.
_MERGE_SESSION: Final = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_memoize": "off",  # each call is looked up once, so a cache never helps
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    # A stopped process (SIGSTOP, a frozen machine) keeps its connection and the lock of its job. The server ends both,
    # so that another process can take over. A process that only waited for Twilio for that long connects again.
    "idle_in_transaction_session_timeout": "30s",
    "idle_session_timeout": "60s",
    # The merge does not wait for a lock while it holds rows: it rolls back and merges again. Sessions that wait for us
    # continue, and a deadlock ends before PostgreSQL looks for one (deadlock_timeout, a second) and might abort the
    # Viewer.
    "lock_timeout": "200ms",
}

_FIRST_SOURCES: Final = ("reconcile_hot", "reconcile_warm", "reconcile_cold", "reconcile_backfill")

_IDLE: Final = 10.0  # seconds; a connection that was idle for longer is tested before it is used

log = get_logger(__name__)

T = TypeVar("T")

_sync_state = db.load_queries("sync_state")


class Store:
    """One connection that merges and holds the lock of a job. If it breaks, the next use reconnects and locks again.

    `channel` is notified of the calls that a commit changed. A store with an `owner` merges for the owner's run.

    Raises, from every method:
        Unavailable: the database is away; nothing was committed, so the method may be called again.
        Refused: the role lacks a privilege.
        JobHeld: another process has the lock.

    """

    def __init__(
        self, url: str, *, rules: Rules | None = None, channel: str | None = None, owner: Store | None = None
    ) -> None:
        self._url = url
        self._rules = rules or Rules()
        self._channel = channel
        self._owner = owner
        self._hold: Hold | None = None if owner is None else owner._hold
        self._was_connected = False
        self._locked_by: int | None = None  # pid of the server process that last took a lock for us
        self._used_at = 0.0
        self._conn: db.Connection | None = None

    def __enter__(self) -> Self:
        self._connected()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock and close the connection."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    @contextmanager
    def holding(self, job: JobName) -> Iterator[None]:
        """Hold the lock of `job` for as long as the context lasts."""
        try:
            with self.session() as conn:
                self._take_lock(conn, job)
                try:
                    self._hold = _take_over(conn, job)
                except psycopg.Error:
                    conn.close()  # this also releases the lock
                    raise
            yield
        finally:
            held, self._hold = self._hold, None
            if held is not None and self._conn is not None:
                try:
                    with self.session() as conn:
                        locks.release_advisory_lock(conn, str(job))
                except ReconcilerError:
                    self.close()  # this also releases the lock

    @contextmanager
    def mergers(self, count: int) -> Iterator[list[Store]]:
        """Lend `count` stores that merge for this one's run, itself included; fewer if the server has no place left.

        Each is for one thread at a time. A transaction of the others must move the job's cursor: that is its proof that
        the run still owns the job.
        """
        with ExitStack() as opened:
            stores = [self]
            while len(stores) < count:
                store = Store(self._url, rules=self._rules, channel=self._channel, owner=self)
                try:
                    stores.append(opened.enter_context(store))
                except Unavailable:
                    break
            yield stores

    def commit_page(
        self,
        observations: Sequence[Observation],
        *,
        origin: Origin,
        now: datetime,
        move: Move = nullcontext,
        dead_letters: Sequence[DeadLetter] = (),
        recordings: Sequence[Recording] = (),
        refuse: Callable[[Said, str], DeadLetter] | None = None,
        is_brief: bool = False,
    ) -> Merged:
        """Merge `observations`, tell `recordings`, keep dead letters and move the cursor, in one commit or not at all.

        With `is_brief` the result names only the calls that need attention, unless a channel is told of each.

        - PostgreSQL may refuse an observation, because the Viewer may have constraints and triggers of its own.
          `refuse` makes a dead letter of it, and the others are merged.
        - A call whose row another session keeps locked goes to the inbox, which tries it again.
        - If PostgreSQL refuses all observations of a page for the same reason, the table is to blame: the page fails.
        - Without `refuse` the whole page fails.

        Raises:
            Unavailable: another writer interfered in every attempt.
            TableFault: a table takes no row at all, none of a page, or a trigger withholds an event.

        """
        page = _Page([*observations, *recordings], origin, now, move, dead_letters, is_brief and self._channel is None)
        try:
            return self.atomically(page.write, attempts=MERGE_ATTEMPTS if refuse is None else PAGE_ATTEMPTS)
        except ReconcilerError as exc:
            is_outpaced = isinstance(exc, Outpaced)
            is_of_a_row = isinstance(exc.__cause__, psycopg.Error) and db.refusal(exc.__cause__) is not None
            if refuse is None or not (is_outpaced or is_of_a_row):
                raise
        return self.atomically(partial(page.write_apart, refuse=refuse, sets_aside=is_outpaced))

    def atomically(self, work: Callable[[Transaction], T], *, attempts: int = MERGE_ATTEMPTS) -> T:
        """Run `work` in one transaction and return its result; begin again if another writer interfered.

        Raises:
            Outpaced: another writer interfered `attempts` times in a row.

        """
        for attempt in range(attempts):
            try:
                with self.session() as conn, ExitStack() as until_committed, conn.transaction():
                    transaction = Transaction(conn, self._rules, self._hold, until_committed)
                    result = work(transaction)
                    if self._channel is not None:
                        transaction.notify(self._channel)
                return result
            except Contended:
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt)
                time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter, not cryptography
        raise Outpaced(f"another writer kept changing the same calls, {attempts} times in a row")

    def preview_page(
        self,
        observations: Sequence[Observation],
        *,
        origin: Origin,
        now: datetime,
        recordings: Sequence[Recording] = (),
        dead_letters: int = 0,
    ) -> Merged:
        """Return what `commit_page` would do, field by field; write nothing."""
        with self.session() as conn, ExitStack() as until_committed, conn.transaction(force_rollback=True):
            transaction = Transaction(conn, self._rules, self._hold, until_committed)
            decisions = transaction.preview(observations, origin=origin, now=now)
            told = tell(conn, recordings, **origin._asdict(), now=now, apply=False)
        return Merged.of(_count(observations), [*decisions, *told], dead_letters=dead_letters)

    def read_cursor(self, job: JobName) -> Any:
        """Return the cursor of `job` as JSON; None if it never moved."""
        with self.session() as conn:
            row = conn.execute(_sync_state["read_cursor"], {"job": str(job)}).fetchone()
        return (row[0] or None) if row else None

    def first_look(self, note: JobName, *, begins: bool, now: datetime) -> Any:
        """The note of when this installation first looked after an account, as JSON; None if it never did.

        If it never did and `begins`, it does from `now` on.
        """
        with self.session() as conn:
            found = conn.execute(_sync_state["read_cursor"], {"job": str(note)}).fetchone()
            if found is None and begins:
                params = {
                    "job": str(note),
                    "account_sid": note.account_sid,
                    "sources": list(_FIRST_SOURCES),
                    "now": now,
                }
                conn.execute(_sync_state["note_first_look"], params)
                found = conn.execute(_sync_state["read_cursor"], {"job": str(note)}).fetchone()
        return found[0] if found else None

    def read_cursors(self, kind: str) -> list[Any]:
        """Return the cursors of all jobs of a kind, as JSON."""
        with self.session() as conn:
            return [row[0] for row in conn.execute(_sync_state["cursors_of_kind"], {"kind": kind})]

    def progress_of(self, names: Sequence[str]) -> dict[str, tuple[Any, str | None]]:
        """Return the cursor, as JSON, and the last error of these jobs; those that have never run are left out."""
        with self.session() as conn:
            rows = conn.execute(_sync_state["progress_of"], {"names": list(names)}).fetchall()
        return {name: (cursor or None, error) for name, cursor, error in rows}

    def commit_cursor(self, cursor: Cursor, *, now: datetime) -> None:
        """Move a cursor in a commit of its own, without rows."""
        self.atomically(lambda transaction: transaction.move_cursor(cursor, now=now))

    def record_success(self, job: JobName, *, now: datetime) -> None:
        """Record that `job` finished its work at `now`."""
        with self.session() as conn:
            conn.execute(_sync_state["record_success"], {"job": str(job), "now": now})

    def record_failure(self, job: JobName, *, error: str, now: datetime) -> datetime | None:
        """Record that `job` failed at `now`; return the time of its last success. The cursor does not move."""
        with self.session() as conn:
            row = conn.execute(_sync_state["record_failure"], {"job": str(job), "error": error, "now": now}).fetchone()
        return row[0] if row else None

    @contextmanager
    def session(self) -> Iterator[db.Connection]:
        """Lend the connection. One that broke or became read-only is closed; the next use opens another and locks."""
        conn = self._connected()
        try:
            with db.translated():
                yield conn
        except ReadOnlyDatabase:
            self.close()
            raise
        finally:
            self._used_at = time.monotonic()
            if conn.broken:
                self.close()

    def _connected(self) -> db.Connection:
        if self._conn is not None and time.monotonic() - self._used_at > _IDLE and not db.is_alive(self._conn):
            self.close()
            self._was_connected = False  # the server may end an idle session, so this is not logged
        if self._conn is None or self._conn.closed:
            job = self._hold.job if self._hold is not None else None
            conn = db.connect(self._url, purpose=str(job or "job"), settings=_MERGE_SESSION)
            try:
                with db.translated():
                    if job is not None and self._owner is None:
                        self._take_lock(conn, job)
                    # The catalog may be locked for longer than the merge waits: autovacuum cuts its end off.
                    with conn.transaction():
                        conn.execute("SET LOCAL lock_timeout = '10s'")
                        staging.create(conn)
            except BaseException:
                conn.close()
                raise
            self._conn, self._used_at = conn, time.monotonic()
            if self._was_connected:
                log.info("database.reconnected")
            self._was_connected = True
        return self._conn

    def _take_lock(self, conn: db.Connection, job: JobName) -> None:
        pid = locks.try_advisory_lock(conn, str(job))
        if pid is None and self._locked_by is not None:
            if locks.holds_advisory_lock(conn, str(job), pid=self._locked_by):
                # The server may notice a cut connection late, after `idle_session_timeout` at the latest.
                raise Unavailable(f"the server has not noticed yet that our connection broke, and keeps {job} locked")
            pid = locks.try_advisory_lock(conn, str(job))  # our old session may have released it just now
        if pid is None:
            raise JobHeld(f"another process is running {job}", hint="wait for it, or stop it")
        self._locked_by = pid
        db.name_connection(conn, purpose=str(job))


def _take_over(conn: db.Connection, job: JobName) -> Hold:
    """Raise the term of a job whose lock `conn` has; without the lock it would take the job from its owner."""
    try:
        row = conn.execute(_sync_state["take_over"], {"job": str(job)}).fetchone()
    except pg.LockNotAvailable:
        locks.release_advisory_lock(conn, str(job))
        raise JobHeld(f"another process is still committing for {job}", hint="wait for it, or stop it") from None
    if row is None:
        raise db.unwritten("sync_state")
    term, cursor = row
    return Hold(job, term, [cursor])


@dataclass(frozen=True, slots=True)
class _Page:
    """What `commit_page` writes in one transaction."""

    items: Sequence[Said]
    origin: Origin
    now: datetime
    move: Move
    dead_letters: Sequence[DeadLetter]
    is_brief: bool

    def write(self, transaction: Transaction) -> Merged:
        """Write all items."""
        return self._finish(transaction, self._apply(transaction, self.items), [], [])

    def write_apart(
        self,
        transaction: Transaction,
        *,
        refuse: Callable[[Said, str], DeadLetter],
        sets_aside: bool,
    ) -> Merged:
        """Write what can be written. The rest become dead letters, or with `sets_aside` wait in the inbox.

        Raises:
            TableFault: all items were refused for the same reason.

        """
        found = transaction.bisect_refused(self.items, partial(self._apply, transaction), sets_aside=sets_aside)
        reasons = {reason for _, reason in found.refused}
        if len(found.refused) == len(self.items) > 1 and len(reasons) == 1:
            raise TableFault(
                f"the database refuses every record of a page alike: {reasons.pop()}",
                hint="look at the constraints and triggers of the table; the next run reads the page again",
            )
        refused, held = [refuse(*why) for why in found.refused], [refuse(*why) for why in found.held]
        return self._finish(transaction, found.written, refused, held)

    def _apply(self, transaction: Transaction, items: Sequence[Said]) -> list[Decision | Told]:
        return transaction.write(items, origin=self.origin, now=self.now, is_brief=self.is_brief)

    def _finish(
        self,
        transaction: Transaction,
        written: list[Decision | Told],
        refused: list[DeadLetter],
        held: list[DeadLetter],
    ) -> Merged:
        """Keep the dead letters, move the cursor, and count."""
        transaction.inbox.keep_dead_letters([*self.dead_letters, *refused], now=self.now)
        transaction.inbox.keep_for_retry(held, now=self.now)
        transaction.move(self.move, now=self.now)
        seen = _count([item for item in self.items if isinstance(item, Observation)])
        return Merged.of(seen, written, dead_letters=len(self.dead_letters), refused=refused, held=held)


def _count(observations: Sequence[Observation]) -> int:
    return len({observation.call_sid for observation in observations})

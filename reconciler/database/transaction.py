"""What one commit may hold: observations staged and merged into rows and events, dead letters, a cursor that moves.

The rules themselves are one statement, `merge_staged` in queries/merge.sql; here is only what surrounds it.

Design rules
- A page is staged, merged and its cursor saved in one transaction: a kill loses all of it or nothing.
- A cursor moves only from where this process left it. Whoever was stopped for so long that another took its place
  finds the cursor moved, and ends instead of setting it back.
- The merge decides on what its snapshot shows and writes only rows that still are so; else it is Contended, and the
  whole page is merged again from the start.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, TypeVar

import psycopg

from reconciler.database import connection as db
from reconciler.errors import Contended, JobHeld
from reconciler.model import DeadLetter, Gap, Observation

T = TypeVar("T")
X = TypeVar("X")

# Of the columns of staged_observations. COPY in binary form must name them, and costs us a quarter of what text costs.
_STAGED_TYPES: Final = (
    "text", "text", "text", "text", "text", "text", "text", "int8", "numeric", "text", "timestamptz", "timestamptz",
    "text", "timestamptz", "timestamptz", "timestamptz", "text",
)  # fmt: skip

# Of the calls a commit changed, as many are named in a notification; 200 SIDs take 7,600 of the 8,000 bytes allowed
# (https://www.postgresql.org/docs/current/sql-notify.html).
NOTIFIED_AT_MOST: Final = 200

_merge = db.load_queries("merge")
_messages = db.load_queries("messages")
_sync_state = db.load_queries("sync_state")
_inbox = db.load_queries("inbox")


class Rules(NamedTuple):
    """The two durations that the merge rules depend on."""

    webhook_grace: timedelta = timedelta(seconds=60)
    freeze_after: timedelta = timedelta(hours=24)


class Origin(NamedTuple):
    """Who saw the observations: `source` as it stands in call_events, and the run."""

    source: str
    run_id: str


class Cursor(NamedTuple):
    """A job's place in its work, committed with the rows it speaks of."""

    job: str
    value: dict[str, Any]


class Decision(NamedTuple):
    """What the merge decided about one observation that was not simply known already.

    `theirs` (the fields that differ, as Twilio says them) and `ours` (our row, empty if there is none) are
    there for a preview and for a drift only.
    """

    call_sid: str
    action: str  # insert, update, late (an event only) or drift (a frozen row that Twilio disagrees with)
    gap: Gap | None
    from_status: str | None
    to_status: str
    late_seconds: float
    freezes: bool
    is_news: bool  # False for a drift reported before
    theirs: dict[str, Any] | None
    ours: dict[str, Any] | None


@dataclass(slots=True)
class Merged:
    """What a merge did, in calls."""

    seen: int = 0
    inserted: int = 0
    updated: int = 0
    late: int = 0
    frozen: int = 0
    drifted: int = 0
    dead_letters: int = 0
    refused: list[DeadLetter] = field(default_factory=list)  # those of the dead letters that PostgreSQL refused
    gaps: Counter[Gap] = field(default_factory=Counter)
    decisions: list[Decision] = field(default_factory=list)

    @property
    def unchanged(self) -> int:
        """Calls that were as Twilio says already."""
        return self.seen - self.inserted - self.updated

    def add(self, other: Merged) -> None:
        """Add up what another merge did."""
        self.seen += other.seen
        self.count(other.decisions)

    def count(self, decisions: Iterable[Decision]) -> None:
        """Add up `decisions`."""
        for decision in decisions:
            self.decisions.append(decision)
            self.inserted += decision.action == "insert"
            self.updated += decision.action == "update"
            self.late += decision.action == "late"
            self.drifted += decision.action == "drift"
            self.frozen += decision.freezes and decision.action in ("insert", "update")
            if decision.gap is not None:
                self.gaps[decision.gap] += 1


class Transaction:
    """What may be done in one commit; `changed` are the calls it wrote, `cursors` where it left which job."""

    def __init__(self, conn: db.Connection, rules: Rules, cursors: Mapping[str, str | None]) -> None:
        self.conn = conn
        self.changed: list[str] = []
        self.cursors: dict[str, str | None] = {}
        self._rules = rules
        self._expected = cursors
        self._is_staging_empty = True

    def merge(self, observations: Sequence[Observation], *, origin: Origin, now: datetime) -> Merged:
        """Make rows and events of `observations`."""
        merged = Merged(seen=len({o.call_sid for o in observations}))
        for round_ in one_per_call(observations):
            merged.count(self._merge_round(round_, origin=origin, now=now, apply=True))
        self.changed += (d.call_sid for d in merged.decisions if d.action in ("insert", "update"))
        return merged

    def by_halves(
        self, items: Sequence[X], write: Callable[[Sequence[X]], T], refused: list[tuple[X, str]]
    ) -> Iterator[T]:
        """What `write` returns for `items`; if PostgreSQL refuses them, for each half, down to the one it refuses.

        That goes to `refused`, with the reason, and leaves nothing behind.
        """
        try:
            with self.conn.transaction():  # a savepoint: what is locked stays locked
                result = write(items)
        except psycopg.Error as exc:
            reason = db.refusal(exc)
            if reason is None:
                raise
        else:
            yield result
            return
        if len(items) == 1:
            refused.append((items[0], reason))
            return
        middle = len(items) // 2
        for half in (items[:middle], items[middle:]):
            yield from self.by_halves(half, write, refused)

    def preview(self, observations: Sequence[Observation], *, origin: Origin, now: datetime) -> Merged:
        """Decide and write nothing. Of a call said twice the first counts: the second has nothing to build on."""
        merged = Merged(seen=len({o.call_sid for o in observations}))
        for round_ in list(one_per_call(observations))[:1]:
            merged.count(self._merge_round(round_, origin=origin, now=now, apply=False))
        return merged

    def bury(self, letters: Sequence[DeadLetter], *, now: datetime) -> None:
        """Keep what cannot be read, each once."""
        for letter in letters:
            self.conn.execute(_inbox["bury"], {**letter._asdict(), "now": now})

    def mark_gone(self, call_sids: Sequence[str], *, origin: Origin, now: datetime) -> list[str]:
        """Note that Twilio has no such calls any more, once (rule 11); returns which were news. No status changes."""
        params = {**origin._asdict(), "call_sids": sorted(call_sids), "now": now}
        gone = [row[0] for row in self.conn.execute(_messages["mark_gone"], params)]
        self.changed += gone
        return gone

    def save_cursor(self, cursor: Cursor, *, now: datetime) -> None:
        """Move a cursor.

        Raises:
            JobHeld: it is not where this process read or left it.

        """
        value = json.dumps(cursor.value)  # as it is now: the caller's may go on changing
        params = {"job": cursor.job, "cursor": value, "now": now}
        if cursor.job not in self._expected:
            self.conn.execute(_sync_state["save_cursor"], params)
        else:
            expected = self.cursors.get(cursor.job, self._expected[cursor.job])
            if not self.conn.execute(_sync_state["move_cursor"], {**params, "expected": expected}).rowcount:
                raise JobHeld(
                    f"another process has moved the cursor of {cursor.job}", hint="its next run goes on there"
                )
        self.cursors[cursor.job] = value

    def notify(self, channel: str) -> None:
        """Tell `channel` which calls changed, when this commits; of too many only how many."""
        if self.changed:
            calls = sorted(set(self.changed))
            said = {"calls": calls} if len(calls) <= NOTIFIED_AT_MOST else {"calls": None, "count": len(calls)}
            self.conn.execute("SELECT pg_notify(%s, %s)", (channel, json.dumps(said)))

    def _merge_round(
        self, observations: Sequence[Observation], *, origin: Origin, now: datetime, apply: bool
    ) -> Iterator[Decision]:
        with self.conn.cursor() as cur:
            if not self._is_staging_empty:
                cur.execute(_merge["empty_staging"])
            self._is_staging_empty = False
            with cur.copy(_merge["copy_into_staging"]) as copy:
                copy.set_types(_STAGED_TYPES)
                for observation in observations:
                    copy.write_row(observation)
            cur.execute(
                _merge["merge_staged"],
                {**self._rules._asdict(), **origin._asdict(), "now": now, "apply": apply, "explain": not apply},
                prepare=True,
            )
            rows = cur.fetchall()
            if apply:
                decided = sum(row[1] in ("insert", "update") for row in rows)
                if rows and rows[0][-1] != decided:
                    raise Contended("another writer changed a call between our decision and our write")
        for sid, action, gap, *rest, _written in rows:
            yield Decision(sid, action, Gap(gap) if gap else None, *rest)


def one_per_call(observations: Sequence[Observation]) -> Iterator[list[Observation]]:
    """Cut `observations` into rounds that hold each call at most once, keeping each call's order.

    A listing may contain a call twice and an inbox holds several webhooks of one call, while one statement
    must not touch a row twice. Where no call repeats, there is one round.
    """
    rest: Sequence[Observation] = observations
    while rest:
        this_round: dict[str, Observation] = {}
        later: list[Observation] = []
        for observation in rest:
            if observation.call_sid in this_round:
                later.append(observation)
            else:
                this_round[observation.call_sid] = observation
        yield list(this_round.values())
        rest = later

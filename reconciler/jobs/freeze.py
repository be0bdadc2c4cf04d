"""The freeze job: what waited for its price long enough is frozen; a call that is open for too long is named, once.

The merge freezes what is complete; this job freezes what will not be, and needs nothing but the database.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from reconciler import metrics
from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.database.transaction import Transaction
from reconciler.logs import get_logger
from reconciler.model import Job
from reconciler.sync.cursors import parse_aware
from reconciler.sync.run import Run, Terms, Totals, run
from reconciler.twilio.listing import RETENTION

JOB: Final = Job("freeze")

BATCH: Final = 1000  # rows a commit
NAMED_AT_MOST: Final = 100  # stuck calls a run; the next one names the next
NEVER: Final = datetime.min.replace(tzinfo=UTC)

log = get_logger(__name__)

_queries = db.load_queries("messages")
_sync_state = db.load_queries("sync_state")


def freeze(
    store: Store,
    *,
    terms: Terms,
    freeze_after: timedelta,
    stuck_after: timedelta,
    looked_after: Collection[str] | None = (),
    batch: int = BATCH,
) -> Totals:
    """Freeze every call whose time is up, a batch a commit; name the calls that became stuck.

    A call that REST has confirmed, or that Twilio has no more, freezes `freeze_after` past its end, and where warm is
    at work not before it has looked since; one that only webhooks told of when Twilio no longer keeps it. Warm is at
    work where it has looked, and for the accounts `looked_after` (None: for all there are), where it soon will. Stuck
    is what is open for longer than `stuck_after`.

    Raises:
        Refused: the database role may not do this.
        Retriable: the database stayed away; what was committed stays frozen.
        JobHeld: another process runs this job.

    """
    totals = Totals()
    with run(JOB, totals, account_sid=None, store=store, source=None, terms=terms) as this:
        now = this.now()
        # A day more: Twilio counts its 400 days by a clock of its own.
        kept_since = now - RETENTION - timedelta(days=1)
        due = {
            "now": now,
            "frozen_since": now - freeze_after,
            "kept_since": kept_since,
            "batch": batch,
            **_read_looks(this, looked_after),
            **this.origin._asdict(),
        }
        while not this.stop.is_set() and _freeze_batch(this, due) >= batch:
            pass
        _name_stuck(this, now=now, stuck_since=now - stuck_after)
        _count(this, {"stuck_since": now - stuck_after, "kept_since": kept_since})
        totals.interrupted = this.stop.is_set()
    return totals


def _read_looks(this: Run, looked_after: Collection[str] | None) -> dict[str, Any]:
    """Until when warm has asked about each account's calls; a cursor that cannot be read is warm's to complain of."""
    looks = dict.fromkeys(looked_after or (), NEVER)
    for account_sid, text in this.ask(_sync_state, "warm_looks"):
        with suppress(TypeError, ValueError):
            looks[account_sid] = parse_aware(text)
    return {"accounts": list(looks), "looked_at": list(looks.values()), "is_anywhere": looked_after is None}


def _freeze_batch(this: Run, due: dict[str, Any]) -> int:
    def work(transaction: Transaction) -> int:
        frozen = [call_sid for (call_sid,) in transaction.conn.execute(_queries["freeze_due"], due)]
        transaction.changed += frozen
        return len(frozen)

    frozen = this.persist(lambda: this.store.atomically(work))
    this.totals.frozen += frozen
    return frozen


def _name_stuck(this: Run, *, now: datetime, stuck_since: datetime) -> None:
    """Log the calls that became stuck since the ones named last; the cursor holds when the last of those began."""
    cursor = this.read_cursor() or {}
    params = {"stuck_since": stuck_since, "named_since": cursor.get("named_since"), "batch": NAMED_AT_MOST}
    stuck = this.ask(_queries, "stuck_calls", params)
    if len(stuck) == NAMED_AT_MOST:
        # More may have begun in the same second as the last one; the next run names these together.
        stuck = [row for row in stuck if row[-1] < stuck[-1][-1]] or stuck
    for call_sid, account_sid, status, began_at in stuck:
        log.warning(
            "call.stuck", call_sid=call_sid, account=account_sid, status=status,
            open_seconds=round((now - began_at).total_seconds()),
        )  # fmt: skip
    if stuck:
        this.save_cursor({"named_since": stuck[-1][-1].isoformat()})


def _count(this: Run, params: dict[str, Any]) -> None:
    [counts] = this.ask(_queries, "count_open", params)
    gauges = (metrics.open_calls, metrics.stuck_calls, metrics.unfrozen_calls)
    for gauge, count in zip(gauges, counts, strict=True):
        gauge.set(count)

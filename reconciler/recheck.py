"""Looking again at calls we know, with as few requests as can be: a listing where many lie close, else one by one.

Design rules
- What a listing will cost is told by our own rows: we hold about as many calls of a window as Twilio lists.
- A call that Twilio does not know is gone, and no more than that (rule 11); one that was made a moment ago may only not
  have arrived everywhere yet (https://www.twilio.com/docs/voice/api/call-resource, "eventually consistent").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from reconciler import db
from reconciler.model import Observation
from reconciler.plan import describe
from reconciler.runs import Run
from reconciler.source import PAGE_SIZE, Listing, Source
from reconciler.sweep import MARGIN, Failed, Slice, fetch
from reconciler.times import midnight, next_midnight
from reconciler.wire import Page

SETTLED_AFTER: Final = timedelta(minutes=5)  # by then a call that was made is known everywhere at Twilio
_BATCH: Final = 100  # calls fetched one by one that are merged together

_queries = db.load_queries("messages")


class Known(NamedTuple):
    """A call of ours, and when it began as far as we know."""

    call_sid: str
    began_at: datetime


def read_known(this: Run, query: str, **params: object) -> list[Known]:
    """The calls that a query of queries/messages.sql names."""

    def read() -> list[Known]:
        with this.store.session() as conn:
            return [Known(*row) for row in conn.execute(_queries[query], params)]

    return this.persist(read)


def look_again(this: Run, source: Source, account_sid: str, wanted: Sequence[Known]) -> None:
    """Ask Twilio about each call of `wanted` and merge what it says; ends early when the run is stopped.

    To be called after a listing of the account was answered, see `Source.call`. What could not be listed is said in
    `totals.problem`.

    Raises:
        Refused: Twilio or the database does.
        Retriable: Twilio or the database stayed away.

    """
    seen: set[str] = set()
    slices = _worth_listing(this, account_sid, wanted)
    if slices:
        failed = []
        for item in fetch(source, slices, concurrency=source.pacer.ceiling, stop=this.stop):
            if isinstance(item, Failed):
                failed.append(item)
            else:
                seen.update(observation.call_sid for observation in item.page.observations)
                this.merge(item.page)
        this.totals.problem = describe(failed)
        if failed:
            return
    rest = [known for known in wanted if known.call_sid not in seen]
    for batch in _one_by_one(this, source, account_sid, rest):
        said: list[Observation] = []
        page = Page(said, [], None, this.now())
        gone = []
        for known, answer in batch:
            said += answer.observations
            page.dead_letters.extend(answer.dead_letters)
            is_unknown = not answer.observations and not answer.dead_letters
            if is_unknown and known.began_at < this.now() - SETTLED_AFTER:
                gone.append(known.call_sid)
        this.merge(page)
        this.mark_gone(gone)


def _worth_listing(this: Run, account_sid: str, wanted: Sequence[Known]) -> list[Slice]:
    """The windows, one of a UTC day at most, whose listing takes fewer requests than their calls would."""
    by_day: dict[datetime, list[datetime]] = defaultdict(list)
    for known in wanted:
        by_day[midnight(known.began_at)].append(known.began_at)
    slices = []
    for day, times in sorted(by_day.items(), reverse=True):
        since, until = min(times) - MARGIN, next_midnight(max(times) + timedelta(microseconds=1))
        if len(times) > 1 and len(times) > 1 + _count(this, account_sid, since, until) // PAGE_SIZE:
            listing = Listing(account_sid, since=since, until=until + MARGIN)
            slices.append(Slice(f"{day:%F}", listing, since, until + MARGIN, down_to=since - MARGIN))
    return slices


def _count(this: Run, account_sid: str, since: datetime, until: datetime) -> int:
    params = {"account_sid": account_sid, "since": since, "until": until}

    def count() -> int:
        with this.store.session() as conn:
            row = conn.execute(_queries["count_calls"], params).fetchone()
            return int(row[0]) if row else 0

    return this.persist(count)


def _one_by_one(
    this: Run, source: Source, account_sid: str, wanted: Sequence[Known]
) -> Iterator[list[tuple[Known, Page]]]:
    with ThreadPoolExecutor(source.pacer.ceiling, thread_name_prefix="fetch") as pool:
        for start in range(0, len(wanted), _BATCH):
            if this.stop.is_set():
                return
            batch = wanted[start : start + _BATCH]
            yield list(zip(batch, pool.map(lambda known: source.call(account_sid, known.call_sid), batch), strict=True))

"""Looking again at calls we know, with as few requests as can be: a listing where many lie close, else one by one.

Design rules
- What a listing will cost is told by our own rows: we hold about as many calls of a window as Twilio lists.
- A call that cannot be asked about keeps no other from being asked about.
- A call that Twilio does not know is gone, and no more than that (rule 11); one that was made a moment ago may only not
  have arrived everywhere yet (https://www.twilio.com/docs/voice/api/call-resource, "eventually consistent").
- A stray is a call whose account nobody named, where there are several. That one account does not know it says nothing:
  the listing of the account it belongs to will find it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from reconciler.database import connection as db
from reconciler.errors import ReconcilerError, Retriable, TwilioAnswerError
from reconciler.model import Page
from reconciler.sync.fetch import Failed, fetch
from reconciler.sync.run import Run
from reconciler.sync.slices import MARGIN, Slice
from reconciler.sync.sweep import describe
from reconciler.times import midnight, next_midnight
from reconciler.twilio.client import Session
from reconciler.twilio.listing import PAGE_SIZE, Listing

SETTLED_AFTER: Final = timedelta(minutes=5)  # by then a call that was made is known everywhere at Twilio
_BATCH: Final = 100  # calls fetched one by one that are merged together

_queries = db.load_queries("messages")


class Known(NamedTuple):
    """A call of ours, when it began as far as we know, and whether it may be another account's."""

    call_sid: str
    began_at: datetime
    is_stray: bool = False


def read_known(this: Run, query: str, **params: object) -> list[Known]:
    """The calls that a query of queries/messages.sql names."""
    return [Known(*row) for row in this.ask(_queries, query, params)]


def look_again(this: Run, source: Session, account_sid: str, wanted: Sequence[Known]) -> None:
    """Ask Twilio about each call of `wanted` and merge what it says; ends early when the run is stopped.

    To be called after a listing of the account was answered, see `Session.call`. What could not be read is said in
    `totals.problem`.

    Raises:
        Refused: Twilio or the database does.
        Retriable: the database stayed away, or Twilio for a whole batch.
        TwilioAnswerError: it makes no sense for a whole batch.

    """
    seen: set[str] = set()
    failed = []
    slices = _worth_listing(this, account_sid, wanted)
    if slices:
        for item in fetch(source, slices, concurrency=source.concurrency, stop=this.stop):
            if isinstance(item, Failed):
                failed.append(item)
            else:
                seen.update(observation.call_sid for observation in item.page.observations)
                this.merge(item.page)
    this.totals.problem = this.totals.problem or describe(failed)
    # What a listing failed to tell is left to the next run: one by one it could be thousands.
    unread = {failure.slice.name for failure in failed}
    rest = [known for known in wanted if known.call_sid not in seen and _name(known.began_at) not in unread]
    for start in range(0, len(rest), _BATCH):
        batch = rest[start : start + _BATCH]
        errors = ask_each(this, source, account_sid, batch)
        if errors and len(errors) == len(batch):
            raise errors[0]
        if errors and not this.stop.is_set():
            this.totals.problem = this.totals.problem or f"{len(errors)} calls were not read: {errors[0]}"


def ask_each(
    this: Run, source: Session, account_sid: str, wanted: Sequence[Known], *, is_bulk: bool = False
) -> list[Retriable | TwilioAnswerError]:
    """Ask Twilio for each call, several at once; merge what it says, and mark gone what it does not know.

    Returns why calls were not read, one error each. Once the run is stopped, no more are asked for.

    Raises:
        Refused: Twilio or the database does.
        Retriable: the database stayed away.

    """

    def ask(known: Known) -> Page | Retriable | TwilioAnswerError | None:
        try:
            return None if this.stop.is_set() else source.call(account_sid, known.call_sid)
        except (Retriable, TwilioAnswerError) as exc:
            return exc

    said = Page([], [], None, this.now())
    gone, errors = [], []
    with ThreadPoolExecutor(source.concurrency, thread_name_prefix="fetch") as pool:
        for known, answer in zip(wanted, pool.map(ask, wanted), strict=True):
            if isinstance(answer, ReconcilerError):
                errors.append(answer)
            elif answer is not None:
                said.observations.extend(answer.observations)
                said.dead_letters.extend(answer.dead_letters)
                is_unknown = not answer.observations and not answer.dead_letters
                if is_unknown and not known.is_stray and known.began_at < this.now() - SETTLED_AFTER:
                    gone.append(known.call_sid)
    if said.observations or said.dead_letters:
        this.merge(said, is_bulk=is_bulk)
    this.mark_gone(gone)
    return errors


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
            slices.append(Slice(_name(day), listing, since, until + MARGIN, down_to=since - MARGIN))
    return slices


def _name(moment: datetime) -> str:
    return f"{moment:%F}"


def _count(this: Run, account_sid: str, since: datetime, until: datetime) -> int:
    params = {"account_sid": account_sid, "since": since, "until": until}
    [(count,)] = this.ask(_queries, "count_calls", params)
    return int(count)

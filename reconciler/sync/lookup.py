"""Asking again about calls we know, with few requests: a listing where many lie close together, else one by one.

Design rules
- Our own rows foretell what a listing will cost: we hold about as many calls of a window as Twilio lists.
- A call that cannot be asked about keeps no other from being asked about.
- A call that Twilio does not know is gone, and no more than that (rule 11). A call that was made a moment ago may not
  have arrived everywhere yet (https://www.twilio.com/docs/voice/api/call-resource, "eventually consistent").
- Where there are several accounts, a row may not say which one it belongs to. That one account does not know such a
  call proves nothing: the listing of its own account will find it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from reconciler.database.calls import KnownCall, count_calls
from reconciler.database.transaction import Merged
from reconciler.errors import ReconcilerError, Retriable, TwilioAnswerError
from reconciler.model import Page
from reconciler.sync.fetch import Fetched
from reconciler.sync.run import Run
from reconciler.sync.slices import MARGIN, Slice
from reconciler.sync.sweep import describe, read
from reconciler.times import midnight, next_midnight
from reconciler.twilio.listing import Listing

KNOWN_EVERYWHERE_AFTER: Final = timedelta(minutes=5)  # a call is known everywhere at Twilio, after it was made
_BATCH: Final = 100  # calls fetched one by one that are merged together


def look_again(this: Run[Any], wanted: Sequence[KnownCall]) -> None:
    """Ask Twilio about each call of `wanted` and merge what it says; ends early when the run is stopped.

    To be called after a listing of the account was answered, see `Session.call`. The run fails if some calls could not
    be read.

    Raises:
        Refused: Twilio or the database does.
        Retriable: the database stayed away, or Twilio for a whole batch.
        TwilioAnswerError: its answers make no sense for a whole batch.

    """
    seen: set[str] = set()

    def note(item: Fetched, _: Merged) -> None:
        seen.update(observation.call_sid for observation in item.page.observations)

    slices = _worth_listing(this, wanted)
    failed = read(this, slices, on_page=note) if slices else []
    this.fail(describe(failed))
    # Calls that a listing failed to tell are left to the next run: one by one they could be thousands of requests.
    unread = {failure.slice.name for failure in failed}
    rest = [known for known in wanted if known.call_sid not in seen and _name(known.began_at) not in unread]
    for start in range(0, len(rest), _BATCH):
        batch = rest[start : start + _BATCH]
        errors = ask_each(this, batch)
        if errors and len(errors) == len(batch):
            raise errors[0]
        if errors and not this.stop.is_set():
            this.fail(f"{len(errors)} calls were not read: {errors[0]}")


def ask_each(
    this: Run[Any], wanted: Sequence[KnownCall], *, is_bulk: bool = False
) -> list[Retriable | TwilioAnswerError]:
    """Ask Twilio for each call, several at once; merge what it says, and mark gone what it does not know.

    Returns why calls were not read, one error each. Once the run is stopped, it asks for no more.

    Raises:
        Refused: Twilio or the database does.
        Retriable: the database stayed away.

    """

    def ask(known: KnownCall) -> Page | Retriable | TwilioAnswerError | None:
        try:
            return None if this.stop.is_set() else this.session.call(this.account.sid, known.call_sid)
        except (Retriable, TwilioAnswerError) as exc:
            return exc

    said = Page([], [], None, this.now())
    gone, errors = [], []
    with this.context.make_executor(this.session.concurrency) as pool:
        for known, answer in zip(wanted, pool.map(ask, wanted), strict=True):
            if isinstance(answer, ReconcilerError):
                errors.append(answer)
            elif answer is not None:
                said.observations.extend(answer.observations)
                said.dead_letters.extend(answer.dead_letters)
                if is_gone(known, answer, now=this.now()):
                    gone.append(known.call_sid)
    if said.observations or said.dead_letters:
        this.merge_page(said, is_bulk=is_bulk)
    this.mark_gone(gone)
    return errors


def is_gone(known: KnownCall, answer: Page, *, now: datetime) -> bool:
    """Whether Twilio's answer about a call of ours says that Twilio has it no more."""
    is_old = known.began_at < now - KNOWN_EVERYWHERE_AFTER
    return answer.is_empty and is_old and not known.account_unknown


def _worth_listing(this: Run[Any], wanted: Sequence[KnownCall]) -> list[Slice]:
    """The windows, one of a UTC day at most, whose listing takes fewer requests than their calls would."""
    account_sid = this.account.sid
    by_day: dict[datetime, list[datetime]] = defaultdict(list)
    for known in wanted:
        by_day[midnight(known.began_at)].append(known.began_at)
    slices = []
    for day, times in sorted(by_day.items(), reverse=True):
        since, until = min(times) - MARGIN, next_midnight(max(times) + timedelta(microseconds=1))
        held = partial(count_calls, account_sid=account_sid, since=since, until=until)
        if len(times) > 1 and len(times) > 1 + this.ask(held) // this.session.page_size:
            listing = Listing(account_sid, since=since, until=until + MARGIN)
            slices.append(Slice(_name(day), listing, since, until + MARGIN, down_to=since - MARGIN))
    return slices


def _name(moment: datetime) -> str:
    return f"{moment:%F}"

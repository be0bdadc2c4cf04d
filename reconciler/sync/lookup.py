"""The look-up of known calls with few requests: by a listing if many are close together, else one by one.

Design rules
- Our own rows predict the cost of a listing: in a window we hold about as many calls as Twilio lists.
- A call that cannot be read does not keep others from being read.
- A call that Twilio does not know is gone, and nothing else about it changes (rule 11). A new call may not be known
  everywhere at Twilio yet (https://www.twilio.com/docs/voice/api/call-resource, "eventually consistent").
- With several accounts a row may not name its account. A 404 of one account then proves nothing: the listing of the
  call's own account will find it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from reconciler.database.calls import KnownCall, count_calls
from reconciler.database.decisions import Merged
from reconciler.errors import ReconcilerError, Retriable, TwilioAnswerError
from reconciler.model import Page
from reconciler.sync.fetch import Fetched
from reconciler.sync.order import Order
from reconciler.sync.run import Run
from reconciler.sync.slices import MARGIN, Slice
from reconciler.sync.sweep import cut_busy, describe, read
from reconciler.times import midnight, next_midnight
from reconciler.twilio.listing import Listing

KNOWN_EVERYWHERE_AFTER: Final = timedelta(minutes=5)  # after its creation every part of Twilio knows a call
_BATCH: Final = 100  # calls that are fetched one by one and merged together


def look_again(this: Run[Any], wanted: Sequence[KnownCall]) -> None:
    """Ask Twilio about each call of `wanted` and merge the answers; stop early when the run is stopped.

    Call it only after Twilio has answered a listing of the account, see `Session.call`. If some calls cannot be read,
    the run ends as failed.

    Raises:
        Refused: Twilio or the database refused.
        Retriable: the database did not come back, or Twilio did not answer for a whole batch.
        TwilioAnswerError: none of Twilio's answers for a batch fits its request.

    """
    seen: set[str] = set()

    def note(item: Fetched, _: Merged) -> None:
        seen.update(observation.call_sid for observation in item.page.observations)

    slices = _worth_listing(this, wanted)
    failed = read(this, Order(slices), on_page=note, cut=cut_busy(this)) if slices else []
    this.fail(describe(failed))
    # If a listing failed, its calls are left to the next run: one by one they could be thousands of requests.
    unread = [failure.slice for failure in failed]
    rest = [
        known
        for known in wanted
        if known.call_sid not in seen and not any(slice_.since <= known.began_at < slice_.until for slice_ in unread)
    ]
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
    """Ask Twilio for each call, several at once; merge the answers, and mark the calls gone that Twilio does not know.

    Returns an error for each call that was not read. Once the run is stopped, no more calls are requested.

    Raises:
        Refused: Twilio or the database refused.
        Retriable: the database did not come back.

    """

    def ask(known: KnownCall) -> Page | Retriable | TwilioAnswerError | None:
        try:
            return None if this.stop.is_set() else this.session.call(this.account.sid, known.call_sid)
        except (Retriable, TwilioAnswerError) as exc:
            return exc

    answered = Page([], [], None, this.now())
    gone, errors = [], []
    with this.context.make_executor(this.session.concurrency) as pool:
        for known, answer in zip(wanted, pool.map(ask, wanted), strict=True):
            if isinstance(answer, ReconcilerError):
                errors.append(answer)
            elif answer is not None:
                answered.observations.extend(answer.observations)
                answered.dead_letters.extend(answer.dead_letters)
                if is_gone(known, answer, now=this.now()):
                    gone.append(known.call_sid)
    if answered.observations or answered.dead_letters:
        this.merge_page(answered, is_bulk=is_bulk)
    this.mark_gone(gone)
    return errors


def is_gone(known: KnownCall, answer: Page, *, now: datetime) -> bool:
    """Whether Twilio's answer about a call means that the call is gone."""
    is_old = known.began_at < now - KNOWN_EVERYWHERE_AFTER
    return answer.is_empty and is_old and not known.account_unknown


def _worth_listing(this: Run[Any], wanted: Sequence[KnownCall]) -> list[Slice]:
    """Return the windows, at most one for each UTC day, whose listing takes fewer requests than their calls."""
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
            slices.append(Slice(f"{day:%F}", listing, since, until + MARGIN, down_to=since - MARGIN))
    return slices

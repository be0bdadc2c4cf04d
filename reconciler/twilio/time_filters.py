"""Whether Twilio counts the time in a StartTime filter, or only its date: learned from answers.

Which of the two holds is contested (https://github.com/twilio/twilio-python/issues/784). A wrong guess would lose
calls: by the date alone, "before 06:00" leaves out the whole day.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, NamedTuple

from reconciler.errors import OutsideRetention, Retriable, TimeIgnored, TwilioAnswerError
from reconciler.model import Observation, Page
from reconciler.twilio.listing import Listing

ASKED_AGAIN_AFTER: Final = 60.0  # seconds after a probe that failed

_ONE_SECOND: Final = timedelta(seconds=1)


class Probe(NamedTuple):
    """A listing of some hours of a day, and calls of a page that lie in them."""

    listing: Listing
    inside: frozenset[str]

    def proves(self, answer: Iterable[Observation]) -> bool:
        """Whether the answer holds the calls that lie in the hours, and none beside them."""
        since, until = self.listing.since, self.listing.until
        assert since is not None
        assert until is not None
        found = list(answer)
        return self.inside <= {call.call_sid for call in found} and all(
            call.start_time is not None and since <= call.start_time <= until for call in found
        )


def make_probe(account_sid: str, page: Page) -> Probe | None:
    """Ask for the middle third of a page; None if the page cannot prove anything.

    There are calls on the same day before and after those hours. So no answer that counts only dates can be the right
    one, whichever of the two bounds counts.
    """
    starts = sorted(call.start_time for call in page.observations if call.start_time is not None)
    if len(starts) < 3:
        return None
    since, until = starts[len(starts) // 3], starts[2 * len(starts) // 3] + _ONE_SECOND
    if not (starts[0] < since < until < starts[-1] and starts[0].date() == starts[-1].date()):
        return None
    inside = frozenset(
        call.call_sid for call in page.observations if call.start_time is not None and since <= call.start_time < until
    )
    return Probe(Listing(account_sid, since=since, until=until), inside)


class Proof(NamedTuple):
    """A probe that proved that times count, and when it was last asked, on the monotonic clock."""

    probe: Probe
    at: float


@dataclass(slots=True)
class Knowledge:
    """The knowledge about one account. It is known once a probe was answered; only dates count if there is no proof."""

    asking: threading.Lock = field(default_factory=threading.Lock)  # one probe is enough for all who wait
    is_known: bool = False
    proof: Proof | None = None
    asked_again_at: float = 0.0  # after a probe that failed, on the monotonic clock


class TimeFilters:
    """By account whether times count, and the proof. Several threads may ask at once."""

    def __init__(self) -> None:
        self._accounts: dict[str, Knowledge] = {}

    def count(self, account_sid: str, page: Page, ask: Callable[[Listing], Page]) -> bool:
        """Whether times count. Asks once for each account, if `page` can prove it."""
        known = self._of(account_sid)
        with known.asking:
            may_ask = not known.is_known and time.monotonic() >= known.asked_again_at
            if may_ask and (probe := make_probe(account_sid, page)) is not None:
                try:
                    known.proof, known.is_known = _prove(probe, ask), True
                except (Retriable, TwilioAnswerError, OutsideRetention):
                    known.asked_again_at = time.monotonic() + ASKED_AGAIN_AFTER
            return known.proof is not None

    def check(self, listing: Listing, page: Page, ask: Callable[[Listing], Page]) -> None:
        """Check an answer to a listing of some hours.

        Where only dates count, such an answer holds other hours, or nothing. So an empty answer is accepted only after
        a probe that was asked later. Without a probe another process proved it, less than a day ago: the hours stood in
        a cursor.

        Raises:
            TimeIgnored: the answer is none to this question.

        """
        answered_at, known = time.monotonic(), self._of(listing.account_sid)
        fits = listing.holds(page)
        if fits and not page.is_empty:
            return
        with known.asking:
            if fits and known.proof is not None and known.proof.at < answered_at:
                known.proof = _prove(known.proof.probe, ask)
            if fits and (known.proof is not None or not known.is_known):
                return
            known.proof, known.is_known = None, True
        raise TimeIgnored("Twilio's answer does not hold the hours that were asked for")

    def _of(self, account_sid: str) -> Knowledge:
        return self._accounts.setdefault(account_sid, Knowledge())


def _prove(probe: Probe, ask: Callable[[Listing], Page]) -> Proof | None:
    """Ask Twilio; return the proof that times count, or None if they do not."""
    asked_at = time.monotonic()
    return Proof(probe, asked_at) if probe.proves(ask(probe.listing).observations) else None

"""Whether Twilio counts the time in a StartTime filter, or only its date: learned from answers.

Which of the two holds is contested (https://github.com/twilio/twilio-python/issues/784). A wrong guess would lose
calls: by the date alone, "before 06:00" leaves out the whole day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

from reconciler.errors import OutsideRetention, Retriable, TimeIgnored, TwilioAnswerError
from reconciler.model import Observation, Page
from reconciler.twilio.listing import Listing

_ONE_SECOND = timedelta(seconds=1)


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


class TimeFilters:
    """By account the probe that proved that times count, or None if they do not."""

    def __init__(self) -> None:
        self._probes: dict[str, Probe | None] = {}

    def count(self, account_sid: str, page: Page, ask: Callable[[Listing], Page]) -> bool:
        """Whether times count. Asks once for each account, if `page` can prove it."""
        if account_sid not in self._probes and (probe := make_probe(account_sid, page)) is not None:
            with suppress(Retriable, TwilioAnswerError, OutsideRetention):
                self._probes[account_sid] = probe if probe.proves(ask(probe.listing).observations) else None
        return self._probes.get(account_sid) is not None

    def check(self, listing: Listing, page: Page, ask: Callable[[Listing], Page]) -> None:
        """Check an answer to a listing of some hours.

        Where only dates count, such an answer holds other hours, or nothing. So the probe is asked again before an
        empty answer is believed. Without a probe another process proved it, less than a day ago: the hours stood in a
        cursor.

        Raises:
            TimeIgnored: the answer is none to this question.

        """
        is_doubtful = not listing.holds(page)
        if page.is_empty and listing.account_sid in self._probes:
            probe = self._probes[listing.account_sid]
            is_doubtful = probe is None or not probe.proves(ask(probe.listing).observations)
        if is_doubtful:
            self._probes[listing.account_sid] = None
            raise TimeIgnored("Twilio's answer does not hold the hours that were asked for")

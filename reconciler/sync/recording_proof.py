"""The proof of a day's recordings: `call_events` tells of every recording that Twilio lists as ready or deleted.

A listing with deleted recordings shows them for 40 days, longer than the days that cold proves. So there is no second
comparison as for calls: a recording that we tell of, and that Twilio does not list, was deleted longer ago.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import date, timedelta
from functools import partial
from typing import Any, Final

from reconciler.database import recordings as rows
from reconciler.database.decisions import Merged
from reconciler.model import Recording
from reconciler.sync.day_proof import PROVEN_AFTER
from reconciler.sync.fetch import Fetched
from reconciler.sync.run import Run
from reconciler.times import utc_days

_ONE_DAY: Final = timedelta(days=1)


class RecordingProofs:
    """The proofs of a sweep's days. `note` takes every page; it proves the days of a slice at the slice's end."""

    def __init__(self, this: Run[Any], days: Iterable[date]) -> None:
        self._this = this
        self._days = set(days)
        self._listed: dict[date, set[bytes]] = defaultdict(set)
        self._lacking: dict[date, set[bytes]] = defaultdict(set)
        self._unreadable: set[str] = set()  # slices with a record that cannot be read

    def note(self, item: Fetched, _: Merged) -> None:
        """Compare the recordings of a page, which was merged, with `call_events`."""
        if item.instead:
            return  # the page is read again
        told = [recording for recording in item.page.recordings if recording.state.is_event and recording.subject]
        for recording in told:
            if recording.date_created is not None:
                self._listed[recording.date_created.date()].add(_pack(recording))
        for recording in self._not_told(told):
            if recording.date_created is not None:
                self._lacking[recording.date_created.date()].add(_pack(recording))
        if item.page.dead_letters:
            self._unreadable.add(item.slice.name)
        if item.next_uri is None:
            self._prove(item)

    def _not_told(self, told: list[Recording]) -> list[Recording]:
        origin, now = self._this.origin, self._this.now()
        missing = self._this.ask(partial(rows.tell, recordings=told, **origin._asdict(), now=now, apply=False))
        sids = {(each.recording_sid, each.state) for each in missing}
        return [recording for recording in told if (recording.recording_sid, recording.state) in sids]

    def _prove(self, item: Fetched) -> None:
        """Write the proofs of the whole days of a slice that was read to its end, unless a record was unreadable."""
        over = [
            since.date()
            for since, until in utc_days(item.slice.since, item.slice.until)
            if until - since == _ONE_DAY and item.page.observed_at - until > PROVEN_AFTER
        ]
        days = {}
        for day in over:
            listed, lacking = self._listed.pop(day, set()), self._lacking.pop(day, set())
            if day in self._days:
                days[day] = (len(listed), len(listed) - len(lacking))
        if days and item.slice.name not in self._unreadable:
            self._this.ask(partial(rows.keep_proofs, days=days, account_sid=self._this.account.sid))


def _pack(recording: Recording) -> bytes:
    return bytes.fromhex(recording.recording_sid[2:])

"""The proof of a day's recordings: `call_events` tells of every recording that Twilio lists as ready or deleted.

A listing with deleted recordings shows them for 40 days, longer than the days that cold proves. So there is no second
comparison as for calls: a recording that we tell of, and that Twilio does not list, was deleted longer ago. A recording
that Twilio no longer lists is never taken for deleted. A list that is shorter than before is accepted as that of calls
is, see `shrinkage`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any, Final

from msgspec import UNSET

from reconciler.database import recordings as rows
from reconciler.database.account_days import DayProof
from reconciler.database.decisions import Merged
from reconciler.database.recordings import RecordingProof
from reconciler.database.transaction import Transaction
from reconciler.model import Recording
from reconciler.sync.cursors import ColdCursor, FewerRecordings
from reconciler.sync.day_proof import PROVEN_AFTER, Listed, shrinkage
from reconciler.sync.fetch import Fetched
from reconciler.sync.run import Run
from reconciler.times import utc_days

_ONE_DAY: Final = timedelta(days=1)
_DELETED_LISTED_FOR: Final = timedelta(days=40)  # OpenAPI `ListRecording`, IncludeSoftDeleted


class RecordingProofs:
    """The proofs of a sweep's days. `note` takes every page; it proves the days of a slice at the slice's end.

    `on_proven` is called with the proofs of these days as they are now, calls included.
    """

    def __init__(
        self,
        this: Run[Any],
        days: Iterable[date],
        cursor: ColdCursor,
        *,
        on_proven: Callable[[Sequence[DayProof]], None],
    ) -> None:
        self._this = this
        self._on_proven = on_proven
        self._cursor = cursor
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
        if not over:  # a part of a day, or days that are too young
            return
        before = self._this.ask(partial(rows.listed_of_days, days=over, account_sid=self._this.account.sid))
        oldest = (item.page.observed_at - _DELETED_LISTED_FOR).date()  # of an older day Twilio may list fewer
        doubts = {doubt.day: doubt for doubt in self._cursor.fewer_recordings or () if doubt.day > oldest}
        proofs = []
        for day in over:
            listed, lacking = self._listed.pop(day, set()), self._lacking.pop(day, set())
            if day not in self._days or item.slice.name in self._unreadable:
                continue
            last = before.get(day) if day > oldest else None
            doubt = _doubt(day, listed, last, doubts.pop(day, None), read_at=item.page.observed_at)
            proofs.append(RecordingProof(day, len(listed), len(listed) - len(lacking), doubt.shrunk))
            if doubt.shrunk:
                doubts[day] = doubt
        if proofs:
            self._cursor.fewer_recordings = list(doubts.values()) or UNSET
            self._on_proven(self._this.commit(partial(self._keep, proofs)))

    def _keep(self, proofs: Sequence[RecordingProof], transaction: Transaction) -> list[DayProof]:
        kept = transaction.keep_recording_proofs(proofs, account_sid=self._this.account.sid)
        self._this.move_cursor(transaction, self._cursor)
        return kept


def _doubt(
    day: date, listed: set[bytes], before: int | None, doubt: FewerRecordings | None, *, read_at: datetime
) -> FewerRecordings:
    """Return how many recordings fewer Twilio lists of a day than `before`; `shrunk` is 0 if the list is accepted.

    `doubt` is that of the last list, if it was not accepted.
    """
    digest = hashlib.sha256(b"".join(sorted(listed))).hexdigest()
    if before is None:
        last = None
    elif doubt is None:
        last = Listed(before, 0, "", read_at)
    else:
        last = Listed(before, doubt.shrunk, doubt.digest, doubt.listed_at)
    shrunk = shrinkage(last, len(listed), digest, read_at=read_at)
    return FewerRecordings(day=day, shrunk=shrunk, digest=digest, listed_at=read_at)


def _pack(recording: Recording) -> bytes:
    return bytes.fromhex(recording.recording_sid[2:])

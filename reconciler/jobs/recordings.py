"""The recordings job: a recording whose callback was lost becomes an event, and its URL stands in the call's row.

Design rules
- One listing by DateCreated a run shows all new recordings of an account. No call is asked about.
- The job asks about an account if it or cold found a recording in the last days. It also asks if one of the newest
  calls has a recording_url. cold lists the recordings of its days anyway, and backfill those of its window. An account
  without recordings therefore costs one request a day.
- After a refusal the job asks once a day, until Twilio answers: a permission may have been given meanwhile.
- Twilio may list a recording from its start on. The next listing begins at the oldest one that was not ready.
- The cursor moves with the first page of a listing, and holds the rest of the listing until that is read.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from reconciler.database.recordings import has_recordings
from reconciler.model import RecordingState
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts
from reconciler.sync.cursors import RecordingsCursor, unreadable
from reconciler.sync.fetch import Fetched
from reconciler.sync.run import Run, run
from reconciler.sync.slices import Slice, slice_named, slice_of_recordings_up_to
from reconciler.sync.sweep import describe, read_recordings
from reconciler.twilio.listing import RETENTION

READ_EVERY: Final = timedelta(minutes=15)
FIRST_LOOK: Final = timedelta(days=1)  # how far back a first run reads; cold and backfill read older recordings
ACTIVE_FOR: Final = timedelta(days=7)  # after its last recording an account is asked about
SOUGHT_AMONG: Final = 1_000  # of the newest calls of an account
# A call lasts a day at most (https://www.twilio.com/docs/voice/api/call-resource#create-a-call-resource, TimeLimit).
LONGEST: Final = timedelta(days=1)
REFUSED_FOR: Final = timedelta(days=1)  # after a refusal nothing is asked; then again, with or without recordings


def read_new_recordings(context: JobContext) -> Counts:
    """Read the recordings that were created since the last run, if the account has recordings.

    Credentials that may not read recordings are no failure: this is logged once a day.

    Raises:
        ConfigError: the cursor cannot be right; nothing was read.
        Refused: Twilio refused the credentials, or the database refused.
        Retriable: the database did not come back; the cursor holds what is still to be read.
        JobHeld: another process runs this job.

    """
    with run(context, Counts()) as this:
        cursor = this.read_cursor(RecordingsCursor)
        if cursor is not None and not _is_due(this, cursor):
            return this.counts
        reading = _Reading(this, cursor)
        failed = read_recordings(this, reading.slices, resume_at=reading.cursor.begun, move=reading.moving)
        if failed is None:
            reading.cursor.refused_at = reading.now
            this.keep_cursor(reading.cursor)
        else:
            this.fail(describe(failed))
            this.counts.lag = this.now() - reading.cursor.read_until
    return this.counts


def _is_due(this: Run[Counts], cursor: RecordingsCursor) -> bool:
    """Whether recordings are made, or a listing was interrupted. After a refusal Twilio is asked once a day."""
    now = this.now()
    if cursor.refused_at is not None:
        return now - cursor.refused_at >= REFUSED_FOR
    if cursor.begun or (cursor.found_at is not None and now - cursor.found_at < ACTIVE_FOR):
        return True
    return this.ask(partial(has_recordings, account_sid=this.account.sid, since=now - ACTIVE_FOR, limit=SOUGHT_AMONG))


class _Reading:
    """The slices of one run: the rest of a listing that an earlier run left, and the listing of new recordings."""

    def __init__(self, this: Run[Counts], cursor: RecordingsCursor | None) -> None:
        self.now = this.now()
        self._this = this
        account_sid = this.account.sid
        if cursor is None:
            cursor = RecordingsCursor(account=account_sid, read_until=self.now - FIRST_LOOK)
        self.cursor = cursor
        try:
            left = [slice_named(account_sid, name) for name in cursor.begun]
        except ValueError:
            raise unreadable(this.job) from None
        self._new = slice_of_recordings_up_to(account_sid, self._since(), self.now)
        self.slices: list[Slice] = [*left, self._new]
        self._unfinished = cursor.unfinished_since if left else None

    def moving(self, item: Fetched) -> AbstractContextManager[RecordingsCursor]:
        """Yield the cursor to commit with a page. A second try of the same page yields the same cursor."""
        cursor, name, recordings = self.cursor, item.slice.name, item.page.recordings
        if name == self._new.name and item.is_first:
            cursor.read_until = max(cursor.read_until, min(item.page.observed_at, self._this.now()))
        if recordings:
            cursor.found_at = self.now
        unfinished = [r.date_created for r in recordings if r.state is RecordingState.UNFINISHED and r.date_created]
        self._unfinished = min([*unfinished, *([self._unfinished] if self._unfinished else [])], default=None)
        cursor.unfinished_since, cursor.refused_at = self._unfinished, None
        cursor.begun.pop(name, None)
        if item.next_uri is not None:
            cursor.begun[name] = item.next_uri
        cursor.begun |= dict.fromkeys(slice_.name for slice_ in item.instead)
        return nullcontext(cursor)

    def _since(self) -> datetime:
        cursor, overlap = self.cursor, self._this.context.settings.overlap
        since = cursor.read_until - overlap
        if cursor.unfinished_since is not None:
            since = min(since, max(cursor.unfinished_since, self.now - LONGEST))
        return max(since, self.now - RETENTION)

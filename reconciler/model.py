"""The model of a call: statuses, observations, recordings, gaps, pages and job names, pure and without I/O.

The module imports nothing of ours. Money is Decimal, time is aware UTC, phone numbers are text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec


class Status(StrEnum):
    """A call's status, in Twilio's spelling (https://www.twilio.com/docs/voice/api/call-resource)."""

    QUEUED = "queued"
    INITIATED = "initiated"
    RINGING = "ringing"
    IN_PROGRESS = "in-progress"
    COMPLETED = "completed"
    BUSY = "busy"
    NO_ANSWER = "no-answer"
    CANCELED = "canceled"
    FAILED = "failed"


FINAL: Final = frozenset({Status.COMPLETED, Status.BUSY, Status.NO_ANSWER, Status.CANCELED, Status.FAILED})

# `answered` is an event's name and a DialCallStatus; it means in-progress. Some of Twilio's pages write `cancelled`.
_STATUS_BY_NAME: Final = {
    **{status.value: status for status in Status},
    "answered": Status.IN_PROGRESS,
    "cancelled": Status.CANCELED,
}


class Via(StrEnum):
    """The source of an observation: Twilio's REST API or a webhook."""

    REST = "rest"
    WEBHOOK = "webhook"


class Gap(StrEnum):
    """The kinds of gap that webhooks leave (see the glossary in docs/architecture.md)."""

    MISSING = "missing"
    STALE = "stale"
    INCOMPLETE = "incomplete"
    CONFLICT = "conflict"


class Observation(NamedTuple):
    """One call as one source, a REST record or a webhook, describes it.

    - The order of the fields is the order of the columns of the staging table.
    - None is unknown; Twilio's empty strings are None here.
    - `status_at`: when the call reached the status, on Twilio's clock.
    - `observed_at`: when the source said so.
    - The repr leaves out everything that could be a phone number.
    """

    call_sid: str
    account_sid: str | None
    parent_call_sid: str | None
    direction: str | None
    status: Status
    from_number: str | None
    to_number: str | None
    duration: int | None  # seconds
    price: Decimal | None  # negative = charged
    price_unit: str | None
    start_time: datetime | None
    end_time: datetime | None
    answered_by: str | None
    date_created: datetime | None
    status_at: datetime
    observed_at: datetime
    via: Via
    other_fields: str | None = None  # a JSON object: what the record holds beyond these fields, without nulls

    def __repr__(self) -> str:
        return f"<Observation {self.call_sid} {self.status.value} by {self.via.value} at {self.observed_at:%FT%TZ}>"

    @property
    def window_time(self) -> datetime | None:
        """The time that decides whether a window holds this call: its start, or its creation if never dialled."""
        return self.start_time or self.date_created


class RecordingState(StrEnum):
    """The state of a recording. Events have its name: `recording.ready`, `recording.deleted`."""

    UNFINISHED = "unfinished"
    READY = "ready"
    DELETED = "deleted"
    ABSENT = "absent"  # Twilio heard nothing, and kept nothing

    @property
    def is_event(self) -> bool:
        """Whether an event tells of a recording in this state."""
        return self in (RecordingState.READY, RecordingState.DELETED)


class RecordingPayload(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The payload of a recording's event, without fields that are None. A struct takes less memory than a dict."""

    recording_sid: str
    recording_url: str | None = None
    duration: str | None = None
    channels: str | None = None
    source: str | None = None
    start_time: str | None = None


class Recording(NamedTuple):
    """One recording as one source, a REST record or a callback, describes it.

    - A conference's recording belongs to no single call. Its callback has no call (see `subject`).
    - `date_created`: the time by which Twilio lists it; None in a callback.
    - `happened_at`: when the recording became ready; for a deleted one, when the source said so.
    - `media_url`: None unless the recording is ready.
    - `payload`: the payload of its event, the same from both sources.
    """

    recording_sid: str
    call_sid: str | None
    conference_sid: str | None
    state: RecordingState
    date_created: datetime | None
    happened_at: datetime
    media_url: str | None
    payload: RecordingPayload

    def __repr__(self) -> str:
        return f"<Recording {self.recording_sid} {self.state.value}>"

    @property
    def subject(self) -> str | None:
        """The SID that its events name: the conference's, else the call's. A callback has only one of them."""
        return self.conference_sid or self.call_sid


Said = Observation | Recording  # the merge takes both


class DeadLetter(NamedTuple):
    """A record that could not be read, kept for replay: its whole JSON, with numbers as text, and the reason."""

    dedupe_key: str
    call_sid: str | None
    record: str
    reason: str

    def __repr__(self) -> str:
        return f"<DeadLetter {self.call_sid}: {self.reason}>"


def parse_status(name: str) -> Status | None:
    """Return the status that Twilio calls `name`; None if it is unknown."""
    return _STATUS_BY_NAME.get(name)


CALL_SID: Final = re.compile(r"CA[0-9a-fA-F]{32}")
CONFERENCE_SID: Final = re.compile(r"CF[0-9a-fA-F]{32}")
RECORDING_SID: Final = re.compile(r"RE[0-9a-fA-F]{32}")
ACCOUNT_SID: Final = re.compile(r"AC[0-9a-fA-F]{32}")


class Page(NamedTuple):
    """One page of a listing of calls or recordings. `next_uri` is the URI of the next page; None on the last page."""

    observations: list[Observation]
    dead_letters: list[DeadLetter]
    next_uri: str | None
    observed_at: datetime
    recordings: Sequence[Recording] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the page has no record at all, readable or not."""
        return not self.observations and not self.recordings and not self.dead_letters

    @property
    def sids(self) -> list[str]:
        """The SIDs of the records that could be read."""
        return [o.call_sid for o in self.observations] + [r.recording_sid for r in self.recordings]

    def without_records(self) -> Page:
        """Return the page as one that had no record."""
        return self._replace(observations=[], dead_letters=[], recordings=())

    def __repr__(self) -> str:
        return (
            f"<Page of {len(self.recordings) or len(self.observations)} {'recordings' if self.recordings else 'calls'}>"
        )


class JobName(NamedTuple):
    """The name of a job. Its `str()` is the job's key in `sync_state` and the name of its lock.

    Jobs of the main account and jobs of the whole database have no `account_sid`. `variant` distinguishes two jobs of
    the same kind.
    """

    kind: str
    account_sid: str | None = None
    variant: str | None = None

    def __str__(self) -> str:
        return ":".join(part for part in self if part is not None)

    @classmethod
    def parse(cls, text: str) -> JobName:
        """Return the name whose `str()` is `text`."""
        kind, *rest = text.split(":")
        account_sid = next((part for part in rest if ACCOUNT_SID.fullmatch(part)), None)
        return cls(kind, account_sid, next((part for part in rest if part != account_sid), None))


def name_job(kind: str, account_sid: str | None, *, main: str | None) -> JobName:
    """Return the name of an account's job; None is the whole database. The main account's jobs do not name it."""
    return JobName(kind, None if account_sid == main else account_sid)

"""What is said about a call: the words of the merge, pure and without I/O.

Imports nothing of ours but the errors. Money is Decimal, time is aware UTC, phone numbers are text.
"""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final, NamedTuple


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

# `answered` is an event name and a DialCallStatus, and means in-progress; some of Twilio's pages write cancelled.
_STATUS_BY_NAME: Final = {
    **{status.value: status for status in Status},
    "answered": Status.IN_PROGRESS,
    "cancelled": Status.CANCELED,
}


class Via(StrEnum):
    """Through which door an observation came."""

    REST = "rest"
    WEBHOOK = "webhook"


class Gap(StrEnum):
    """What the webhooks missed about a call."""

    MISSING = "missing"
    STALE = "stale"
    INCOMPLETE = "incomplete"
    CONFLICT = "conflict"


class Observation(NamedTuple):
    """What one source said about one call; a REST record and a webhook both become this.

    The order of the fields is the order of the columns of the staging table. `None` is unknown, and Twilio's
    empty strings are None here. `status_at` is when the status was reached on Twilio's clock, `observed_at`
    when the source said so. The repr leaves out everything that could be a phone number.
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

    def __repr__(self) -> str:
        return f"<Observation {self.call_sid} {self.status.value} by {self.via.value} at {self.observed_at:%FT%TZ}>"

    @property
    def window_time(self) -> datetime | None:
        """The time by which a sweep's window holds this call: its start, or its creation if never dialled."""
        return self.start_time or self.date_created


class DeadLetter(NamedTuple):
    """A record that could not be read: the JSON of all of it, numbers as text, and why; kept for replay."""

    dedupe_key: str
    call_sid: str | None
    record: str
    reason: str

    def __repr__(self) -> str:
        return f"<DeadLetter {self.call_sid}: {self.reason}>"


def parse_status(name: str) -> Status | None:
    """The status Twilio means by `name`, or None if it is not one we know."""
    return _STATUS_BY_NAME.get(name)


CALL_SID: Final = re.compile(r"CA[0-9a-fA-F]{32}")


ACCOUNT_SID: Final = re.compile(r"AC[0-9a-fA-F]{32}")


class Page(NamedTuple):
    """One page of a listing; `next_uri` names the page after it, None on the last one."""

    observations: list[Observation]
    dead_letters: list[DeadLetter]
    next_uri: str | None
    observed_at: datetime

    @property
    def is_empty(self) -> bool:
        """Whether it holds no record at all, read or unread."""
        return not self.observations and not self.dead_letters

    def __repr__(self) -> str:
        return f"<Page of {len(self.observations)} calls>"


class JobName(NamedTuple):
    """The name of a job. `str()` of it is the job's key in `sync_state` and the name of its lock.

    The jobs of the main account and the jobs of the whole database carry no account. `variant` tells apart two jobs of
    one kind.
    """

    kind: str
    account_sid: str | None = None
    variant: str | None = None

    def __str__(self) -> str:
        return ":".join(part for part in self if part is not None)

    @classmethod
    def parse(cls, text: str) -> JobName:
        """The name of which `text` is the `str()`."""
        kind, *rest = text.split(":")
        account_sid = next((part for part in rest if ACCOUNT_SID.fullmatch(part)), None)
        return cls(kind, account_sid, next((part for part in rest if part != account_sid), None))

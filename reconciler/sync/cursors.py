"""What `sync_state.cursor` holds: one type for each job, one way to write it, one way to read it.

Design rules
- The JSON stays readable across versions: names and forms of fields never change, new fields have a default.
- A cursor that cannot be is refused before anything is read, with the way to mend it. It is never overwritten in
  silence: it may be the only trace of what is left to read.
- Moments are UTC.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, ClassVar, Final, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from reconciler.errors import ConfigError
from reconciler.model import JobName
from reconciler.twilio.listing import RETENTION

CLOCKS_DIFFER: Final = timedelta(minutes=5)  # ours and that of the machine that wrote the cursor

Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class JobCursor(msgspec.Struct, kw_only=True):
    """A cursor. If `read_from_here`, a job reads on from its oldest moment, so Twilio must still keep that."""

    read_from_here: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, datetime):
                setattr(self, name, value.astimezone(UTC))


class PlanCursor(JobCursor, kw_only=True):
    """What is left to read of the window `[since, until)`, which is in whole seconds, as the names of slices are.

    `done` counts the statuses and days that were read to their end. `pending_windows` are the windows of which nothing
    was begun, oldest first. `begun` names the slices of which something may have been read, each with its next
    page: None before its first page was read.
    """

    since: Moment
    until: Moment
    done: int
    pending_windows: list[tuple[Moment, Moment]] = msgspec.field(name="uncut")
    begun: dict[str, str | None] = msgspec.field(name="open")


class HotCursor(JobCursor, kw_only=True, omit_defaults=True):
    """All calls created before `read_until` were read.

    - `plan`: set while a gap of days is being swept. Then every call created before `ahead_until` has been read, except
      those in slices the plan still lists.
    - `listed_until`, `next_page`: of a listing that was interrupted. It goes on at `next_page`.
    - `usual`: how many calls the last listing took, or would have taken after a gap of usual length.
    - `looked_at`: when hot last asked about calls whose account is unknown.
    - `ended_until`: set once the account is known to have trunks. Then every call that ended before was read.
    - `ends_by_day`: an answer has shown that Twilio reads the time of an EndTime filter as a whole UTC day.
    """

    read_from_here: ClassVar[bool] = True

    account: str
    read_until: Moment
    usual: int = msgspec.field(default_factory=int)
    listed_until: Moment | None = None
    next_page: str | None = None
    plan: PlanCursor | None = None
    ahead_until: Moment | None = None
    looked_at: Moment | None = None
    ended_until: Moment | None = None
    ends_by_day: bool = False


class WarmCursor(JobCursor, kw_only=True):
    """Calls that ended before `settled_until` need no more asking; warm looked at `looked_at`."""

    read_from_here: ClassVar[bool] = True

    account: str
    settled_until: Moment
    looked_at: Moment


class SweepCursor(JobCursor, kw_only=True):
    """A sweep of cold that is under way: its window and the days that are proven."""

    since: Moment
    until: Moment
    begun_at: Moment
    is_deep: bool
    settled: list[date]


class ColdCursor(JobCursor, kw_only=True):
    """Until when the last sweep and the last deep sweep read, and the sweep that is under way."""

    account: str
    swept_at: Moment | None = None
    deep_at: Moment | None = None
    sweep: SweepCursor | UnsetType | None = UNSET


class WebhooksCursor(JobCursor, kw_only=True, omit_defaults=True):
    """The alerts of hours before `settled_until` were read; Twilio `refused` to tell of these things."""

    account: str
    settled_until: Moment | None = None
    refused: list[str] = msgspec.field(default_factory=list)


class FreezeCursor(JobCursor, kw_only=True):
    """Stuck calls that began at `named_since` or before have been named."""

    named_since: Moment


class BackfillCursor(PlanCursor, kw_only=True):
    """The plan of a backfill, the words that asked for it, and when it was begun."""

    asked: dict[str, str | None]
    begun_at: Moment
    finished: bool


class BatchCursor(JobCursor, kw_only=True):
    """A backfill of several accounts: its words, when it began, and until when which account has been read."""

    asked: dict[str, str | None]
    begun_at: Moment
    done: dict[str, Moment]


C = TypeVar("C", bound=JobCursor)


def encode(cursor: JobCursor) -> str:
    """The JSON that `sync_state` keeps of a cursor."""
    value = msgspec.to_builtins(cursor, builtin_types=(datetime, date))
    return json.dumps(value, default=lambda moment: moment.isoformat())


def load(job: JobName, value: object, kind: type[C], *, now: datetime, account_sid: str | None = None) -> C | None:
    """The cursor that `encode` wrote; None if the job has none.

    Raises:
        ConfigError: it cannot be read, belongs to another account than `account_sid` (None: any will do), lies in the
            future, or lies before what Twilio keeps.

    """
    if value is None or value == {}:
        return None
    try:
        cursor = msgspec.convert(value, kind)
        moments = list(_moments(cursor))
    except (msgspec.ValidationError, OverflowError):
        raise unreadable(job) from None
    of = getattr(cursor, "account", account_sid)
    if account_sid is not None and of != account_sid:
        raise ConfigError(
            f"the cursor of {job} in sync_state is that of another account, {of}",
            hint=f"is TWILIO_ACCOUNT_SID right? If it is, {_way_to_mend(job)}",
        )
    if (newest := max(moments, default=now)) > now + CLOCKS_DIFFER:
        raise ConfigError(
            f"the cursor of {job} in sync_state lies in the future: {newest:%FT%TZ}",
            hint=f"is this machine's clock right? If it is, {_way_to_mend(job)}",
        )
    if kind.read_from_here and (oldest := min(moments, default=now)) < now - RETENTION:
        raise ConfigError(
            f"the cursor of {job} in sync_state lies before what Twilio keeps: {oldest:%FT%TZ}", hint=_way_to_mend(job)
        )
    return cursor


def unreadable(job: JobName) -> ConfigError:
    """The error for a cursor that cannot be read."""
    return ConfigError(f"the cursor of {job} in sync_state cannot be read", hint=_way_to_mend(job))


def _moments(cursor: Any) -> Iterator[datetime]:
    """The moments of a cursor, and of the cursors in it."""
    for name in cursor.__struct_fields__:
        value = getattr(cursor, name)
        if isinstance(value, datetime):
            yield value
        elif isinstance(value, JobCursor):
            yield from _moments(value)


def _way_to_mend(job: JobName) -> str:
    if job.kind in ("hot", "warm"):
        account = f" --account {job.account_sid}" if job.account_sid else ""
        return f"`reconcile once {job.kind} --from 1d{account}` sets it anew"
    return f"delete the row of {job} from sync_state, and the next run begins anew"

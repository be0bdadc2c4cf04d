"""The cursors in `sync_state.cursor`: one type for each job, one function to write them, one to read them.

Design rules
- The JSON stays readable across versions: names and forms of fields never change, and new fields have a default.
- A cursor that cannot be right is refused before anything is read; the error names the way to repair it. It is never
  overwritten in silence, because it may be the only trace of the calls that are left to read.
- A clock that was ahead wrote a cursor in the future. The job begins again where it certainly was, and logs that. No
  person has to repair it.
- Moments are UTC, by our clock or Twilio's, whichever was behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Annotated, Any, ClassVar, Self, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from reconciler.errors import ConfigError
from reconciler.logs import get_logger
from reconciler.model import JobName
from reconciler.twilio.listing import RETENTION
from reconciler.twilio.server_clock import CLOCKS_DIFFER

log = get_logger(__name__)

Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class JobCursor(msgspec.Struct, kw_only=True):
    """A cursor. If `read_from_here`, the job continues at its oldest moment, so Twilio must still have that."""

    read_from_here: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, datetime):
                setattr(self, name, value.astimezone(UTC))

    def as_of(self, now: datetime) -> Self | None:  # noqa: ARG002 - a kind of its own may know better
        """Return the part of a cursor in the future that is certain; None if the job has to begin anew."""
        return None


class AccountCursor(JobCursor, kw_only=True):
    """This installation looks after an account since then: no cursor that moves, but the date of its first run."""

    since: Moment


class PlanCursor(JobCursor, kw_only=True):
    """The state of a plan for the window `[since, until)`. All times are whole seconds, as in the names of slices.

    - `done`: the number of statuses and days that were read to their end.
    - `pending_windows`: the windows of which nothing has been read, oldest first.
    - `begun`: the names of the slices that may have been read in part, each with the path of its next page; None before
      its first page.
    """

    since: Moment
    until: Moment
    done: int
    pending_windows: list[tuple[Moment, Moment]] = msgspec.field(name="uncut")
    begun: dict[str, str | None] = msgspec.field(name="open")


class HotCursor(JobCursor, kw_only=True, omit_defaults=True):
    """hot has read all calls created before `read_until`.

    - `plan`: set while a gap of days is being swept. Then every call created before `ahead_until` has been read, except
      those in slices the plan still lists.
    - `listed_until`, `next_page`: set while a listing is interrupted. The next run continues it at `next_page`.
    - `usual`: the number of calls in the last listing, or in a listing after a gap of usual length.
    - `looked_at`: the time when hot last asked about calls whose account is unknown.
    - `ended_until`: set once the account is known to have trunks. Every call that ended before it has been read.
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

    def as_of(self, now: datetime) -> HotCursor | None:
        """Return a cursor at `read_until`, unless that lies in the future itself."""
        if self.read_until > now:
            return None
        ended_until = None if self.ended_until is None else min(self.ended_until, self.read_until)
        return HotCursor(
            account=self.account, read_until=self.read_until, ended_until=ended_until, ends_by_day=self.ends_by_day
        )


class WarmCursor(JobCursor, kw_only=True):
    """warm need not ask again about calls that ended before `settled_until`. Its last run began at `looked_at`."""

    read_from_here: ClassVar[bool] = True

    account: str
    settled_until: Moment
    looked_at: Moment


class SweepCursor(JobCursor, kw_only=True):
    """cold's sweep that is under way: its window, and the days that are proven."""

    since: Moment
    until: Moment
    begun_at: Moment
    is_deep: bool
    settled: list[date]


class FewerRecordings(JobCursor, kw_only=True):
    """A day of which Twilio last listed `shrunk` recordings fewer than before: the digest of their SIDs, and when."""

    day: date
    shrunk: int
    digest: str
    listed_at: Moment


class ColdCursor(JobCursor, kw_only=True):
    """The times up to which cold's last sweep and last deep sweep read, and the sweep that is under way.

    `fewer_recordings`: the days of which another UTC day has to confirm that they have fewer recordings than before.
    """

    account: str
    swept_at: Moment | None = None
    deep_at: Moment | None = None
    sweep: SweepCursor | UnsetType | None = UNSET
    fewer_recordings: list[FewerRecordings] | UnsetType = UNSET


class WebhooksCursor(JobCursor, kw_only=True, omit_defaults=True):
    """The alerts of hours before `settled_until` were read; Twilio `refused` to tell of these things."""

    account: str
    settled_until: Moment | None = None
    refused: list[str] = msgspec.field(default_factory=list)


class RecordingsCursor(JobCursor, kw_only=True, omit_defaults=True):
    """All recordings created before `read_until` were read, except those in the slices `begun`; see PlanCursor.

    - `unfinished_since`: the creation of the oldest recording that was listed and not ready.
    - `found_at`: when a listing last held a recording.
    - `refused_at`: when Twilio last said that the credentials may not read recordings; None once it answered.
    """

    account: str
    read_until: Moment
    begun: dict[str, str | None] = msgspec.field(default_factory=dict)
    unfinished_since: Moment | None = None
    found_at: Moment | None = None
    refused_at: Moment | None = None


class FreezeCursor(JobCursor, kw_only=True):
    """freeze has logged the stuck calls that began at `named_since` or before."""

    named_since: Moment


class BackfillCursor(PlanCursor, kw_only=True):
    """The plan of a backfill, the options as the person wrote them, and the time when it began."""

    asked: dict[str, str | None]
    begun_at: Moment
    finished: bool

    def as_of(self, now: datetime) -> BackfillCursor | None:
        """Return the cursor as it is, unless the end of its window lies in the future.

        The plan does not depend on `begun_at`.
        """
        return None if max(self.since, self.until) > now + CLOCKS_DIFFER else self


class SliceCursor(PlanCursor, kw_only=True):
    """One slice that a worker of a fleet reads for a backfill: its plan, and the counts before the page under way.

    - `finished`: the slice was read to its end, and `counts` and `gaps` are those of all of it. Or it was cut, and
      `begun` has its parts, of which nothing was read.
    - `error`: why the slice could not be read, with the exit code of the error.
    """

    finished: bool = False
    counts: dict[str, float] = msgspec.field(default_factory=dict)
    gaps: dict[str, int] = msgspec.field(default_factory=dict)
    error: str | None = None
    exit_code: int | None = None


class BatchCursor(JobCursor, kw_only=True):
    """A backfill of several accounts: its options as written, its begin, and the end of the window read by account."""

    asked: dict[str, str | None]
    begun_at: Moment
    done: dict[str, Moment]


C = TypeVar("C", bound=JobCursor)


def name_account(account_sid: str) -> JobName:
    """The row of `sync_state` that notes since when this installation looks after an account."""
    return JobName("account", account_sid)


def encode(cursor: JobCursor) -> str:
    """Return a cursor as the JSON that `sync_state` stores."""
    value = msgspec.to_builtins(cursor, builtin_types=(datetime, date))
    return json.dumps(value, default=lambda moment: moment.isoformat())


def decode(job: JobName, value: object, kind: type[C]) -> C | None:
    """Return the cursor that `encode` wrote; None if the job has none.

    Raises:
        ConfigError: the cursor cannot be read.

    """
    if value is None or value == {}:
        return None
    try:
        cursor = msgspec.convert(value, kind)
        list(_moments(cursor))
    except (msgspec.ValidationError, OverflowError):
        raise unreadable(job) from None
    return cursor


def is_ahead(cursor: JobCursor, now: datetime) -> bool:
    """Return whether a cursor lies in the future, by more than clocks may differ."""
    return max(_moments(cursor), default=now) > now + CLOCKS_DIFFER


def load(job: JobName, value: object, kind: type[C], *, now: datetime, account_sid: str | None = None) -> C | None:
    """Return the cursor where `job` continues; None if it begins anew. A cursor in the future is corrected first.

    Raises:
        ConfigError: the cursor cannot be read, belongs to another account than `account_sid` (None allows any), or is
            older than Twilio's retention.

    """
    cursor = decode(job, value, kind)
    if cursor is None:
        return None
    of = getattr(cursor, "account", account_sid)
    if account_sid is not None and of != account_sid:
        raise ConfigError(
            f"the cursor of {job} in sync_state is that of another account, {of}",
            hint=f"is TWILIO_ACCOUNT_SID right? If it is, {_way_to_mend(job)}",
        )
    if is_ahead(cursor, now):
        log.warning("cursor.corrected", until=max(_moments(cursor)).isoformat())
        cursor = cursor.as_of(now)
    if cursor is None or not kind.read_from_here:
        return cursor
    if (oldest := min(_moments(cursor), default=now)) < now - RETENTION:
        raise ConfigError(
            f"the cursor of {job} in sync_state lies before what Twilio keeps: {oldest:%FT%TZ}", hint=_way_to_mend(job)
        )
    return cursor


def unreadable(job: JobName) -> ConfigError:
    """Return the error for a cursor that cannot be read."""
    return ConfigError(f"the cursor of {job} in sync_state cannot be read", hint=_way_to_mend(job))


def _moments(cursor: Any) -> Iterator[datetime]:
    """Yield the moments of a cursor and of the cursors inside it."""
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

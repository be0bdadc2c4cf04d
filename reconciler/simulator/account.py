"""A simulated account: its calls, recordings and alerts, its credentials, its endpoints and its subaccounts."""

from __future__ import annotations

import random
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from operator import attrgetter
from typing import Any, Literal

import msgspec

from reconciler.simulator.alerts import Alert
from reconciler.simulator.calls import (
    FINAL,
    Call,
    Record,
    SimulatedCall,
    VerbatimCall,
    scripted,
)
from reconciler.simulator.endpoints import Endpoints
from reconciler.simulator.filters import Filters, Span
from reconciler.simulator.generate import NUMBER_SIDS, TRUNK_SHARE, lives
from reconciler.simulator.losses import Loss
from reconciler.simulator.recordings import Callbacks, Recording, recordings_of
from reconciler.simulator.timeline import Timeline
from reconciler.simulator.wire import seconds

Status = Literal["active", "suspended", "closed"]
KeyKind = Literal["main", "standard", "restricted"]
EVERYTHING = Filters()

_ready = attrgetter("ready")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key of one account. A restricted key may read only the resources that `permissions` names.

    Resources are named calls, accounts, usage, recordings, endpoints and alerts.
    Kinds: https://www.twilio.com/docs/iam/api-keys.
    """

    sid: str
    secret: str
    kind: KeyKind = "main"
    permissions: frozenset[str] = frozenset()

    def may_read(self, resource: str) -> bool:
        """Standard keys read all but /Accounts and /Keys."""
        match self.kind:
            case "main":
                return True
            case "standard":
                return resource != "accounts"
            case "restricted":
                return resource in self.permissions


class SimulatedAccount:
    """An account. Its calls may be added, changed and deleted while a server lists them; thread-safe.

    Attributes:
        endpoints: its numbers, SIP domains and TwiML apps, including the numbers of generated calls.
        callbacks: the share of calls that are recorded, and the callbacks besides those of a call's status.
        alerts: the alerts of Twilio's Monitor (see `raise_alert`).
        added_recordings: recordings that were added by hand (see `add_recording`).
        losses: the webhooks that were lost, with the cause of each (see `road`).
        deleted_recordings: the second at which each deleted recording disappeared, by SID.

    """

    def __init__(
        self, sid: str, auth_token: str, *, seed: int = 0, friendly_name: str = "Simulated", status: Status = "active"
    ) -> None:
        self.sid = sid
        self.auth_token = auth_token
        self.friendly_name = friendly_name
        self.status: Status = status
        self.owner: SimulatedAccount | None = None
        self.subaccounts: dict[str, SimulatedAccount] = {}
        self.keys: dict[str, ApiKey] = {}
        self.endpoints = Endpoints(sid)
        self.callbacks = Callbacks()
        self.alerts: list[Alert] = []
        self.losses: list[Loss] = []
        self.deleted_recordings: dict[str, int] = {}
        self.added_recordings: list[Recording] = []
        self._random = random.Random(f"{sid}:{seed}")
        self._lock = threading.RLock()
        self._calls: dict[str, Call] = {}
        self._timeline = Timeline()
        self._recorded: tuple[Callbacks, list[Recording]] | None = None  # kept until a call changes
        self._ended_as = {status: Timeline() for status in FINAL}

    # Calls

    def add(self, *calls: Call) -> None:
        """Add calls. A SID that the account already has is a ValueError."""
        self._add(calls)

    def call(self, date_created: datetime, *, sid: str | None = None, **script: Any) -> SimulatedCall:
        """Script a call (see `calls.scripted`), add it and return it."""
        with self._lock:
            made = scripted(sid or self.new_sid(), self.sid, date_created, **script)
            self._add([made])
        return made

    def load(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add real records; the server then serves them verbatim under this account's SID."""
        self._add([VerbatimCall(record, self.sid) for record in records])

    def generate(self, count: int, since: datetime, until: datetime, *, trunk_share: float = TRUNK_SHARE) -> None:
        """Add `count` random calls created in [since, until). The same seed makes the same calls."""
        with self._lock:
            self._add(lives(self._random, self.sid, count, seconds(since), seconds(until), trunk_share))
            for number, sid in NUMBER_SIDS.items():
                if number not in self.endpoints.numbers:
                    self.endpoints.add_number(number, sid=sid)

    def change(self, sid: str, **fields: Any) -> SimulatedCall:
        """Change fields of a call's script (see `SimulatedCall`), for example the second at which it ends."""
        with self._lock:
            call = self._calls[sid]
            if not isinstance(call, SimulatedCall):
                raise TypeError(f"{sid} is a real record and has no script")
            changed = msgspec.structs.replace(call, **fields)
            self._remove(call)
            self._add([changed])
        return changed

    def hang_up(self, sid: str, at: datetime, *, status: str = "completed") -> SimulatedCall:
        """Make a call end at `at`; this replaces the end in its script."""
        return self.change(sid, ended=seconds(at), status=status, priced=None)

    def delete(self, sid: str, at: datetime) -> None:
        """Remove a call from listings and fetches, from `at` on."""
        with self._lock:
            call = self._calls[sid]
            if isinstance(call, VerbatimCall):
                call.deleted = seconds(at)
            else:
                self.change(sid, deleted=seconds(at))

    def calls_at(
        self, now: datetime, filters: Filters = EVERYTHING, *, after: Call | None = None, limit: int | None = None,
        skip: int = 0, with_deleted: bool = False,
    ) -> list[Call]:  # fmt: skip
        """Return the calls that are visible at `now` and pass the filters, newest date_created first.

        The list begins behind the call `after`, leaves out the first `skip` calls and holds at most `limit`.
        `with_deleted` also shows deleted calls.
        """
        at = seconds(now)
        span = filters.lifetime(at)
        timeline = self._ended_as.get(filters.status or "", self._timeline)
        with self._lock:
            found = (
                call
                for call in timeline.newest_first(
                    span.since, span.until, None if after is None else (after.created, after.sid)
                )
                if (call.is_visible(at) or (with_deleted and (call.deleted or at + 1) <= at))
                and filters.matches(call, at)
            )
            return list(islice(found, skip, None if limit is None else skip + limit))

    def calls_before(self, now: datetime, filters: Filters, newer_than: Call, limit: int) -> list[Call]:
        """Return the page before a call: the `limit` matching calls that are next newer than it, newest first."""
        at = seconds(now)
        with self._lock:
            found = (
                call
                for call in self._timeline.oldest_first((newer_than.created, newer_than.sid))
                if call.is_visible(at) and filters.matches(call, at)
            )
            return list(islice(found, limit))[::-1]

    def alive_between(self, since: datetime, until: datetime) -> list[Call]:
        """Return every call visible at `until` that was alive in [since, until), newest first, and possibly others."""
        first, last = seconds(since), seconds(until)
        with self._lock:
            found = [call for call in self._timeline.newest_first(first, last + 1) if call.is_visible(last)]
        return sorted(found, key=lambda call: (call.created, call.sid), reverse=True)

    def find(self, sid: str) -> Call | None:
        """Return the call of that SID, visible or not; None if the account never had it."""
        return self._calls.get(sid)

    def record(self, sid: str, now: datetime) -> Record | None:
        """Return Twilio's record of a call at `now`; None if the call is not visible then."""
        call = self._calls.get(sid)
        return call.render(seconds(now)) if call is not None and call.is_visible(seconds(now)) else None

    # Recordings and alerts

    def add_recording(
        self, started: datetime, ended: datetime, *, call_sid: str | None = None, conference_sid: str | None = None,
        source: str = "StartCallRecordingAPI", status: str = "completed",
    ) -> Recording:  # fmt: skip
        """Add a recording that no call's script asks for, and return it."""
        with self._lock:
            made = Recording(
                self.new_sid("RE"), self.sid, call_sid, seconds(started), seconds(ended), source, conference_sid,
                status=status,
            )  # fmt: skip
            self.added_recordings.append(made)
        return made

    def recordings_of(self, call_sid: str) -> list[Recording]:
        """Return the recordings of a call and of its conference, including those that are still to come."""
        return list(self._recordings_of([self._calls[call_sid]])) + [
            each for each in self.added_recordings if each.call_sid == call_sid
        ]

    def recordings_between(self, span: Span, call_sid: str | None = None) -> list[Recording]:
        """Return every recording that began or became ready within `span`; others may be among them."""
        with self._lock:
            if call_sid is None:
                recorded = self._all_recorded()
                first = 0 if span.since is None else bisect_left(recorded, span.since, key=_ready)
                return [*recorded[first:], *self.added_recordings]
            calls = [self._calls[call_sid]] if call_sid in self._calls else []
            return [*self._recordings_of(calls), *self.added_recordings]

    def delete_recording(self, sid: str, at: datetime) -> None:
        """Delete a recording at `at`. Lists that ask for soft-deleted recordings show it for 40 days more."""
        self.deleted_recordings[sid] = seconds(at)

    def raise_alert(
        self, at: datetime, error_code: str, request_url: str, *, resource_sid: str | None = None,
        log_level: str = "error",
    ) -> Alert:  # fmt: skip
        """Add a failure to Twilio's Monitor, which lists it half a minute later; return the alert."""
        made = Alert(self.new_sid("NO"), self.sid, seconds(at), error_code, request_url, resource_sid, log_level)
        self.alerts.append(made)
        return made

    def _all_recorded(self) -> list[Recording]:
        """Return the recordings that follow from calls, in the order in which they become ready."""
        if self._recorded is None or self._recorded[0] is not self.callbacks:
            self._recorded = self.callbacks, sorted(self._recordings_of(self._timeline), key=_ready)
        return self._recorded[1]

    def _recordings_of(self, calls: Iterable[Call]) -> Iterator[Recording]:
        for call in calls:
            if isinstance(call, SimulatedCall):
                yield from recordings_of(call, self.callbacks)

    def new_sid(self, prefix: str = "CA") -> str:
        """A fresh SID; SIDs have no order in time."""
        with self._lock:
            return f"{prefix}{self._random.getrandbits(128):032x}"

    @property
    def call_count(self) -> int:
        """The number of calls, visible or not. It is not `__len__`: an account without calls must not be falsy."""
        return len(self._calls)

    # Credentials and subaccounts

    def add_key(self, sid: str, secret: str, kind: KeyKind = "main", permissions: Iterable[str] = ()) -> ApiKey:
        """Create an API key (`SK…`) of this account."""
        key = self.keys[sid] = ApiKey(sid, secret, kind, frozenset(permissions))
        return key

    def add_subaccount(
        self, sid: str, auth_token: str, *, seed: int = 0, friendly_name: str = "Subaccount", status: Status = "active"
    ) -> SimulatedAccount:
        """Create a subaccount with calls, keys and an auth token of its own, and return it."""
        account = SimulatedAccount(sid, auth_token, seed=seed, friendly_name=friendly_name, status=status)
        account.owner = self
        self.subaccounts[sid] = account
        return account

    # The indexes

    def _add(self, calls: Iterable[Call]) -> None:
        with self._lock:
            calls = list(calls)
            new = {call.sid: call for call in calls}
            if len(new) != len(calls) or not new.keys().isdisjoint(self._calls):
                raise ValueError("two calls have the same SID")
            self._calls.update(new)
            self._recorded = None
            self._timeline.add(calls)
            for status, timeline in self._ended_as.items():
                timeline.add(call for call in calls if call.status == status)

    def _remove(self, call: Call) -> None:
        del self._calls[call.sid]
        self._recorded = None
        self._timeline.remove(call)
        if call.status in FINAL:
            self._ended_as[call.status].remove(call)

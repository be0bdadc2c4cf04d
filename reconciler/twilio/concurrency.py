"""The gates that limit concurrent requests: in this process, and in all processes of a database together."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from reconciler import metrics
from reconciler.errors import ReconcilerError
from reconciler.logs import get_logger
from reconciler.twilio.budget import Budget, Report, Share, answers_of_round, dump, load

REVISED_EVERY: Final = 1.0  # seconds, while requests are under way
REVISED_AT_ONCE: Final = 0.02  # seconds, when a request has no place because fewer were asked for; others come with it
REVISED_SOON: Final = 0.1  # seconds, when a request has no place or a round of answers is complete
IDLE_LOOKS: Final = 2  # revisions without a request before the share of an account is given back
CLOSED_WITHIN: Final = 1.0  # seconds; a share that is not given back is free after `budget.GONE_AFTER`

log = get_logger(__name__)


class Kept(Protocol):
    """A budget as it was kept, and the sessions that share it."""

    @property
    def value(self) -> object:
        """The budget."""

    @property
    def now(self) -> datetime:
        """The time, by one clock for all."""

    @property
    def session(self) -> int:
        """Our session with the ledger."""

    @property
    def sessions(self) -> Sequence[int]:
        """All sessions with it."""


class Ledger(Protocol):
    """The store through which processes share their budgets; see `database.budgets`."""

    def revise(self, account_sid: str, change: Callable[[Kept], Mapping[str, object]]) -> None:
        """Replace the value of an account by the result of `change`, called with the kept value."""

    def close(self) -> None:
        """Close the connection."""


@dataclass(slots=True, eq=False)
class Ticket:
    """The place of a request. `lowerings` is that of the share when the request got it.

    `running` is the largest number of requests of this process at once since then, itself included. Those that begin
    later may reach Twilio earlier.
    """

    lowerings: int
    running: int


class Gate:
    """The gate of one account. It lets as many requests pass at once as this process may send.

    If the gate `is_shared`, `revise` must be called at `due_at`. `on_due` is called whenever `due_at` is set earlier.
    """

    def __init__(
        self,
        ceiling: int,
        *,
        account_sid: str = "",
        changed: threading.Condition | None = None,
        on_due: Callable[[], None] = lambda: None,
    ) -> None:
        self._ceiling = ceiling
        self._account_sid = account_sid
        self._changed = changed or threading.Condition()
        self._on_due = on_due
        self._name = str(uuid.uuid4())
        self._alone: Budget | None = Budget()  # None if other processes share the budget
        self._share = self._alone.revise(self._name, Report(ceiling, is_hot=False, is_bulk=False), time.monotonic())
        self._tickets: set[Ticket] = set()  # of the requests under way
        self._running_in_bulk = 0
        self._waiting = {False: 0, True: 0}  # requests, by whether they are bulk work
        self._asked = {False: False, True: False}  # since the last report
        self._bulk_wanted = 0  # requests of bulk work under way or waiting, at most since the last report
        self._bulk_reported = 0  # the same, in the last report
        self._answers = 0
        self._throttled: int | None = None  # the lowerings at which 429s came since the last report, and how many
        self._refused = 0
        self._heard: int | None = None
        self._idle_looks = 0
        self.is_shared = False
        self.due_at: float | None = None  # monotonic time of the next revision; None if no request is sent

    def share(self) -> None:
        """Share the budget with other processes from now on: no request passes before the first `revise`."""
        self.is_shared, self._alone = True, None
        self._share = self._share._replace(most=0, bulk=0)
        if not self.is_idle:
            self._hurry(0)

    @property
    def limit(self) -> int:
        """The limit on concurrent requests of all processes together."""
        return self._share.limit

    @contextmanager
    def slot(self, *, is_bulk: bool = False) -> Iterator[Ticket]:
        """Wait for a place; yield a ticket for `throttled`, `succeeded` and `hear`."""
        with self._changed:
            self._waiting[is_bulk] += 1
            self._asked[is_bulk] = True
            self._bulk_wanted = max(self._bulk_wanted, self._running_in_bulk + self._waiting[True])
            try:
                if self._alone is not None:
                    self._revise_alone()
                if self.is_shared and self.due_at is None:
                    self._hurry(0)
                elif self.is_shared and not self._has_place(is_bulk=is_bulk):
                    is_for_fewer = is_bulk and self._share.bulk >= self._bulk_reported
                    self._hurry(REVISED_AT_ONCE if is_for_fewer else REVISED_SOON)
                self._changed.wait_for(lambda: self._has_place(is_bulk=is_bulk))
            finally:
                self._waiting[is_bulk] -= 1
            ticket = Ticket(self._share.lowerings, self._running + 1)
            self._tickets.add(ticket)
            self._running_in_bulk += is_bulk
            for under_way in self._tickets:
                under_way.running = max(under_way.running, self._running)
        try:
            yield ticket
        finally:
            with self._changed:
                self._tickets.remove(ticket)
                self._running_in_bulk -= is_bulk
                self._changed.notify_all()

    def throttled(self, ticket: Ticket) -> None:
        """Halve the limit, once for all requests that were under way together: a burst of 429s counts as one.

        The number of 429s of a burst is reported too.
        """
        with self._changed:
            if ticket.lowerings == self._throttled:
                self._refused += 1
                return
            is_late = ticket.lowerings < self._share.lowerings
            if ticket.lowerings < self._share.lowerings - 1 or (is_late and self._throttled is not None):
                return
            self._throttled, self._refused = ticket.lowerings, 1
            if is_late:
                return  # the next report says so
            self._answers = 0
            if self._alone is not None:
                self._revise_alone()
            else:
                limit, lowerings, most, bulk = self._share
                self._share = Share(max(1, limit // 2), lowerings, max(1, most // 2), (bulk + 1) // 2)
                self._hurry(0)

    def succeeded(self, ticket: Ticket) -> None:
        """Count an answer. A round of answers raises the limit by one."""
        with self._changed:
            if ticket.lowerings != self._share.lowerings or self._throttled == self._share.lowerings:
                return  # a request sent before the limit was lowered says nothing about the lower limit
            self._answers += 1
            if self._alone is not None:
                self._revise_alone()
            elif (
                self.is_shared
                and self._share.limit < self._ceiling
                and self._answers >= answers_of_round(self._share.limit, self._share.lowerings)
            ):
                self._hurry(REVISED_SOON)

    def hear(self, ticket: Ticket, load: int | None) -> None:
        """Record the account's `load` at Twilio, if an answer gave it (`Twilio-Concurrent-Requests`).

        The requests under way in this process are subtracted; the rest belongs to others.
        """
        if load is not None:
            with self._changed:
                others = max(0, load - ticket.running)
                self._heard = others if self._heard is None else min(self._heard, others)

    def revise(self, ledger: Ledger) -> None:
        """Report to the ledger and take this process's share; without the database the share does not change.

        Raises:
            ReconcilerError: the ledger cannot be reached.

        """
        share, leaves = self._share, False

        def change(kept: Kept) -> Mapping[str, object]:
            nonlocal share, leaves
            # Not earlier: while the ledger opens, more requests come, and the first share is for all of them.
            with self._changed:
                report = self._report()
                # From here on `_hurry` sets it earlier for what this report does not tell.
                self.due_at = time.monotonic() + REVISED_EVERY
                leaves = self._idle_looks >= IDLE_LOOKS
                if leaves:  # no request passes from here on
                    self._share = share._replace(most=0, bulk=0)
            budget = load(kept.value)
            budget.forget_all_but(kept.sessions)
            if leaves:
                budget.leave(self._name)
                share = Share(budget.limit, budget.lowerings, 0, 0)
            else:
                share = budget.revise(self._name, report, kept.now.timestamp(), session=kept.session)
            return dump(budget)

        try:
            ledger.revise(self._account_sid, change)
        except ReconcilerError:
            with self._changed:
                self._go_on_without(share)
            raise
        with self._changed:
            self._alone = None
            self._take(share)
            if leaves:
                self.due_at = None if self.is_idle else time.monotonic()
            elif share.most == 0 and any(self._waiting.values()):
                self._hurry(REVISED_SOON)

    def leave(self) -> None:
        """Give the share back at the next revision."""
        self._idle_looks = IDLE_LOOKS

    @property
    def _running(self) -> int:
        return len(self._tickets)

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way or waits."""
        return self._running == 0 and not any(self._waiting.values())

    def _go_on_without(self, last: Share) -> None:
        """Keep the last share; without one, work as if this process were the only one."""
        if last.most:
            self._take(last)
        else:
            self._alone = Budget()
            self._revise_alone()
        self.due_at = None if self.is_idle else time.monotonic() + REVISED_EVERY

    def _revise_alone(self) -> None:
        assert self._alone is not None
        self._take(self._alone.revise(self._name, self._report(), time.monotonic()))

    def _report(self) -> Report:
        """Return the report since the last one, and start the next."""
        is_idle = self.is_idle and not any(self._asked.values())
        self._idle_looks = self._idle_looks + 1 if is_idle else 0
        report = Report(
            self._ceiling,
            is_hot=self._asked[False] or self._running > self._running_in_bulk or self._waiting[False] > 0,
            is_bulk=self._asked[True] or self._running_in_bulk > 0 or self._waiting[True] > 0,
            running=self._running,
            running_in_bulk=self._running_in_bulk,
            answers=self._answers,
            throttled=self._throttled,
            refused=self._refused,
            others=self._heard,
            bulk_wanted=self._bulk_wanted,
        )
        self._asked = {False: False, True: False}
        self._bulk_reported = self._bulk_wanted
        self._bulk_wanted = self._running_in_bulk + self._waiting[True]
        self._answers, self._throttled, self._heard = 0, None, None
        return report

    def _take(self, share: Share) -> None:
        self._share = share
        metrics.concurrency.labels(self._account_sid).set(share.limit)
        self._changed.notify_all()

    def _has_place(self, *, is_bulk: bool) -> bool:
        if not is_bulk:
            return self._running < self._share.most
        # Other work than bulk work goes first: it must keep an interval.
        return self._running_in_bulk < self._share.bulk and self._running + self._waiting[False] < self._share.most

    def _hurry(self, within: float) -> None:
        """Bring the next revision forward to `within` seconds from now."""
        at = time.monotonic() + within
        if self.due_at is None or at < self.due_at:
            self.due_at = at
            self._on_due()
            self._changed.notify_all()


class Pacer:
    """The gates of all accounts; with a ledger, all processes that use it share one budget for each account.

    A thread revises the shares in the ledger. It starts with the first request, and does nothing while no request is
    sent.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self._changed = threading.Condition()
        self._gates: dict[str, Gate] = {}
        self._ledger: Ledger | None = None
        self._bookkeeper: threading.Thread | None = None
        self._is_closing = False

    def gate(self, account_sid: str) -> Gate:
        """Return the gate of an account."""
        with self._changed:
            gate = self._gates.get(account_sid)
            if gate is None:
                gate = self._gates[account_sid] = Gate(
                    self.ceiling, account_sid=account_sid, changed=self._changed, on_due=self._begin_books
                )
                if self._ledger is not None:
                    gate.share()
            return gate

    def share_through(self, ledger: Ledger) -> None:
        """Share the budget of each account with the other processes that use the ledger."""
        with self._changed:
            self._ledger = ledger
            for gate in self._gates.values():
                gate.share()

    def close(self) -> None:
        """Give the shares back when no request is under way any more. A later request takes a share again."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            bookkeeper = self._bookkeeper if all(gate.is_idle for gate in self._gates.values()) else None
        if bookkeeper is not None:
            bookkeeper.join(CLOSED_WITHIN)

    def _begin_books(self) -> None:
        """Start the thread if it does not run; the caller holds the lock."""
        if self._bookkeeper is None:
            self._is_closing = False
            self._bookkeeper = threading.Thread(target=self._keep_books, name="budget", daemon=True)
            self._bookkeeper.start()

    def _keep_books(self) -> None:
        ledger, has_failed = self._ledger, False
        assert ledger is not None
        while (gates := self._due()) is not None:
            for gate in gates:
                try:
                    gate.revise(ledger)
                    has_failed = False
                except ReconcilerError as exc:
                    if not has_failed:
                        log.warning("budget.unshared", error=str(exc))
                    has_failed = True
        ledger.close()

    def _due(self) -> list[Gate] | None:
        """Wait for gates that are due and return them; None when the pacer is closed and no request is sent."""
        with self._changed:
            while True:
                due = [(gate.due_at, gate) for gate in self._gates.values() if gate.due_at is not None]
                if self._is_closing and all(gate.is_idle for gate in self._gates.values()):
                    if not due:
                        self._bookkeeper = None
                        return None
                    for _, gate in due:
                        gate.leave()
                    return [gate for _, gate in due]
                now = time.monotonic()
                if ripe := [gate for at, gate in due if at <= now]:
                    return ripe
                self._changed.wait(min([at - now for at, _ in due], default=None))

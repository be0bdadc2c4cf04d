"""The budget of requests: how many of an account may run at once, in all processes together; pure.

Twilio limits the concurrent requests of the whole account, which other programs share, and does not publish the number
(https://www.twilio.com/docs/api/errors/20429). The budget therefore approaches the limit from below.

Design rules
- The budget of an account is one value that all processes share. While a process sends requests, it revises the value
  about once a second, and takes no more than the others leave. Together they never exceed the limit, even while shares
  change.
- A 429 halves the limit. The 429s of requests that were under way together are one sign, and their number shows by how
  many the limit was too high.
- Until the first 429 each answer raises the limit by one, so the limit doubles while each place is used once. After
  that a round of answers raises it by one: an answer for each place. Near a limit that Twilio refused lately it takes
  many rounds, because each further try costs a refused request.
- A process of bulk work takes no more than it asks for at once: so each worker of a fleet finds a place.
- Hot comes first. If hot has sent requests within the last hour, bulk work (backfill, cold) leaves it a quarter of the
  limit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

import msgspec

START: Final = 8  # requests at once, before anything is known about the limit
GONE_AFTER: Final = 10.0  # seconds without a report: the process hangs, and its share becomes free
REMEMBERED_FOR: Final = 3600.0  # seconds after the last report in which a limit still counts
HOT_EXPECTED_FOR: Final = 3600.0  # seconds after hot's last request in which a daemon is expected to send more
WARY_ROUNDS: Final = 16  # rounds without a 429 before a refused limit is tried again


class Process(msgspec.Struct):
    """The share of one process: `most` requests at once, `bulk` of them for bulk work; see `Budget.revise`."""

    most: int
    bulk: int
    is_hot: bool
    is_bulk: bool
    seen_at: float
    session: int  # of the process with the database; when it ended, the process was killed
    ceiling: int  # the limit for all processes in this process's settings; the smallest one counts
    bulk_wanted: int | None = None  # requests of bulk work at once, at most; None: an older version does not say


class Report(NamedTuple):
    """A process's report about the time since its last report, and its wishes.

    - `throttled`: the `lowerings` at which 429s came; None if none came. `refused`: how many came.
    - `answers`: the number of answers under the limit that the process knows.
    - `others`: the account's requests that were not this process's; None if no answer gave the number.
    - `bulk_wanted`: the largest number of requests of bulk work that were under way or waited at once.
    """

    ceiling: int
    is_hot: bool
    is_bulk: bool
    running: int = 0
    running_in_bulk: int = 0
    answers: int = 0
    throttled: int | None = None
    refused: int = 1
    others: int | None = None
    bulk_wanted: int | None = None


class Share(NamedTuple):
    """A process's share until its next report: `most` requests at once, `bulk` of them for bulk work."""

    limit: int  # of all processes together
    lowerings: int
    most: int
    bulk: int


class Budget(msgspec.Struct):
    """The budget of one account. `lowerings` counts how often a 429 lowered the limit."""

    limit: int = START
    lowerings: int = 0
    answers: int = 0  # since the last change of the limit
    refused_at: int | None = None  # the limit at the last 429
    others: int = 0  # concurrent requests of other programs
    revised_at: float | None = None  # the last report
    hot_at: float | None = None  # hot's last request
    processes: dict[str, Process] = {}

    def revise(self, name: str, report: Report, now: float, *, session: int = 0) -> Share:
        """Enter the report of the process `name`, and return its share; `now` is in seconds, on one clock for all."""
        self._forget(now)
        self._note(name, report, now)
        ceiling = min(process.ceiling for process in self.processes.values())
        limit = max(1, min(self.limit, ceiling - self.others))
        mine = self.processes[name]
        mine.session = session
        others = [process for other, process in self.processes.items() if other != name]
        for_bulk = limit - self._reserve(limit, now)
        in_bulk = {known: process for known, process in self.processes.items() if process.is_bulk}
        bulk_parts = _parts(for_bulk, {known: process.bulk_wanted for known, process in in_bulk.items()})
        bulk = min(bulk_parts.get(name, 0), for_bulk - sum(process.bulk for process in others))
        left = limit - sum(process.most for process in others)
        if mine.is_hot:
            equal = _parts(for_bulk, dict.fromkeys(in_bulk))
            for_hot = limit - sum(part for known, part in equal.items() if not self.processes[known].is_hot)
            hot_parts = _parts(for_hot, {known: None for known, process in self.processes.items() if process.is_hot})
            most = min(max(1, hot_parts[name]), left)
        else:
            most = min(bulk, left - sum(process.is_hot and process.most == 0 for process in others))
        most = max(0, most)
        bulk = max(0, min(bulk, most))
        # Requests under way beyond a share that became smaller stay in the share until they end.
        mine.most, mine.bulk = max(most, report.running), max(bulk, report.running_in_bulk)
        return Share(limit, self.lowerings, most, bulk)

    def forget_all_but(self, sessions: Collection[int]) -> None:
        """Take back the shares of processes whose session ended."""
        for name in [name for name, process in self.processes.items() if process.session not in sessions]:
            del self.processes[name]

    def leave(self, name: str) -> None:
        """Remove the share of a process that sends no more requests."""
        self.processes.pop(name, None)

    def _forget(self, now: float) -> None:
        for name in [name for name, process in self.processes.items() if now - process.seen_at > GONE_AFTER]:
            del self.processes[name]
        if not self.processes:
            self.answers, self.others = 0, 0
            if self.revised_at is None or now - self.revised_at > REMEMBERED_FOR:
                self.limit = min(self.limit, START)
        self.revised_at = now

    def _note(self, name: str, report: Report, now: float) -> None:
        mine = self.processes.setdefault(
            name, Process(0, 0, is_hot=False, is_bulk=False, seen_at=now, session=0, ceiling=1)
        )
        mine.is_hot, mine.is_bulk, mine.seen_at, mine.ceiling = report.is_hot, report.is_bulk, now, report.ceiling
        mine.bulk_wanted = report.bulk_wanted
        if report.is_hot:
            self.hot_at = now
        if report.others is not None:
            ours = sum(process.most for known, process in self.processes.items() if known != name)
            self.others = max(0, report.others - ours)
        if report.throttled == self.lowerings:
            self._lower(report)
        else:
            self._raise(report)

    def _lower(self, report: Report) -> None:
        """Halve the limit."""
        too_many = min(self.limit, report.ceiling)
        self.limit, self.answers = max(1, too_many // 2), 0
        self.lowerings += 1
        self._narrow(too_many, report.refused - 1)

    def _narrow(self, too_many: int, refused: int) -> None:
        """Note that of `too_many` requests at once Twilio refused one and `refused` more: it allows that much less."""
        self.refused_at = max(self.limit + 1, too_many - refused)

    def _raise(self, report: Report) -> None:
        """Count the answers; a round of them raises the limit. Late 429s narrow it."""
        if report.throttled == self.lowerings - 1 and self.refused_at is not None:
            self._narrow(self.refused_at, report.refused)
        self.answers += report.answers
        while self.limit < report.ceiling and self.answers >= self._wanted():
            self.answers -= self._wanted()
            self.limit += 1
            if self.refused_at is not None and self.limit >= self.refused_at:
                self.refused_at = None

    def _wanted(self) -> int:
        """Return how many answers raise the limit by one."""
        is_wary = self.refused_at is not None and self.limit + 1 >= self.refused_at
        return answers_of_round(self.limit, self.lowerings) * (WARY_ROUNDS if is_wary else 1)

    def _reserve(self, limit: int, now: float) -> int:
        """Return how many places bulk work leaves to hot."""
        is_hot_expected = self.hot_at is not None and now - self.hot_at < HOT_EXPECTED_FOR
        return max(1, limit // 4) if is_hot_expected and limit > 1 else 0


def _parts(total: int, wanted: Mapping[str, int | None]) -> dict[str, int]:
    """Divide `total` into parts by name: none is larger than wanted, and the others differ by one at most."""
    parts: dict[str, int] = {}
    for name in sorted(wanted, key=lambda name: (total if (most := wanted[name]) is None else most, name)):
        equal = -(-(total - sum(parts.values())) // (len(wanted) - len(parts)))
        most = wanted[name]
        parts[name] = equal if most is None else min(most, equal)
    return parts


def answers_of_round(limit: int, lowerings: int) -> int:
    """Return how many answers without a 429 raise by one a limit that was lowered so often."""
    return limit if lowerings else 1


def load(value: object) -> Budget:
    """Return the stored budget; a new one if there is none or if it cannot be read."""
    try:
        return msgspec.convert(value, Budget)
    except msgspec.ValidationError:
        return Budget()


def dump(budget: Budget) -> Mapping[str, object]:
    """Return the budget as JSON values to store."""
    return msgspec.to_builtins(budget)  # type: ignore[no-any-return]

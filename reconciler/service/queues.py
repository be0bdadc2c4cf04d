"""Which tasks the fleet's queue holds, and which of them a worker takes next; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from reconciler.model import JobName

HOT, USUAL, BULK, LEADER = "hot", "usual", "bulk", "leader"
# Queue and priority by kind of job; tasks of a higher priority come first. The leader works those that ask only the
# database: monitoring takes the numbers of calls, webhooks and bytes from the daemon that leads.
PLACES: Final[Mapping[str, tuple[str, int]]] = {
    "hot": (HOT, 50), "inbox": (LEADER, 40), "warm": (USUAL, 30), "recordings": (USUAL, 25), "freeze": (LEADER, 20),
    "housekeeping": (LEADER, 20), "webhooks": (USUAL, 10), "cold": (BULK, 10), "backfill": (BULK, 0),
}  # fmt: skip


class Pending(NamedTuple):
    """A task that is in the queue or at work."""

    is_at_work: bool
    is_put_off: bool


@dataclass(frozen=True, slots=True)
class Deferrals:
    """The jobs to defer, and those whose run does not happen, with the reason."""

    wanted: list[JobName]
    missed: list[tuple[JobName, str]]


def decide_deferrals(due: Iterable[JobName], pending: Mapping[str, Pending]) -> Deferrals:
    """Decide which of the jobs that are due are deferred; pure.

    - A job whose task waits for a worker is late; one that is at work overruns. Neither is deferred again.
    - A job that was put off, after a failure, is neither deferred nor missed.
    """
    found = Deferrals([], [])
    for job in due:
        task = pending.get(str(job))
        if task is None:
            found.wanted.append(job)
        elif not task.is_put_off:
            found.missed.append((job, "overrun" if task.is_at_work else "late"))
    return found


def open_queues(running: Collection[str], slots: int, *, leads: bool) -> list[str]:
    """Return the queues that a worker may take its next task from, given the queues of its runs; pure.

    A quarter of the slots stays free for hot, and one more for all but bulk work. So no kind of work waits for another,
    however long that takes.
    """
    counts = Counter(running)
    others = len(running) - counts[HOT]
    queues = [HOT]
    if others < slots - _for_hot(slots):
        queues += [USUAL, LEADER] if leads else [USUAL]
        if counts[BULK] < bulk_slots(slots):
            queues.append(BULK)
    return queues


def bulk_slots(slots: int) -> int:
    """Return how many runs of bulk work a worker takes at once."""
    return slots - _for_hot(slots) - 1


def _for_hot(slots: int) -> int:
    return max(1, slots // 4)

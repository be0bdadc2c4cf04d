"""When Twilio last answered a job, for the jobs that do not ask Twilio: the cursors of hot, warm and cold tell.

What cannot be undone, such as freezing and deleting, goes by this time. Our own clock may be ahead.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

from reconciler.errors import ConfigError
from reconciler.model import JobName
from reconciler.sync.cursors import ColdCursor, HotCursor, JobCursor, WarmCursor, decode, is_ahead
from reconciler.sync.run import Run

C = TypeVar("C", bound=JobCursor)


def heard_at(this: Run[Any]) -> datetime | None:
    """Return when Twilio last answered, by its own clock; our time if ours is behind; None if no job has asked yet."""
    now = this.now()
    moments: list[datetime | None] = []
    moments += [c.ahead_until or c.read_until for c in read_cursors(this, "hot", HotCursor) if not is_ahead(c, now)]
    moments += [c.looked_at for c in read_cursors(this, "warm", WarmCursor) if not is_ahead(c, now)]
    moments += [c.swept_at for c in read_cursors(this, "cold", ColdCursor) if not is_ahead(c, now)]
    last = max(filter(None, moments), default=None)
    return None if last is None else min(now, last)


def read_cursors(this: Run[Any], kind: str, type_: type[C]) -> list[C]:
    """Return the cursors of all jobs of a kind. An unreadable one is left out; its own job reports it."""
    cursors = []
    for value in this.persist(lambda: this.context.store.read_cursors(kind)):
        with suppress(ConfigError):
            cursor = decode(JobName(kind), value, type_)
            if cursor is not None:
                cursors.append(cursor)
    return cursors

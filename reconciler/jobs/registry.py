"""The jobs of the schedule: the function of each, its interval, and its time limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from reconciler.database.webhook_evidence import READ_EVERY
from reconciler.jobs.backfill_slice import read_slice
from reconciler.jobs.cold import cold
from reconciler.jobs.freeze import freeze
from reconciler.jobs.hot import hot
from reconciler.jobs.housekeeping import keep_house
from reconciler.jobs.inbox import work_inbox
from reconciler.jobs.recordings import READ_EVERY as READ_RECORDINGS_EVERY
from reconciler.jobs.recordings import read_new_recordings
from reconciler.jobs.warm import warm
from reconciler.jobs.webhooks import read_webhooks
from reconciler.settings import Settings
from reconciler.sync.context import JobContext
from reconciler.sync.counts import Counts


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job. If it `asks_twilio`, there is one job for each account. Bulk work leaves concurrency to others."""

    work: Callable[[JobContext], Counts]
    interval: Callable[[Settings], timedelta]
    time_limit: timedelta
    asks_twilio: bool
    is_bulk: bool = False


KINDS: Final[Mapping[str, Kind]] = {
    "hot": Kind(hot, lambda s: s.hot_interval, timedelta(minutes=30), asks_twilio=True),
    "warm": Kind(warm, lambda s: s.warm_interval, timedelta(hours=1), asks_twilio=True),
    "cold": Kind(cold, lambda s: s.cold_interval, timedelta(hours=12), asks_twilio=True, is_bulk=True),
    "freeze": Kind(freeze, lambda s: s.freeze_interval, timedelta(minutes=30), asks_twilio=False),
    "inbox": Kind(work_inbox, lambda s: s.inbox_interval, timedelta(minutes=30), asks_twilio=False),
    "housekeeping": Kind(keep_house, lambda _: timedelta(days=1), timedelta(hours=6), asks_twilio=False),
    "recordings": Kind(
        read_new_recordings, lambda _: READ_RECORDINGS_EVERY, timedelta(minutes=30), asks_twilio=True, is_bulk=True
    ),
    "webhooks": Kind(read_webhooks, lambda _: READ_EVERY, timedelta(minutes=30), asks_twilio=True, is_bulk=True),
}

# Not scheduled: a backfill by a fleet defers it.
SLICE: Final = Kind(read_slice, lambda _: timedelta(minutes=1), timedelta(hours=12), asks_twilio=True, is_bulk=True)

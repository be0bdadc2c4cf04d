"""The jobs: what each needs, how often it is due, how long it may take. They run by the schedule, and by `once`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from reconciler.database.store import Store
from reconciler.jobs.cold import cold
from reconciler.jobs.freeze import freeze
from reconciler.jobs.hot import hot
from reconciler.jobs.housekeeping import keep_house
from reconciler.jobs.inbox import work_inbox
from reconciler.jobs.warm import warm
from reconciler.model import Job
from reconciler.settings import Settings
from reconciler.sync.run import Terms, Totals
from reconciler.twilio.client import Session


@dataclass(frozen=True, slots=True)
class Means:
    """What one run of a job works with. `account_sid` and `source` are those of jobs that ask Twilio."""

    job: Job
    settings: Settings
    store: Store
    terms: Terms
    source: Session | None = None
    account_sid: str = ""
    is_main: bool = True  # it looks after calls that name no account
    is_alone: bool = True  # there is no other account that such a call could belong to
    since: datetime | None = None  # instead of the cursor
    is_scheduled: bool = False  # or asked for by a person, who wants it all now
    looked_after: tuple[str, ...] | None = ()  # accounts whose jobs run by the schedule; None: not all are known yet

    @property
    def twilio(self) -> Session:
        """The source, for a job that asks Twilio."""
        assert self.source is not None
        return self.source


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job; `asks_twilio`: there is one for each account."""

    interval: Callable[[Settings], timedelta]
    within: timedelta
    asks_twilio: bool
    work: Callable[[Means], Totals]
    is_bulk: bool = False


def job_of(kind: str, account_sid: str | None, *, main: str | None) -> Job:
    """The job of that kind for an account, or for the whole database."""
    return Job(kind if account_sid is None or account_sid == main else f"{kind}:{account_sid}")


def _hot(means: Means) -> Totals:
    return hot(
        means.account_sid, job=means.job, is_main=means.is_main, store=means.store, source=means.twilio,
        terms=means.terms, is_alone=means.is_alone, overlap=means.settings.overlap, since=means.since,
    )  # fmt: skip


def _warm(means: Means) -> Totals:
    settings = means.settings
    return warm(
        means.account_sid, job=means.job, is_main=means.is_main, store=means.store, source=means.twilio,
        terms=means.terms, is_alone=means.is_alone, freeze_after=settings.freeze_after, overlap=settings.overlap,
        interval=settings.warm_interval if means.is_scheduled else None, since=means.since,
    )  # fmt: skip


def _cold(means: Means) -> Totals:
    return cold(means.account_sid, job=means.job, store=means.store, source=means.twilio, terms=means.terms)


def _freeze(means: Means) -> Totals:
    settings = means.settings
    return freeze(
        means.store, terms=means.terms, freeze_after=settings.freeze_after, stuck_after=settings.stuck_after,
        looked_after=means.looked_after,
    )  # fmt: skip


def _inbox(means: Means) -> Totals:
    return work_inbox(means.store, terms=means.terms, grace=means.settings.inbox_grace)


def _keep_house(means: Means) -> Totals:
    return keep_house(means.store, terms=means.terms, inbox_retention=means.settings.inbox_retention)


KINDS: Final[Mapping[str, Kind]] = {
    "hot": Kind(lambda s: s.hot_interval, timedelta(minutes=30), asks_twilio=True, work=_hot),
    "warm": Kind(lambda s: s.warm_interval, timedelta(hours=1), asks_twilio=True, work=_warm),
    "cold": Kind(lambda s: s.cold_interval, timedelta(hours=12), asks_twilio=True, work=_cold, is_bulk=True),
    "freeze": Kind(lambda s: s.freeze_interval, timedelta(minutes=30), asks_twilio=False, work=_freeze),
    "inbox": Kind(lambda s: s.inbox_interval, timedelta(minutes=30), asks_twilio=False, work=_inbox),
    "housekeeping": Kind(lambda _: timedelta(days=1), timedelta(hours=6), asks_twilio=False, work=_keep_house),
}

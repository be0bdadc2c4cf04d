"""The choice of jobs and accounts that fit a screen: those with trouble by name, the rest counted; pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Final, NamedTuple

from reconciler.model import JobName
from reconciler.status.snapshot import AccountDay, JobState

FEW: Final = 30  # up to so many jobs are all named
NAMED: Final = 12  # failing jobs, accounts and days that are named if there are many


class JobGroup(NamedTuple):
    """The jobs of one kind that did not fail: their number, the age of the oldest last success, and how many run."""

    kind: str
    jobs: int
    oldest_success_seconds: float | None
    running: int


class JobsShown(NamedTuple):
    """The jobs that are named, the groups that are counted, and the number of failing jobs that are neither."""

    named: list[JobState]
    groups: list[JobGroup]
    failing_unnamed: int


def jobs_shown(jobs: Sequence[JobState]) -> JobsShown:
    """Name all jobs if there are few. Of many, name those that failed last, and count the others by kind."""
    if len(jobs) <= FEW:
        return JobsShown(list(jobs), [], 0)
    failing = sorted((job for job in jobs if job.last_error_at), key=lambda job: str(job.last_error_at), reverse=True)
    by_kind: dict[str, list[JobState]] = {}
    for job in jobs:
        if job.last_error_at is None:
            by_kind.setdefault(JobName.parse(job.job).kind, []).append(job)
    groups = []
    for kind, those in by_kind.items():
        ages = [job.age_seconds for job in those if job.age_seconds is not None]
        groups.append(JobGroup(kind, len(those), max(ages, default=None), sum(job.is_running for job in those)))
    return JobsShown(failing[:NAMED], groups, max(0, len(failing) - NAMED))


def accounts_shown(days: Sequence[AccountDay], *, most: int = NAMED) -> tuple[dict[str, dict[date, AccountDay]], int]:
    """Return the days by account, accounts with incomplete or the fewest days first, and how many are left out."""
    by_account: dict[str, dict[date, AccountDay]] = {}
    for day in days:
        by_account.setdefault(day.account_sid, {})[day.day] = day
    if len(by_account) <= most:
        return by_account, 0
    worst = sorted(
        by_account,
        key=lambda account: (all(day.is_complete for day in by_account[account].values()), len(by_account[account])),
    )
    return {account: by_account[account] for account in worst[:most]}, len(by_account) - most

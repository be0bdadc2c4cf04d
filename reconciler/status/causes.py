"""The causes why jobs fail, read from the errors in `sync_state`; pure.

`sync_state.last_error` is text. A refusal begins with words of our own (`twilio.answers`, `database.connection`); a
test compares this list with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from reconciler.model import JobName
from reconciler.status.snapshot import JobState
from reconciler.wording import counted

_REFUSED_BY_TWILIO: Final = (
    "Twilio refused the credentials",
    "Twilio does not allow this",
    "the key in TWILIO_API_KEY",
)
_REFUSED_BY_DATABASE: Final = (
    "the database refused the login",
    "the role lacks a privilege",
    "there is no such database",
)


class Cause(NamedTuple):
    """One error, and the jobs whose newest run ended in it; the job that failed last comes first."""

    error: str
    jobs: list[JobState]

    @property
    def is_refusal_by_twilio(self) -> bool:
        """Whether Twilio refused the credentials or the request."""
        return self.error.startswith(_REFUSED_BY_TWILIO)

    @property
    def is_refusal_by_database(self) -> bool:
        """Whether PostgreSQL refused the login or a privilege."""
        return self.error.startswith(_REFUSED_BY_DATABASE)

    def is_of_account(self, main: str | None) -> bool:
        """Whether one of the failing jobs belongs to the main account `main` or to the whole database."""
        return any(name.account_sid in (None, main) for name in self._names())

    def ends_daemon(self, main: str | None) -> bool:
        """Whether the daemon itself ran one of these jobs for the main account. A backfill is a command of its own."""
        return any(name.account_sid in (None, main) and name.kind != "backfill" for name in self._names())

    def _names(self) -> list[JobName]:
        return [JobName.parse(job.job) for job in self.jobs]

    def named(self) -> str:
        """Return the kinds of the jobs, and the number of accounts if there are several: `hot, warm of 3 accounts`."""
        names = self._names()
        kinds = sorted({name.kind for name in names})
        accounts = {name.account_sid for name in names}
        if len(self.jobs) == 1:
            return self.jobs[0].job
        return ", ".join(kinds) + (f" of {counted(len(accounts), 'account')}" if len(accounts) > 1 else "")


def causes(jobs: Iterable[JobState]) -> list[Cause]:
    """Return the causes of jobs that failed since their last success: refusals first, then by number of jobs."""
    failing = sorted(
        (job for job in jobs if job.last_error_at is not None), key=lambda job: str(job.last_error_at), reverse=True
    )
    by_error: dict[str, list[JobState]] = {}
    for job in failing:
        by_error.setdefault(job.last_error or "", []).append(job)
    found = [Cause(error, those) for error, those in by_error.items()]
    return sorted(found, key=lambda c: (not (c.is_refusal_by_twilio or c.is_refusal_by_database), -len(c.jobs)))

"""One run for each of several accounts: an account that is refused keeps no other from its run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from reconciler.errors import JobHeld, ReconcilerError
from reconciler.model import JobName

C = TypeVar("C")


def name_job(kind: str, account_sid: str | None, *, main: str | None) -> JobName:
    """The job of that kind for an account, or with None for the whole database; the main account is not named."""
    return JobName(kind, None if account_sid == main else account_sid)


def for_each_account(
    accounts: Sequence[str], work: Callable[[str], C], *, has_worked: Callable[[], bool]
) -> Iterator[tuple[str, C | ReconcilerError]]:
    """Do `work` for one account after another; gives each account's result, or the error that concerns it alone.

    A refusal, or a job that another process holds, concerns one account, unless there is only one. `has_worked` tells
    whether Twilio has accepted the credentials once; until then a refusal concerns all.

    Raises:
        ReconcilerError: what concerns all accounts.

    """
    for account_sid in accounts:
        try:
            result: C | ReconcilerError = work(account_sid)
        except ReconcilerError as exc:
            is_its_own = isinstance(exc, JobHeld) or (exc.is_refusal and has_worked())
            if len(accounts) == 1 or not is_its_own:
                raise
            result = exc
        yield account_sid, result

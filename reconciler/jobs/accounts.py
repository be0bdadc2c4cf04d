"""One run for each of several accounts: a refused account does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from reconciler.errors import JobHeld, ReconcilerError

C = TypeVar("C")


def for_each_account(
    accounts: Sequence[str], work: Callable[[str], C], *, has_worked: Callable[[], bool]
) -> Iterator[tuple[str, C | ReconcilerError]]:
    """Call `work` for one account after another; yield each account's result, or an error that concerns it alone.

    - With several accounts, a refusal or a job that another process holds concerns one account.
    - `has_worked` returns whether Twilio has accepted the credentials before. Until then a refusal concerns all.

    Raises:
        ReconcilerError: the error concerns all accounts.

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

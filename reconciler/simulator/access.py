"""Basic authentication as Twilio checks it: which credentials may read which account.

| credentials | may read |
| --- | --- |
| account SID + auth token | that account and its subaccounts |
| main API key | its own account alone; a subaccount needs its own key |
| standard API key | the same, but not /Accounts |
| restricted API key | what its permissions name (else 403/70051) |

Sources: https://www.twilio.com/docs/iam/api/subaccounts and https://www.twilio.com/docs/iam/api-keys. The status
for a key on a foreign account is not documented; reports of a mismatched account SID show 401/20003.
"""

from __future__ import annotations

from collections.abc import Iterable

from reconciler.simulator import messages
from reconciler.simulator.account import ApiKey, SimulatedAccount
from reconciler.simulator.messages import Answer, Request


class Denied(Exception):
    """The request is refused; `answer` is Twilio's reply."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def all_accounts(accounts: Iterable[SimulatedAccount]) -> dict[str, SimulatedAccount]:
    """Return the accounts and their subaccounts by SID."""
    found: dict[str, SimulatedAccount] = {}
    for account in accounts:
        found[account.sid] = account
        found.update(account.subaccounts)
    return found


def admit(
    request: Request, resource: str, accounts: dict[str, SimulatedAccount], *, suspended_answer: int
) -> SimulatedAccount:
    """Return the account that the path names, or the caller's own if the path names none.

    Raises:
        Denied: the credentials may not read that account; it holds Twilio's answer.

    """
    if request.credentials is None:
        raise Denied(messages.not_authenticated())
    caller, key = _sign_in(*request.credentials, accounts)
    if caller.status == "closed":
        raise Denied(messages.not_authenticated())
    if caller.status == "suspended":
        raise Denied(messages.not_authenticated() if suspended_answer == 401 else messages.forbidden())
    if key is not None and not key.may_read(resource):
        raise Denied(messages.forbidden(70051 if key.kind == "restricted" else 20403))
    target = caller if request.account_sid is None else accounts.get(request.account_sid)
    if target is caller:
        return caller
    if key is not None:
        raise Denied(messages.not_authenticated())
    if target is None or target.owner is not caller:
        raise Denied(messages.not_found(request.path))
    if target.status == "closed" and resource != "accounts":
        raise Denied(messages.not_found(request.path))
    return target


def _sign_in(user: str, secret: str, accounts: dict[str, SimulatedAccount]) -> tuple[SimulatedAccount, ApiKey | None]:
    if (account := accounts.get(user)) is not None and account.auth_token == secret:
        return account, None
    for account in accounts.values():
        if (key := account.keys.get(user)) is not None and key.secret == secret:
            return account, key
    raise Denied(messages.not_authenticated())

"""The accounts that the setting RECONCILER_ACCOUNTS selects."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.errors import Refused
from reconciler.settings import Settings
from reconciler.twilio.client import Session
from reconciler.twilio.listing import Listing


@dataclass(frozen=True, slots=True)
class Accounts:
    """The main account, whose credentials we have, and the accounts whose jobs are scheduled.

    `is_complete` is False until the subaccounts have been listed.
    """

    main: str
    sids: tuple[str, ...]
    is_complete: bool = True

    @property
    def default_account(self) -> str:
        """The account whose jobs also handle the rows without an account."""
        return self.main if self.main in self.sids else self.sids[0]

    @property
    def is_only_account(self) -> bool:
        """Whether every call must belong to this one account."""
        return self.is_complete and len(self.sids) == 1


def named_accounts(settings: Settings, main: str) -> Accounts:
    """Return the accounts that the settings name; with `all` the subaccounts are still missing."""
    match settings.accounts:
        case ("this",):
            return Accounts(main, (main,))
        case ("all",):
            return Accounts(main, (main,), is_complete=False)
    return Accounts(main, tuple(dict.fromkeys(settings.accounts)))


def find_accounts(session: Session, main: str) -> Accounts:
    """Ask Twilio for the main account's subaccounts; closed ones are left out: Twilio shows none of their calls.

    Raises:
        Refused: the credentials may not list accounts, or may not read the listed ones.
        Retriable: Twilio did not answer.

    """
    others = sorted(account.sid for account in session.accounts() if account.status != "closed" and account.sid != main)
    if others and session.client.has_key:
        # A main API key can list subaccounts, but read none. This is one error, instead of one for each account.
        try:
            session.page(Listing(others[0], page_size=1))
        except Refused as exc:
            hint = f"its account has {len(others)} subaccounts; {exc.hint}"
            raise Refused(str(exc), hint=hint) from exc
    return Accounts(main, (main, *others))

"""Whose calls are looked after: the accounts that RECONCILER_ACCOUNTS means."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.errors import Refused
from reconciler.settings import Settings
from reconciler.twilio.client import Session
from reconciler.twilio.listing import Listing


@dataclass(frozen=True, slots=True)
class Accounts:
    """The account of the credentials, and all that are looked after; not `is_complete` while Twilio has to be asked."""

    main: str
    sids: tuple[str, ...]
    is_complete: bool = True

    @property
    def keeper(self) -> str:
        """The account that looks after calls that name none."""
        return self.main if self.main in self.sids else self.sids[0]

    @property
    def is_alone(self) -> bool:
        """Whether no call can be another account's."""
        return self.is_complete and len(self.sids) == 1


def named_accounts(settings: Settings, main: str) -> Accounts:
    """The accounts as far as the settings tell."""
    match settings.accounts:
        case ("this",):
            return Accounts(main, (main,))
        case ("all",):
            return Accounts(main, (main,), is_complete=False)
    return Accounts(main, tuple(dict.fromkeys(settings.accounts)))


def find_accounts(source: Session, main: str) -> Accounts:
    """The account of the credentials and its subaccounts, without the closed ones: Twilio shows nothing of them.

    Raises:
        Refused: the credentials may not list accounts, or not read those that they list.
        Retriable: Twilio stayed away.

    """
    others = sorted(account.sid for account in source.accounts() if account.status != "closed" and account.sid != main)
    if others and source.client.has_key:
        # A main key lists them and reads none: said once, and not by each of them.
        try:
            source.page(Listing(others[0], page_size=1))
        except Refused as exc:
            hint = f"its account has {len(others)} subaccounts; {exc.hint}"
            raise Refused(str(exc), hint=hint) from exc
    return Accounts(main, (main, *others))

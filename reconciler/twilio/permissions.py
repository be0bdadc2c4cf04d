"""Whether credentials lack a permission, or Twilio refuses them altogether."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from reconciler.errors import NotPermitted, ReconcilerError
from reconciler.twilio.client import Session
from reconciler.twilio.listing import Listing

HINT: Final = "these credentials may read calls, and not this: allow it to the API key in TWILIO_API_KEY"

T = TypeVar("T")


def read_if_permitted(session: Session, account_sid: str, read: Callable[[], T]) -> T:
    """Return what `read` returns. `read` is called again if Twilio refuses it, see `lacking_permission`.

    Raises:
        NotPermitted: the credentials may read the account's calls, and not this.
        Refused, CredentialsDoubted: Twilio refuses the credentials or the account, perhaps for a moment.
        ReconcilerError: any other error of `read`.

    """
    try:
        return read()
    except ReconcilerError as exc:
        lacking = lacking_permission(session, account_sid, read, exc) if exc.is_refusal else None
        if lacking is None:
            raise
        raise lacking from exc


def lacking_permission(
    session: Session, account_sid: str, ask: Callable[[], object], refusal: ReconcilerError
) -> NotPermitted | None:
    """Return the error for a permission that the credentials lack; None if none is known to be lacking.

    `ask` met `refusal` just now. A refusal alone proves nothing: a 401 may pass, and an account may be suspended. So
    the newest call of the account is listed, and then `ask` is called again.
    """
    try:
        session.page(Listing(account_sid, page_size=1))
    except ReconcilerError:
        return None
    try:
        ask()
    except ReconcilerError as exc:
        if exc.is_refusal:
            return NotPermitted(str(refusal), hint=HINT if session.client.has_key else refusal.hint)
    return None

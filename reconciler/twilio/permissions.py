"""Whether credentials lack a permission, or Twilio refuses them altogether."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from reconciler.errors import CredentialsDoubted, ReconcilerError, Refused
from reconciler.twilio.client import Session
from reconciler.twilio.listing import Listing

HINT: Final = "these credentials may read calls, and not this: allow it to the API key in TWILIO_API_KEY"


def lacks_permission(session: Session, account_sid: str, ask: Callable[[], object]) -> bool:
    """Whether the credentials may read the account's calls, but not what `ask` asks for, which was refused just now.

    A refusal alone proves nothing: a 401 may pass, and an account may be suspended. So the newest call is listed, and
    then `ask` is called again. If Twilio does not answer now, no permission is known to be lacking.
    """
    try:
        session.page(Listing(account_sid, page_size=1))
    except ReconcilerError:
        return False
    try:
        ask()
    except (Refused, CredentialsDoubted):
        return True
    except ReconcilerError:
        return False
    return False

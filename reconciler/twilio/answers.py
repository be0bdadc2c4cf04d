"""The meaning of Twilio's HTTP answers: error, date and load. No I/O.

Errors: https://www.twilio.com/docs/api/errors. Gateways in front of Twilio answer with HTML or an empty body.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Final

from reconciler.errors import (
    CredentialsDoubted,
    NotFound,
    OutsideRetention,
    RateLimited,
    ReconcilerError,
    Refused,
    TwilioAnswerError,
    Unavailable,
)
from reconciler.twilio.dates import parse_rfc2822
from reconciler.twilio.transport import Answer

_OUTSIDE_RETENTION: Final = 20004
_LONGEST_LOAD: Final = 6  # digits


def date_of(answer: Answer) -> datetime | None:
    """Return the `Date` of an answer; None if it is missing or unreadable, for example because of a proxy."""
    try:
        return parse_rfc2822(answer.headers["Date"])
    except (KeyError, ValueError):
        return None


def load_of(answer: Answer) -> int | None:
    """Return how many requests of the account were under way at Twilio, this one included; None if unknown."""
    value = answer.headers.get("Twilio-Concurrent-Requests") or ""
    return int(value) if value.isascii() and value.isdecimal() and len(value) <= _LONGEST_LOAD else None


def meaning(
    answer: Answer, *, now: datetime, login: str, worked_before: bool, is_foreign: bool
) -> ReconcilerError | None:
    """Return the error that an answer means; None for a success (https://www.twilio.com/docs/usage/twilios-response).

    - `now` replaces the date of an answer without one.
    - `login` names the settings that signed the request.
    - `worked_before`: Twilio has accepted these credentials before.
    - `is_foreign`: the request was for another account than that of the credentials.
    """
    status = answer.status_code
    if status == 200:
        return None
    code, text = _error_body(answer)
    said = f"HTTP {status}" + (f", Twilio error {code}" if code else "") + (f": {text}" if text else "")
    if status == 429:
        return RateLimited(said, retry_after=_retry_after(answer, date_of(answer) or now))
    if status in (401, 403):
        return _refusal(status, code, said, login=login, worked_before=worked_before, is_foreign=is_foreign)
    if status == 407:
        return Unavailable(
            f"the proxy wants a login ({said})", hint="write it into HTTP_PROXY: http://user:password@host"
        )
    if status == 404:
        return NotFound(
            f"Twilio knows no such account for these credentials ({said})",
            hint="check TWILIO_ACCOUNT_SID, --account or TWILIO_BASE_URL; an API key cannot read subaccounts",
        )
    if status == 400 and code == _OUTSIDE_RETENTION:  # with status 405 the same code means: method not allowed
        return OutsideRetention(f"Twilio no longer keeps calls of this window ({said})")
    if status >= 500 or status == 408:
        return Unavailable(said)
    return TwilioAnswerError(f"Twilio did not understand the question, or is not what answered ({said})")


def _refusal(
    status: int, code: int | None, said: str, *, login: str, worked_before: bool, is_foreign: bool
) -> ReconcilerError:
    """Return the error that a 401 or 403 means."""
    if code is None:
        # Twilio refuses in JSON, with its code. A proxy's page says nothing about the credentials.
        return Unavailable(
            f"{said} without Twilio's error code: a proxy or firewall answered instead of Twilio",
            hint="let this machine reach the host that TWILIO_BASE_URL, TWILIO_REGION and TWILIO_EDGE say",
        )
    if status == 403:
        return Refused(
            f"Twilio does not allow this ({said})",
            hint="the account may be suspended, or the API key in TWILIO_API_KEY lacks a permission",
        )
    if worked_before:
        return CredentialsDoubted(
            f"Twilio refused the credentials ({said})",
            hint=f"{login} worked a moment ago: was it revoked?"
            + (" Or is this subaccount suspended?" if is_foreign else ""),
        )
    return Refused(
        f"Twilio refused the credentials ({said})",
        hint=f"check TWILIO_ACCOUNT_SID with {login}, and TWILIO_REGION: credentials are per region",
    )


def outcome(error: ReconcilerError) -> str:
    """Return the label of `reconciler_requests_total` for an error."""
    if isinstance(error, NotFound):
        return "not_found"
    return "refused" if error.is_refusal else "failed"


def _error_body(answer: Answer) -> tuple[int | None, str]:
    """Return Twilio's error code and message; (None, "") for the HTML or empty body of a gateway."""
    try:
        body = json.loads(answer.body)
        code, text = body.get("code"), body.get("message") or body.get("title") or ""  # title: RFC 9457
        return (code if isinstance(code, int) else None), str(text)[:200]
    except (ValueError, AttributeError, RecursionError):
        return None, ""


def _retry_after(answer: Answer, now: datetime) -> timedelta | None:
    """Return the wait in `Retry-After`, in seconds or as a date on the answer's clock. Twilio does not promise it."""
    value = (answer.headers.get("Retry-After") or "").strip()
    try:
        return timedelta(seconds=int(value)) if value.isdecimal() else max(timedelta(0), parse_rfc2822(value) - now)
    except (ValueError, OverflowError):
        return None

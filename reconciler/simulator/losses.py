"""The journal of lost webhooks. Tests compare it with the causes that the reconciler reports."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Loss(msgspec.Struct, frozen=True):
    """One webhook that was lost, was never sent, or could not be read by the receiver.

    - `cause`: a word of the table in `road`.
    - `detail`: the trunk, the endpoint, its URL or the error code that the cause names.
    - `is_final`: the webhook would have given the final status of a call.
    """

    cause: str
    call_sid: str | None
    kind: str
    at: datetime
    detail: str
    is_final: bool = True
    recording_sid: str | None = None

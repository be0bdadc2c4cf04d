"""The journal of lost webhooks: what a test holds against what the reconciler says of the causes."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Loss(msgspec.Struct, frozen=True):
    """One webhook that did not do its work, or that was never sent where another call would have sent one.

    `cause` is a word of the table in `road`. `detail` names what is to blame: the trunk, the endpoint or its URL, the
    error code. `is_final` says that it would have told how a call ended.
    """

    cause: str
    call_sid: str | None
    kind: str
    at: datetime
    detail: str
    is_final: bool = True
    recording_sid: str | None = None

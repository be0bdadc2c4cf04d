"""Cursors that cannot be: refused before anything is read, with the way to mend them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from reconciler.errors import ConfigError
from reconciler.runs import Job
from reconciler.source import RETENTION

CLOCKS_DIFFER: Final = timedelta(minutes=5)  # ours and Twilio's


def check_cursor(job: Job, cursor: Mapping[str, Any], *, field: str, account_sid: str, now: datetime) -> datetime:
    """The moment that `field` of a job's cursor holds.

    Raises:
        ConfigError: it cannot be read, is another account's, lies in the future, or before what Twilio keeps.

    """
    hint = f"`reconcile once {job.kind} --from 1d` sets it anew"
    try:
        account, moment = str(cursor["account"]), datetime.fromisoformat(cursor[field])
        is_future, is_lost = moment > now + CLOCKS_DIFFER, moment < now - RETENTION
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"the cursor of {job} in sync_state cannot be read", hint=hint) from None
    if account != account_sid:
        raise ConfigError(
            f"the cursor of {job} in sync_state is that of another account, {account}",
            hint=f"is TWILIO_ACCOUNT_SID right? If it is, {hint}",
        )
    if is_future:
        raise ConfigError(
            f"the cursor of {job} in sync_state lies in the future: {moment:%FT%TZ}",
            hint=f"is this machine's clock right? If it is, {hint}",
        )
    if is_lost:
        raise ConfigError(
            f"the cursor of {job} in sync_state lies before what Twilio keeps: {moment:%FT%TZ}", hint=hint
        )
    return moment

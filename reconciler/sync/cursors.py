"""Cursors that cannot be: refused before anything is read, with the way to mend them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from reconciler.errors import ConfigError
from reconciler.model import Job
from reconciler.twilio.listing import RETENTION

CLOCKS_DIFFER: Final = timedelta(minutes=5)  # ours and that of the machine that wrote the cursor


def check_cursor(job: Job, cursor: Mapping[str, Any], *, field: str, account_sid: str, now: datetime) -> datetime:
    """The moment that `field` of a job's cursor holds.

    Raises:
        ConfigError: it cannot be read, is another account's, lies in the future, or before what Twilio keeps.

    """
    with readable(job):
        account, moment = str(cursor["account"]), parse_aware(cursor[field])
    if account != account_sid:
        raise ConfigError(
            f"the cursor of {job} in sync_state is that of another account, {account}",
            hint=f"is TWILIO_ACCOUNT_SID right? If it is, {_way_to_mend(job)}",
        )
    if moment > now + CLOCKS_DIFFER:
        raise ConfigError(
            f"the cursor of {job} in sync_state lies in the future: {moment:%FT%TZ}",
            hint=f"is this machine's clock right? If it is, {_way_to_mend(job)}",
        )
    if moment < now - RETENTION:
        raise ConfigError(
            f"the cursor of {job} in sync_state lies before what Twilio keeps: {moment:%FT%TZ}", hint=_way_to_mend(job)
        )
    return moment


@contextmanager
def readable(job: Job) -> Iterator[None]:
    """Surround the reading of a job's cursor.

    Raises:
        ConfigError: it cannot be read.

    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise ConfigError(f"the cursor of {job} in sync_state cannot be read", hint=_way_to_mend(job)) from None


def parse_aware(text: str) -> datetime:
    """The moment that `text` names.

    Raises:
        TypeError, ValueError: it is none, or has no zone.

    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("no zone")
    return moment.astimezone(UTC)


def _way_to_mend(job: Job) -> str:
    return f"`reconcile once {job.kind} --from 1d` sets it anew"

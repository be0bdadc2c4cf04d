"""Recordings.json of an account and of one call, and the fetch of one recording.

Filters (OpenAPI `ListRecording`, `ListCallRecording`): DateCreated, which follows the switch `time_filters`, CallSid,
ConferenceSid and IncludeSoftDeleted. Lists are in descending order of date_created, as for calls. Twilio does not
document the order.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from reconciler.simulator.account import SimulatedAccount
from reconciler.simulator.calls import Record
from reconciler.simulator.filters import Span, parse_span
from reconciler.simulator.listing import BadPageToken, Paging, Params, envelope
from reconciler.simulator.recordings import SOFT_DELETED_FOR, Recording
from reconciler.simulator.switches import Switches
from reconciler.simulator.wire import API, seconds

_NAMES = frozenset({
    "DateCreated", "DateCreated<", "DateCreated>", "CallSid", "ConferenceSid", "IncludeSoftDeleted",
})  # fmt: skip


def list_recordings(
    account: SimulatedAccount, params: Params, now: datetime, switches: Switches, *, call_sid: str | None = None
) -> Record:
    """Return one page of the recordings of the account, or of the call `call_sid`.

    Raises:
        BadFilter: a parameter cannot be read.
        BadPageToken: the token names no recording.

    """
    paging = Paging.parse(params, switches.largest_page)
    query = [(name, value) for name, value in params if name in _NAMES and value]
    given = {} if switches.ignore_filters else dict(query)
    if call_sid is not None:
        given = {name: value for name, value in given.items() if name.startswith("DateCreated")} | {"CallSid": call_sid}
    at = seconds(now - switches.listing_lag)
    found = [(each, each.created(switches)) for each in _candidates(account, given, at, switches)]
    found.sort(key=lambda pair: (pair[1], pair[0].sid), reverse=True)
    is_soft = given.get("IncludeSoftDeleted", "").lower() == "true"
    page = _page([each for each, _ in found], paging, account, at, is_soft=is_soft)
    records = [each.render(at, switches, deleted=_is_deleted(account, each, at)) for each in page]
    path = f"{API}/Accounts/{account.sid}{f'/Calls/{call_sid}' if call_sid else ''}/Recordings.json"
    if call_sid is not None:
        records = [_of_call(record) for record in records]
    return envelope("recordings", records, path, query, paging)


def fetch_recording(
    account: SimulatedAccount, sid: str, params: Params, now: datetime, switches: Switches
) -> Record | None:
    """Return one recording. None: it does not exist, or it is deleted and the request does not include deleted ones."""
    at = seconds(now - switches.fetch_lag)
    is_soft = dict(params).get("IncludeSoftDeleted", "").lower() == "true"
    for each in _candidates(account, {}, at, switches):
        if each.sid == sid and _is_shown(account, each, at, is_soft=is_soft):
            return each.render(at, switches, deleted=_is_deleted(account, each, at))
    return None


def _candidates(account: SimulatedAccount, given: dict[str, str], at: int, switches: Switches) -> Iterable[Recording]:
    """Yield every recording created by `at` that passes the filters, deleted or not."""
    span = (parse_span("DateCreated", given, switches) or Span()) & Span(None, at + 1)
    call_sid, conference_sid = given.get("CallSid"), given.get("ConferenceSid")
    for each in account.recordings_between(span, call_sid):
        if (
            each.created(switches) in span
            and call_sid in (None, each.call_sid)
            and conference_sid in (None, each.conference_sid)
        ):
            yield each


def _page(
    found: list[Recording], paging: Paging, account: SimulatedAccount, at: int, *, is_soft: bool
) -> list[Recording]:
    """Return a keyset page, as for calls. The recording that the token names may be deleted by now."""
    skip = paging.page * paging.size
    if paging.token is not None:
        sids = [each.sid for each in found]
        if paging.token[:2] != "PA" or paging.token[2:] not in sids:
            raise BadPageToken
        found, skip = found[sids.index(paging.token[2:]) + 1 :], 0
    shown = [each for each in found if _is_shown(account, each, at, is_soft=is_soft)]
    return shown[skip : skip + paging.size]


def _is_shown(account: SimulatedAccount, recording: Recording, at: int, *, is_soft: bool) -> bool:
    deleted = account.deleted_recordings.get(recording.sid)
    return deleted is None or at < deleted or (is_soft and at < deleted + SOFT_DELETED_FOR)


def _is_deleted(account: SimulatedAccount, recording: Recording, at: int) -> bool:
    return account.deleted_recordings.get(recording.sid, at + 1) <= at


def _of_call(record: Record) -> Record:
    """Return a recording as the list of one call shows it: with `track`, without media URL and subresources."""
    kept = {name: value for name, value in record.items() if name not in ("media_url", "subresource_uris")}
    return kept | {"track": "both"}

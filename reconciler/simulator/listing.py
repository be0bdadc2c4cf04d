"""Pages of calls: the envelope, the keyset cursor, and the irregularities of one listing.

Form of the envelope and of the page tokens: tests/data/real_list_envelopes.json. `PA` + the SID of the last record
leads to the next page, `PB` + the SID of the first to the previous one. Calls that arrive at the head do not shift
later pages. There is no total. A full page always names a next page, even if that one is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode
from zlib import crc32

from reconciler.simulator.account import SimulatedAccount
from reconciler.simulator.calls import Call, Record
from reconciler.simulator.filters import NAMES, BadFilter, Filters
from reconciler.simulator.switches import Switches
from reconciler.simulator.wire import API, DAY, seconds

Params = Sequence[tuple[str, str]]

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000


class OutsideRetention(ValueError):
    """The window begins before the retention period: 400/20004."""


class BadPageToken(ValueError):
    """The page token names no record of this account."""


@dataclass(frozen=True, slots=True)
class Paging:
    """The page of a list that a request asks for: Page, PageSize (1 to 1000, default 50) and PageToken."""

    page: int
    size: int
    token: str | None

    @classmethod
    def parse(cls, params: Params, largest: int = MAX_PAGE_SIZE) -> Paging:
        """Read the page from query parameters; it holds at most `largest` records.

        Raises:
            BadFilter: Page or PageSize is not a number.

        """
        given = dict(params)
        try:
            page = max(0, int(given.get("Page") or 0))
            size = int(given.get("PageSize") or DEFAULT_PAGE_SIZE)
        except ValueError:
            raise BadFilter("Invalid Page or PageSize") from None
        return cls(page, min(max(size, 1), largest), given.get("PageToken") or None)


def list_calls(account: SimulatedAccount, params: Params, now: datetime, switches: Switches) -> Record:
    """Return one page of Calls.json as Twilio would answer at `now`.

    Raises:
        BadFilter: a parameter cannot be read.
        BadPageToken: the token names no call of the account.
        OutsideRetention: the window begins too early.

    """
    paging = Paging.parse(params, switches.largest_page)
    filters = Filters.parse(params, switches)
    if switches.retention_days is not None and filters.begins_before(seconds(now) - switches.retention_days * DAY):
        raise OutsideRetention
    now -= switches.listing_lag
    at = seconds(now)
    calls = _page(account, filters, now, paging, switches)
    query = [(name, value) for name, value in params if name in NAMES and value]
    records = [call.render(at) for call in calls]
    if switches.extra_keys:
        for record in records:
            record["ai_summary"] = {"sentiment": None, "topics": ["unknown", "to", "you"]}
    answer = envelope("calls", records, f"{API}/Accounts/{account.sid}/Calls.json", query, paging)
    if switches.absolute_next_page_uri is not None and answer["next_page_uri"]:
        answer["next_page_uri"] = switches.absolute_next_page_uri + answer["next_page_uri"]
    if switches.extra_keys:
        answer["meta"] = {"key": "calls", "total_hint": None}
    return answer


def envelope(key: str, records: list[Record], path: str, query: Params, paging: Paging) -> Record:
    """Return the envelope of a page. Records with a `sid` give the tokens of the next and the previous page."""
    page, size = paging.page, paging.size

    def uri(number: int, with_token: str | None = None) -> str:
        tokens = [("PageToken", with_token)] if with_token else []
        return f"{path}?{urlencode([*query, ('PageSize', str(size)), *tokens, ('Page', str(number))])}"

    def neighbour(number: int, turn: str, record: Record) -> str:
        return uri(number, turn + record["sid"] if "sid" in record else None)

    return {
        key: records,
        "end": page * size + len(records) - 1 if records else 0,
        "first_page_uri": uri(0),
        "next_page_uri": neighbour(page + 1, "PA", records[-1]) if len(records) >= size else None,
        "page": page,
        "page_size": size,
        "previous_page_uri": neighbour(page - 1, "PB", records[0]) if page and records else None,
        "start": page * size if records else 0,
        "uri": uri(page, paging.token),
    }


def _page(account: SimulatedAccount, filters: Filters, now: datetime, paging: Paging, switches: Switches) -> list[Call]:
    size, token, rate = paging.size, paging.token, switches.duplicates_in_listing
    if token is None:
        # Page without a token counts from the head, so it shifts while calls arrive (twilio/twilio-node#11).
        return _doubled(account.calls_at(now, filters, limit=size, skip=paging.page * size), size, rate)
    turn, named = token[:2], account.find(token[2:])
    if named is None or turn not in ("PA", "PB"):
        raise BadPageToken
    if switches.deleted_cursor != "continue" and not named.is_visible(seconds(now)):
        if switches.deleted_cursor == "empty":
            return []
        raise BadPageToken
    if turn == "PB":
        return account.calls_before(now, filters, named, size)
    calls = account.calls_at(now, filters, after=named, limit=size)
    # The last call of one page comes again as the first of the next. With pages of one call, paging would not end.
    again = [named] if size > 1 and _is_doubled(named.sid, rate) else []
    return again + _doubled(calls, size - len(again), rate)


def _doubled(calls: list[Call], size: int, rate: float) -> list[Call]:
    """Return a page in which some calls come twice in succession. The SID alone decides which."""
    if not rate:
        return calls[:size]
    rows: list[Call] = []
    for call in calls:
        rows.extend([call, call] if _is_doubled(call.sid, rate) else [call])
    return rows[:size]


def _is_doubled(sid: str, rate: float) -> bool:
    return crc32(sid.encode()) < rate * 0x1_0000_0000

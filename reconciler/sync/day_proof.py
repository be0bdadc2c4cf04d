"""The proof that a UTC day is complete: we hold every call that Twilio lists of it, and no other.

Design rules
- The sets of SIDs are compared by digests. The SIDs themselves are read only if the digests differ.
- If we hold a call that Twilio did not list, the job asks Twilio for it. Absence from a listing does not prove that the
  call is gone.
- The SIDs of a day are kept only until the day is proven, so memory does not grow with the window.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Final, NamedTuple

from reconciler.database import account_days
from reconciler.database.account_days import DayProof, HeldDay, HeldPrice
from reconciler.database.calls import KnownCall
from reconciler.database.decisions import Merged
from reconciler.logs import get_logger
from reconciler.model import DeadLetter
from reconciler.sync.fetch import Failed, Fetched
from reconciler.sync.lookup import ask_each
from reconciler.sync.run import Run
from reconciler.sync.slices import Slice
from reconciler.twilio.account_records import Usage
from reconciler.twilio.dates import parse_rfc2822

PROVEN_AFTER: Final = timedelta(hours=1)  # after a day's end, on Twilio's clock, the day can be proven
BILLED_AFTER: Final = timedelta(hours=24)  # after a day's end its usage records are credible
ASKED_AT_MOST: Final = 200  # unlisted calls of a day that Twilio is asked for

# A small difference is no fault: usage records and listings are not of the same moment.
BILLED_BEYOND_AT_LEAST: Final = 2
BILLED_BEYOND_SHARE: Final = 0.02

PRICES_ARE_EXACT_TO: Final = Decimal("0.00001")  # the last decimal of a record's price
SUMS_ARE_EXACT_TO: Final = Decimal("0.01")  # at least

log = get_logger(__name__)


@dataclass(slots=True)
class _Day:
    """The calls of one day that Twilio has listed so far. SIDs are packed, see `_pack`."""

    sids: set[bytes] = field(default_factory=set)
    by_status: set[bytes] = field(default_factory=set)  # listed by Status: an open call may move to another day
    unreadable: set[str] = field(default_factory=set)
    nameless: set[str] = field(default_factory=set)  # the unreadable ones without a SID
    found: Counter[str] = field(default_factory=Counter)
    read_at: datetime | None = None  # on Twilio's clock, when its listing began


class _Price(NamedTuple):
    billed: Decimal
    held: HeldPrice
    unit: str


class DayProofs:
    """The proofs of a sweep's days. `note` takes every page, those by Status first; `prove` proves one day.

    - `usage`: Twilio's usage records by day, as far as Twilio has them.
    - `failed`: the days that could not be compared.
    """

    def __init__(self, this: Run[Any], days: Iterable[Slice]) -> None:
        self.usage: Mapping[date, Usage] = {}
        self.failed: list[Failed] = []
        self._this = this
        self._days = {day.since.date(): _Day() for day in days}

    def note(self, item: Fetched, merged: Merged) -> None:
        """Remember the calls of a page, and the gaps and drift that its merge found."""
        is_by_status = item.slice.listing.status is not None
        if not is_by_status and (day := self._days.get(item.slice.since.date())) and day.read_at is None:
            day.read_at = item.page.observed_at
        day_of: dict[str, _Day] = {}
        for observation in item.page.observations:
            time = observation.window_time
            if time is None or (day := self._days.get(time.date())) is None:
                continue
            day_of[observation.call_sid] = day
            (day.by_status if is_by_status else day.sids).add(_pack(observation.call_sid))
        for letter in item.page.dead_letters:
            self._note_unreadable(letter, item.slice)
        for decision in merged.decisions:
            if (day := day_of.get(decision.call_sid)) is None:
                continue
            if decision.gap is not None:
                day.found[decision.gap.value] += 1
            elif decision.is_imported:
                day.found["imported"] += 1
            elif decision.action == "drift":
                day.found["drift"] += 1

    def prove(self, slice_: Slice) -> DayProof | None:
        """Compare a day that was read to its end; return its proof, or None if the day cannot be proven now.

        Twilio is asked for the calls that we hold and it did not list, at most 200. They are merged or marked gone.

        Raises:
            Refused: Twilio or the database refused.
            Retriable: the database did not come back.

        """
        day = self._days.pop(slice_.since.date(), None)
        if day is None or day.read_at is None or day.read_at - slice_.until <= PROVEN_AFTER:
            return None
        compared = self._compare(day, slice_)
        if compared is None:
            return None
        listed, held = compared
        date_, digest, age = slice_.since.date(), _digest(listed), day.read_at - slice_.until
        usage = self.usage.get(date_)
        billed = usage.calls if usage else None
        before = self._this.ask(partial(account_days.proof_of_day, account_sid=self._this.account.sid, day=date_))
        day.found["billed_beyond"] = _beyond(billed, held.completed, age=age)
        day.found["dead_letters"] = len(day.unreadable)
        last = before and Listed(before.listed, before.differences.get("shrunk", 0), before.digest, before.verified_at)
        day.found["shrunk"] = shrinkage(last, len(listed), digest, read_at=day.read_at)
        is_doubtful = day.nameless or day.found["billed_beyond"] or day.found["shrunk"]
        is_complete = held.digest == digest and not is_doubtful
        price = self._price(usage, slice_)
        if price is not None and is_complete and age >= BILLED_AFTER:
            day.found["price_drift"] = int(price_drifts(price.billed, price.held))
        return DayProof(
            self._this.account.sid,
            date_,
            len(listed),
            held.calls,
            digest,
            billed,
            dict(+day.found),
            is_complete=is_complete,
            verified_at=day.read_at,
            billed_price=price.billed if price else None,
            held_price=price.held.price if price else None,
            price_unit=price.unit if price else None,
            unsettled=price.held.unsettled if price else None,
        )

    def _price(self, usage: Usage | None, slice_: Slice) -> _Price | None:
        """Return what the calls of a day cost, by Twilio and by our rows; None if Twilio does not say."""
        if usage is None or usage.price is None or usage.price_unit is None:
            return None
        window: dict[str, Any] = {"account_sid": self._this.account.sid, "since": slice_.since, "until": slice_.until}
        held = self._this.ask(partial(account_days.price_of_day, **window, price_unit=usage.price_unit))
        return _Price(usage.price, held, usage.price_unit)

    def _compare(self, day: _Day, slice_: Slice) -> tuple[set[bytes], HeldDay] | None:
        """Return the calls that Twilio listed of a day, and what we hold; None if Twilio could not be asked for all."""
        window: dict[str, Any] = {"account_sid": self._this.account.sid, "since": slice_.since, "until": slice_.until}
        held_of_day = partial(account_days.held_of_day, **window)
        listed = day.sids | day.by_status
        held = self._this.ask(held_of_day)
        if held.digest == _digest(listed):
            return listed, held
        if not self._ask_for(self._sids(window) - listed, slice_):
            return None
        sids = self._sids(window)
        listed -= self._held_at_all(day.by_status - day.sids - sids)  # these moved to another day meanwhile
        day.found["unlisted"] = len(sids - listed)
        day.found["not_held"] = len(listed - sids)
        return listed, self._this.ask(held_of_day)

    def _note_unreadable(self, letter: DeadLetter, slice_: Slice) -> None:
        """Add an unreadable record to its own day, if its date can be read, else to the day it was listed with."""
        record = json.loads(letter.record)
        record = record if isinstance(record, dict) else {}
        is_by_status = slice_.listing.status is not None
        time = _time(record.get("start_time") or record.get("date_created"))
        if time is None and not is_by_status:
            time = slice_.since
        if time is None or (day := self._days.get(time.date())) is None:
            return
        day.unreadable.add(letter.dedupe_key)
        if letter.call_sid is None:
            day.nameless.add(letter.dedupe_key)
        else:
            (day.by_status if is_by_status else day.sids).add(_pack(letter.call_sid))

    def _ask_for(self, unlisted: set[bytes], slice_: Slice) -> bool:
        """Ask Twilio for each call; return False at the first one that cannot be read, or when the run stops."""
        wanted = [KnownCall(call_sid, slice_.since) for call_sid in sorted(map(_unpack, unlisted))[:ASKED_AT_MOST]]
        at_once = self._this.session.concurrency
        for start in range(0, len(wanted), at_once):
            batch = wanted[start : start + at_once]
            errors = ask_each(self._this, batch, is_bulk=True)
            if errors:
                if not self._this.stop.is_set():
                    log.error("slice.failed", slice=slice_.name, error=str(errors[0]), kind=type(errors[0]).__name__)
                self.failed.append(Failed(slice_, errors[0]))
                return False
        return not self._this.stop.is_set()

    def _sids(self, window: Mapping[str, Any]) -> set[bytes]:
        return set(map(_pack, self._this.ask(partial(account_days.sids_of_day, **window))))

    def _held_at_all(self, sids: set[bytes]) -> set[bytes]:
        if not sids:
            return set()
        call_sids = list(map(_unpack, sids))
        return set(map(_pack, self._this.ask(lambda conn: account_days.held_at_all(conn, call_sids))))


class Listed(NamedTuple):
    """A list of a day's records, as Twilio gave it at `at`: their number, `shrunk` fewer than before, and a digest."""

    records: int
    shrunk: int
    digest: str
    at: datetime


def shrinkage(before: Listed | None, listed: int, digest: str, *, read_at: datetime) -> int:
    """Return by how many Twilio lists fewer of a day than before; 0 once another UTC day has listed the same.

    A wrong region, or a proxy, answers with a list that is too short. The proof of a day does not follow it at once.
    """
    if before is None:
        return 0
    is_confirmed = before.digest == digest and before.at.date() < read_at.date()
    return 0 if before.shrunk and is_confirmed else max(0, before.records + before.shrunk - listed)


def _pack(call_sid: str) -> bytes:
    """Return the 16 bytes of a SID in lower case, the form of Twilio's SIDs; the text of any other SID."""
    try:
        packed = bytes.fromhex(call_sid[2:])
    except ValueError:
        return call_sid.encode()
    return packed if _unpack(packed) == call_sid else call_sid.encode()


def _unpack(packed: bytes) -> str:
    return f"CA{packed.hex()}" if len(packed) == 16 else packed.decode()


def _digest(sids: set[bytes]) -> str:
    """Return the SHA-256 of the sorted SIDs, one after another."""
    whole = hashlib.sha256()
    for packed in sorted(sids, key=_unpack):
        whole.update(_unpack(packed).encode())
    return whole.hexdigest()


def _time(value: object) -> datetime | None:
    try:
        return parse_rfc2822(str(value))
    except ValueError:
        return None


def price_drifts(billed: Decimal, held: HeldPrice) -> bool:
    """Return whether Twilio billed another sum than all our calls cost, by more than rounding explains.

    Each price may be off by half of its fifth decimal, and the sum by half of its own last one, or of a cent.
    """
    if held.unsettled:
        return False
    last_decimal = min(Decimal(1).scaleb(int(billed.as_tuple().exponent)), SUMS_ARE_EXACT_TO)
    return abs(billed - held.price) > (held.priced * PRICES_ARE_EXACT_TO + last_decimal) / 2


def _beyond(billed: int | None, completed: int, *, age: timedelta) -> int:
    """Return how many more calls were billed than we hold as completed; 0 for a small or an early difference."""
    if billed is None or age < BILLED_AFTER:
        return 0
    beyond = billed - completed
    return beyond if beyond > max(BILLED_BEYOND_AT_LEAST, BILLED_BEYOND_SHARE * billed) else 0

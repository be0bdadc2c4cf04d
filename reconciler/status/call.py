"""One call as facts: our row, its events, and the differences from Twilio's record; read only.

The facts are plain data. `--json` prints their `dataclasses.asdict`, and that shape is a contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from reconciler.database import connection as db
from reconciler.database.calls import KnownCall
from reconciler.database.decisions import Decision
from reconciler.database.recordings import tell
from reconciler.errors import BadObservation, ExitCode
from reconciler.exact_json import parse_json
from reconciler.masking import mask_field
from reconciler.model import FINAL, Observation, Page, Recording
from reconciler.status.dead_letters import without_numbers

EVENTS_SHOWN: Final = 200

# The fields of both a record and a row; behind them come those of `other_fields`, by name. `direction` is left out: in
# a row it belongs to the Viewer.
COMPARED: Final = (
    "status", "from_number", "to_number", "start_time", "end_time", "duration", "price", "price_unit", "answered_by",
    "parent_call_sid", "account_sid", "date_created",
)  # fmt: skip

_DEEPEST: Final = 50  # a payload nested deeper is shown as text

_queries = db.load_queries("report")


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a call. The numbers in `payload` are text; an unreadable payload is text as a whole."""

    at: str
    event: str
    status: str | None
    source: str
    run_id: str | None
    recorded_at: str | None
    payload: Any


@dataclass(frozen=True, slots=True)
class Call:
    """Our row, by the names of its columns, and its newest events, oldest first."""

    call_sid: str
    row: dict[str, Any] | None
    events: list[Event]
    has_older_events: bool

    @property
    def is_frozen(self) -> bool:
        """Whether the row is frozen."""
        return self.row is not None and self.row["sync_state"] == "frozen"

    def known(self, *, now: datetime, is_only_account: bool) -> KnownCall | None:
        """Return the call in the form in which jobs ask Twilio about it; None if there is no row."""
        if self.row is None:
            return None
        began = _moment(self.row["start_time"] or self.row["date_created"] or self.row["created_at"]) or now
        return KnownCall(self.call_sid, began, self.row["account_sid"] is None and not is_only_account)

    def open_for(self, now: datetime) -> timedelta | None:
        """Return how long the call has been open at `now`; None if it is final or gone, or its begin is unknown."""
        if self.row is None or self.row["is_final"] or self.row["gone_at"]:
            return None
        began = _moment(self.row["date_created"] or self.row["start_time"])
        return None if began is None else now - began


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a call: our value and Twilio's. None means no value."""

    field: str
    ours: Any
    twilio: Any
    differs: bool


@dataclass(frozen=True, slots=True)
class Change:
    """A field that a repair wrote. None means no value."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class CallRecording:
    """A recording that Twilio lists for a call, and whether an event tells of it in that state."""

    recording_sid: str
    state: str
    date_created: str | None
    duration: str | None  # seconds
    media_url: str | None
    is_told: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """A call as we hold it and as Twilio has it.

    - `page`: Twilio's answer; None if Twilio was not asked.
    - `note`: why Twilio was not asked, or the result.
    - `change`: the fields that a repair wrote; None if it wrote nothing.
    - `untold`: the SIDs of Twilio's recordings that no event tells of as Twilio does.
    """

    call: Call
    account_sid: str | None
    page: Page | None
    note: str | None
    thawed: bool = False
    change: Decision | None = None
    untold: frozenset[str] = frozenset()

    @property
    def fields(self) -> list[Field]:
        """The call field by field; empty if there is only a record or only a row."""
        if self.call.row is None or self.page is None or not self.page.observations:
            return []
        return compare(self.call.row, self.page.observations[0])

    @property
    def lacks_only_others(self) -> bool:
        """Whether all that differs are `other_fields` that our row lacks: a merge fills these, frozen or not."""
        differing = [field for field in self.fields if field.differs]
        return all(field.field not in COMPARED and field.ours is None for field in differing)

    @property
    def differs(self) -> bool | None:
        """Whether the database differs from Twilio; None if Twilio was not asked."""
        if self.page is None:
            return None
        if self.call.row is None:
            return bool(self.page.observations or self.page.dead_letters)
        if not self.page.observations:
            return self.call.row["gone_at"] is None or bool(self.page.dead_letters)
        return bool(self.untold) or any(field.differs for field in self.fields)

    @property
    def recordings(self) -> list[CallRecording]:
        """Twilio's recordings of the call, oldest first."""
        found = [] if self.page is None else list(self.page.recordings)
        return [
            CallRecording(
                recording_sid=each.recording_sid,
                state=each.state.value,
                date_created=None if each.date_created is None else each.date_created.isoformat(),
                duration=each.payload.duration,
                media_url=each.media_url,
                is_told=each.recording_sid not in self.untold,
            )
            for each in reversed(found)
        ]

    @property
    def is_over_at_twilio(self) -> bool:
        """Whether the call has ended according to Twilio's record."""
        return any(record.status in FINAL for record in self.page.observations) if self.page else False

    @property
    def changes(self) -> list[Change]:
        """The fields that a repair wrote."""
        if self.change is None:
            return []
        fields = self.change.fields
        names = [*(name for name in COMPARED if name in fields), *sorted(fields.keys() - set(COMPARED))]
        return [Change(name, *fields[name]) for name in names]

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the command. A call that neither side knows counts as not reconciled."""
        is_unknown = self.call.row is None and not (self.page and self.page.observations)
        return ExitCode.UNRECONCILED if self.differs or is_unknown else ExitCode.DONE

    def as_dict(self, *, masked: bool) -> dict[str, Any]:
        """Return the result for `--json`; its shape is a contract."""
        record = self.page.observations[0] if self.page and self.page.observations else None
        shown = {
            "call_sid": self.call.call_sid,
            "row": self.call.row,
            "twilio": None if record is None else _as_dict(record),
            "fields": [_entry(field, masked=masked) for field in self.fields],
            "differs": self.differs,
            "thawed": self.thawed,
            "repaired": self.change is not None,
            "changes": [_entry(change, masked=masked) for change in self.changes],
            "recordings": [asdict(recording) for recording in self.recordings],
            "note": self.note,
            "events": [asdict(event) for event in self.call.events],
            "has_older_events": self.call.has_older_events,
        }
        result: dict[str, Any] = without_numbers(shown) if masked else shown
        return result


def call(conn: db.Connection, call_sid: str) -> Call:
    """Return our row of one call, and its events.

    Raises:
        SchemaError: the database's schema is older than this program's.
        Refused, Unavailable: the database does not answer.

    """
    with db.translated():
        row = conn.execute(_queries["find_call"], {"call_sid": call_sid}).fetchone()
        newest = conn.execute(_queries["events_of_call"], {"call_sid": call_sid, "limit": EVENTS_SHOWN + 1}).fetchall()
    events = [
        Event(at, event, event_status, source, run_id, recorded_at, _readable(payload))
        for at, event, event_status, source, run_id, recorded_at, payload in reversed(newest[:EVENTS_SHOWN])
    ]
    return Call(call_sid, row[0] if row else None, events, len(newest) > EVENTS_SHOWN)


def untold(conn: db.Connection, recordings: Sequence[Recording]) -> frozenset[str]:
    """Return the SIDs of the recordings that no event tells of: ready ones, and deleted ones.

    Raises:
        Refused, Unavailable: the database does not answer.

    """
    now = datetime.now(UTC)
    with db.translated():
        found = tell(conn, recordings, source="", run_id="", imported_before=None, now=now, apply=False)
    return frozenset(told.recording_sid for told in found)


def compare(row: Mapping[str, Any] | None, record: Observation | None) -> list[Field]:
    """Return our row and Twilio's record field by field, also if there is only one of them.

    A value that Twilio lacks is no difference (merge rule 5).
    """
    ours, theirs = row or {}, {} if record is None else _as_dict(record)
    pairs = [(name, ours.get(name), theirs.get(name)) for name in COMPARED]
    held, listed = ours.get("other_fields") or {}, theirs.get("other_fields") or {}
    pairs += [(name, held.get(name), listed.get(name)) for name in sorted(held.keys() | listed.keys())]
    return [
        Field(name, value, twilio, twilio is not None and not _is_same(value, twilio)) for name, value, twilio in pairs
    ]


def _entry(entry: Field | Change, *, masked: bool) -> dict[str, Any]:
    """Return a field or a change as a dictionary; `masked` hides what its field's values may tell of a person."""
    values = asdict(entry)
    if not masked:
        return values
    return {
        name: mask_field(entry.field, value) if name != "field" and isinstance(value, str) else value
        for name, value in values.items()
    }


def _as_dict(record: Observation) -> dict[str, Any]:
    """Return a record by the names of our columns, with times in ISO form."""
    values = {
        name: value.isoformat() if isinstance(value, datetime) else value for name, value in record._asdict().items()
    }
    others = None if record.other_fields is None else parse_json(record.other_fields)
    return {**values, "status": record.status.value, "other_fields": others}


def _moment(text: str | None) -> datetime | None:
    """Return a moment of our row; None if there is none, or if it is `infinity`."""
    with suppress(ValueError):
        return None if text is None else datetime.fromisoformat(text)
    return None


def _is_same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, Decimal):
        with suppress(InvalidOperation):
            return ours is not None and Decimal(str(ours)) == theirs
    return bool(ours == theirs)


def _readable(payload: str) -> Any:
    with suppress(BadObservation):
        value = parse_json(payload)
        if _is_flatter(value, _DEEPEST):
            return value
    return payload


def _is_flatter(value: Any, than: int) -> bool:
    match value:
        case dict():
            return than > 0 and all(_is_flatter(item, than - 1) for item in value.values())
        case list():
            return than > 0 and all(_is_flatter(item, than - 1) for item in value)
    return True

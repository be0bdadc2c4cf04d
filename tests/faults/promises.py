"""The promises after each step of a history, after a run of each job, and at the end; asked in plain SQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from reconciler.database import connection as db
from reconciler.database.inbox import WORKER_TRIES
from reconciler.settings import Settings
from reconciler.simulator import Clock, SimulatedAccount
from reconciler.simulator.filters import Span
from tests.harness.equality import FINAL, differences, doubled_events, expected_row, records_of, versions

if TYPE_CHECKING:
    from tests.faults.lives import Step

# Of a frozen row these change no more; the rest is the Viewer's, or says when we wrote.
FREE = {"conversation_id", "direction", "recording_url", "metadata", "created_at", "updated_at", "gone_at"}
# The fields of a row that events report; the account and the date of creation are bookkeeping.
TOLD = (
    "status", "parent_call_sid", "from_number", "to_number", "duration", "price", "price_unit", "start_time",
    "end_time", "answered_by",
)  # fmt: skip
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)

_LONG = {"subresource_uris", "uri", "api_version", "from_formatted", "to_formatted"}

Row = Mapping[str, Any]


class Broken(Exception):
    """A promise that was not kept."""

    def __init__(self, promise: str, detail: object) -> None:
        super().__init__(f"{promise}: {detail}")
        self.promise = promise


class Watch:
    """Looks at the database after each step, and remembers how it was before.

    `ever` are the calls that exist or existed, `corrected` when Twilio corrected one last. `hindered` are the calls
    that something kept from being written when a run passed them: cold brings them in the end, and hot does not.
    """

    def __init__(
        self, conn: db.Connection, account: SimulatedAccount, clock: Clock, settings: Settings, *, is_alone: bool
    ) -> None:
        self.corrected: dict[str, datetime] = {}
        self.hindered: set[str] = set()
        self._conn = conn
        self._account = account
        self._clock = clock
        self._settings = settings
        self._is_alone = is_alone
        self._rows: dict[str, Row] = {}
        self._events: dict[int, Row] = {}
        self._frozen_as: dict[str, Mapping[str, Any] | None] = {}  # Twilio's record when it froze, None: if it was gone
        self._first_listed: datetime | None = None
        self._ended_since: datetime | None = None  # hot has listed the calls that ended since
        self._warm_since: datetime | None = None  # its first look
        self._warm_looked: datetime | None = None
        self.ever = {call.sid for call in account.calls_at(clock.now() + 10 * DAY)}

    def hinder(self, step: Step) -> None:
        """Note which calls the run of this step may pass without writing them."""
        if step.hindered:
            self.hindered.add(step.hindered)
        if step.finds_nothing:
            self.hindered.update(self.ever - self._rows.keys())

    # After each step

    def look(self, step: Step) -> None:
        """A final status stays final, a frozen row as it is, an event for ever; each fact is one event.

        Raises:
            Broken: one of them does not.

        """
        with self._conn.transaction():  # one snapshot: a backfill commits on several connections meanwhile
            self._conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            rows = {row["twilio_sid"]: row for row in self._read("SELECT to_jsonb(m) FROM messages AS m")}
            events = {row["id"]: row for row in self._read("SELECT to_jsonb(e) FROM call_events AS e ORDER BY id")}
        for sid, old in self._rows.items():
            new = rows.get(sid)
            _hold("rows stay", new is not None, sid, step)
            assert new is not None
            if old["is_final"]:
                _hold("final stays final", new["is_final"], old, new, step)
            if old["sync_state"] == "frozen":
                moved = {name for name in old if name not in FREE and old[name] != new[name]}
                _hold("frozen stays as it is", not moved, moved, old, new, step)
        for sid, row in rows.items():
            is_final = row["status"] in FINAL
            agrees = row["is_final"] == is_final == (row["finalized_at"] is not None)
            _hold("status, is_final and finalized_at agree", agrees, row, step)
            _hold("what is frozen is final", is_final or row["sync_state"] != "frozen", row, step)
            if row["sync_state"] == "frozen" and sid not in self._frozen_as:
                self._frozen_as[sid] = self._account.record(sid, self._clock.now())
                awaits = row["status"] == "completed" and None in (row["price"], row["end_time"], row["duration"])
                age = self._clock.now() - datetime.fromisoformat(row["finalized_at"])
                _hold("who waits for a price has a day", not awaits or age >= self._settings.freeze_after, row, step)
        for id_, event in self._events.items():
            _hold("events stay", events.get(id_) == event, event, step)
        for event in list(events.values())[len(self._events) :]:
            if _frozen_for(event) == "deadline":
                self._check_deadline(event["call_sid"], rows[event["call_sid"]], step)
        self._rows, self._events = rows, events
        self._check_events(step)
        self._check_cursors(step)

    def _check_deadline(self, sid: str, row: Row, step: Step) -> None:
        """Where warm is at work, a price that came within the day is not lost to the deadline."""
        call: Any = self._account.find(sid)
        deadline = datetime.fromisoformat(row["finalized_at"]) + self._settings.freeze_after
        came_in_time = call.priced is not None and datetime.fromtimestamp(call.priced, UTC) <= deadline
        is_gone = self._account.record(sid, self._clock.now()) is None
        if self._warm_since is None or is_gone:
            return
        # The first look of warm reaches back a day; no job asks about calls that ended before.
        was_asked = deadline + self._settings.overlap >= self._warm_since
        if came_in_time and was_asked:
            _hold("a price in time is not lost", row["price"] is not None, row, step)

    def _check_events(self, step: Step) -> None:
        twice = [told for told, times in self._told().items() if times > 1]
        _hold("a recording is told once", not twice, twice, step)
        doubled = [d for d in doubled_events(self._conn) if d[1] not in ("call.corrected", "call.enriched")]
        _hold("one event for each fact", not doubled, doubled, step)
        events: dict[str, list[Row]] = {sid: [] for sid in self._rows}
        for event in self._events.values():
            if not event["event_type"].startswith("recording."):
                _hold("an event has a row", event["call_sid"] in events, event, step)
                events[event["call_sid"]].append(event)
        for sid, row in self._rows.items():
            happened = [event["event_type"] for event in events[sid]]
            _hold("created once", happened.count("call.created") <= 1, happened, step)
            freezes = sum(_frozen_for(event) is not None for event in events[sid])
            _hold("frozen once", freezes == int(row["sync_state"] == "frozen"), row, happened, step)
            if self._is_alone:
                _hold("created first", happened[:1] == ["call.created"], sid, happened, step)
            # A call that was frozen as it landed is told by its row alone.
            if self._is_alone and "frozen" not in events[sid][0]["payload"]:
                told = _fold(events[sid])
                held = {name: row[name] or None if name.endswith("_number") else row[name] for name in TOLD}
                _hold("events tell the row", _same(told, held), told, held, step)

    def _check_cursors(self, step: Step) -> None:
        cursors: dict[str, Any] = dict(self._conn.execute("SELECT job_name, cursor FROM sync_state").fetchall())
        if warm := cursors.get("warm"):
            self._warm_looked = datetime.fromisoformat(warm["looked_at"])
            self._warm_since = self._warm_since or self._warm_looked
        hot = cursors.get("hot")
        if hot and self._first_listed is None:
            # A first run looks back a day.
            self._first_listed = self._clock.now() - DAY
        if hot and hot.get("ended_until") and self._ended_since is None:
            # A first such listing looks back an hour.
            self._ended_since = datetime.fromisoformat(hot["ended_until"]) - HOUR
        if hot and hot.get("ended_until"):
            self._check_ended("hot passes no end of a trunk call", datetime.fromisoformat(hot["ended_until"]), step)
        if hot and "plan" not in hot and self._first_listed is not None:
            read_until = datetime.fromisoformat(hot["read_until"])
            self._check_held("hot's cursor passes what was read", self._first_listed, read_until, step)

    def _check_held(self, promise: str, since: datetime, until: datetime, step: Step) -> None:
        calls: list[Any] = list(self._account.calls_at(self._clock.now()))
        for call in calls:
            created = datetime.fromtimestamp(call.created, UTC)
            # A trunk's calls are listed only when they are over: `_check_ended`.
            if since <= created < until and not call.is_trunking and call.sid not in self.hindered:
                _hold(promise, call.sid in self._rows, call, since, until, step)

    def _check_ended(self, promise: str, until: datetime, step: Step) -> None:
        """Every trunk call that ended since hot began to look for them is held."""
        assert self._ended_since is not None
        calls: list[Any] = list(self._account.calls_at(self._clock.now()))
        for call in calls:
            if not call.is_trunking or call.sid in self.hindered:
                continue
            if self._ended_since <= datetime.fromtimestamp(call.ended, UTC) < until:
                _hold(promise, call.sid in self._rows, call, self._ended_since, until, step)

    # After a job that ran to its end

    def check_promise(self, step: Step, began: datetime) -> None:
        """Check the promise of a run of that job.

        Raises:
            Broken: it does not hold.

        """
        has_trunks = any(row["direction"].startswith("trunking-") and row["account_sid"] for row in self._rows.values())
        self.look(step)
        now = self._clock.now()
        match step.kind:
            case "hot":
                self._check_held("hot: what is new shows up", self._first_listed or now - DAY, now, step)
                _hold("hot: an account's trunks are noticed", self._ended_since is not None or not has_trunks, step)
                if self._ended_since is not None:
                    self._check_ended("hot: what ended on a trunk shows up", now, step)
                for sid, row in self._rows.items():
                    record = self._account.record(sid, now)
                    # A run to which Twilio answered 404 marked an open call as gone. hot does not ask again; cold does.
                    is_asked = not row["is_final"] and row["gone_at"] is None
                    if is_asked and record is not None and sid in self.ever and sid != step.hindered:
                        _hold("hot: what ended is final", record["status"] not in FINAL, row, record)
            case "warm":
                if not step.is_scheduled:
                    since = now - self._settings.freeze_after - self._settings.overlap
                    ended = [
                        sid
                        for sid, row in self._rows.items()
                        if row["is_final"]
                        and datetime.fromisoformat(row["finalized_at"]) >= since
                        and sid != step.hindered
                    ]
                    self._check_equal(
                        "warm: what ended is as Twilio says", lambda record: record["sid"] in ended, drift_is_said=False
                    )
                    for sid in ended:
                        row, record = self._rows[sid], self._account.record(sid, now)
                        if record is not None and record["status"] == "completed" and record["price"] is not None:
                            _hold("warm: what is complete is frozen", row["sync_state"] == "frozen", row, record)
            case "freeze":
                for sid, row in self._rows.items():
                    if sid == step.hindered:
                        continue
                    if row["is_final"] and row["sync_state"] != "frozen" and row["observed_via"] == "rest":
                        due = datetime.fromisoformat(row["finalized_at"]) + self._settings.freeze_after
                        looked_at = self._warm_looked or now
                        _hold("freeze: what is due is frozen", due > min(now, looked_at), row, looked_at)
            case "inbox":
                self._check_inbox(now)
            case "cold":
                self._check_window("cold: the window is as Twilio says", now - 3 * DAY, now, step)
                if not step.hindered:
                    self._check_days()
            case "backfill":
                since = began - timedelta(seconds=step.seconds)
                self._check_window("backfill: the window is as Twilio says", since, began, step)
            case "recordings":
                pass  # in the end each is told: `check_recordings`
            case _:
                raise AssertionError(step.kind)

    def versions(self) -> tuple[list[Any], int]:
        """Each row's version, and the number of events."""
        return versions(self._conn), len(self._read("SELECT id FROM call_events"))

    def check_unwritten(self, step: Step, before: tuple[list[Any], int]) -> None:
        """Nothing was written since.

        Raises:
            Broken: a row has another version, or there are more events.

        """
        after = self.versions()
        changed = [(old, new) for old, new in zip(before[0], after[0], strict=False) if old != new]
        _hold("what did not change is not written", before == after, changed, before[1], after[1], step)

    def _check_inbox(self, now: datetime) -> None:
        grace = self._settings.inbox_grace
        for row in self._read("SELECT to_jsonb(i) FROM twilio_webhook_inbox AS i"):
            age = now - datetime.fromisoformat(row["received_at"])
            match row["processing_status"]:
                case "pending":
                    is_due = age > grace
                case "processing":
                    is_due = age > grace + timedelta(minutes=1)
                case "failed":
                    is_due = row["retry_count"] >= WORKER_TRIES or age > timedelta(minutes=1) * 2 ** row["retry_count"]
                case "dead_letter":
                    is_due = not row["error"]
                case _:
                    is_due = False
            _hold("inbox: what is due is settled", not is_due, row)
            if self._is_alone and row["processing_status"] == "completed":
                said = _said(row)
                is_known = said is None or any(said.items() <= event.items() for event in self._events.values())
                _hold("inbox: what a webhook told is an event", is_known, row)

    def _check_window(self, promise: str, since: datetime, until: datetime, step: Step) -> None:
        def is_in(record: Row) -> bool:
            row = expected_row(record)
            is_hindered = record["sid"] == step.hindered
            return bool(since <= (row["start_time"] or row["date_created"]) < until) and not is_hindered

        self._check_equal(promise, is_in)

    def _check_days(self) -> None:
        for day in self._read("SELECT to_jsonb(d) FROM account_days AS d"):
            # A call was deleted, and its recordings with it; another day is to confirm that.
            differences = day["differences"].keys() - {"price_drift"}
            has_shrunk = bool(differences) and differences <= {"shrunk", "recordings_shrunk"}
            _hold("cold: each day is complete", day["is_complete"] or has_shrunk, day)

    # At the end

    def check_equal(self) -> None:
        """All rows are as Twilio says.

        Raises:
            Broken: one is not.

        """
        self._check_equal("equal at the end", lambda _: True)
        strangers = self._rows.keys() - self.ever
        _hold("no row that is no call", not strangers, strangers)

    def check_recordings(self) -> None:
        """Each recording is told once, by one source, and stands in the row of its call; so is its deletion.

        Raises:
            Broken: one is not.

        """
        told = self._told()
        now = self._clock.now().timestamp()
        for recording in self._account.recordings_between(Span()):
            if recording.ready > now:
                continue
            is_deleted = recording.sid in self._account.deleted_recordings
            ready, deleted = told["recording.ready", recording.sid], told["recording.deleted", recording.sid]
            _hold("each recording is told", ready == 1 or (is_deleted and not ready), recording, ready)
            _hold("a deletion is told", deleted == is_deleted, recording, deleted)
            row = self._rows.get(recording.call_sid or "")
            if row is not None and not is_deleted:
                _hold("a recording stands in its call", row["recording_url"] == recording.media_url, recording, row)

    def _told(self) -> Counter[tuple[str, str]]:
        """How often each event of each recording is told."""
        return Counter(
            (event["event_type"], event["payload"]["recording_sid"])
            for event in self._events.values()
            if event["event_type"].startswith("recording.")
        )

    def check_settled(self) -> None:
        """Nothing is left over.

        Raises:
            Broken: something is.

        """
        now = self._clock.now()
        self._check_inbox(now)
        for sid, row in self._rows.items():
            record = self._account.record(sid, now)
            if row["is_final"]:
                # Deleted at Twilio, and known from webhooks alone: it freezes when Twilio would no longer keep it.
                is_rumour = record is None and row["observed_via"] != "rest"
                is_settled = row["sync_state"] == "frozen" or row["gone_at"] is not None or is_rumour
            else:
                is_settled = row["gone_at"] is not None if record is None else record["status"] not in FINAL
            _hold("settled at the end", is_settled, row, record)
            _hold("what Twilio has is not gone", record is None or row["gone_at"] is None, row, record)

    def _check_equal(self, promise: str, concerns: Callable[[Row], bool], *, drift_is_said: bool = True) -> None:
        now = self._clock.now()
        records = [record for record in records_of(self._account, now) if concerns(record)]
        by_sid = {record["sid"]: record for record in records}
        for line in differences(self._conn, records):
            sid, name = line.split(": ")[0].split(" ") if ": Twilio has" not in line else ("", "")
            if name:
                is_excused = self._is_excused(by_sid[sid], name, now, drift_is_said=drift_is_said)
                _hold(promise, is_excused, line, self._rows.get(sid), by_sid[sid])

    def _is_excused(self, record: Row, name: str, now: datetime, *, drift_is_said: bool) -> bool:
        sid = record["sid"]
        row = self._rows.get(sid)
        if row is None:
            return False
        if name == "duration" and row["duration"] == 0 and record["duration"] is None:
            return True  # null cannot clear what a webhook said of a call that was canceled in the queue
        if row["sync_state"] != "frozen":
            # Of two copies of one second it cannot be told which is newer.
            corrected = self.corrected.get(sid)
            return corrected is not None and int(corrected.timestamp()) == int(now.timestamp())
        # What Twilio changed, or priced, after the row froze, it says in vain; but it is said aloud.
        frozen_as = self._frozen_as[sid]
        has_changed = frozen_as is None or frozen_as != record or self._froze_by("freeze", sid)
        has_changed |= sid in self.corrected  # perhaps while the page that froze it was in hand
        is_said = any(
            event["call_sid"] == sid and event["event_type"] == "call.frozen_drift" and name in event["payload"]
            for event in self._events.values()
        )
        return has_changed and (is_said or not drift_is_said)

    def _froze_by(self, job: str, sid: str) -> bool:
        return any(
            event["call_sid"] == sid and _frozen_for(event) is not None and event["source"] == f"reconcile_{job}"
            for event in self._events.values()
        )

    def _read(self, query: str) -> list[Any]:
        return [row[0] for row in self._conn.execute(query.encode())]


def _hold(promise: str, is_kept: bool, *details: object) -> None:
    if not is_kept:
        raise Broken(promise, "\n    ".join(map(_shown, details)))


def _shown(thing: object) -> str:
    """Without what says nothing here."""
    if isinstance(thing, Mapping):
        thing = {name: value for name, value in thing.items() if value not in (None, "") and name not in _LONG}
    return repr(thing)


def _frozen_for(event: Row) -> str | None:
    """Why an event says that its call is frozen; None if it does not say so."""
    reason = {"call.frozen": "reason", "call.created": "frozen"}.get(event["event_type"])
    return None if reason is None else event["payload"].get(reason)


def _fold(events: Iterable[Row]) -> dict[str, Any]:
    """The row that the events tell. A late event tells its status alone, and not the status before it."""
    told: dict[str, Any] = {}
    for event in events:
        kind, payload = event["event_type"], event["payload"]
        is_late = kind == "call.status_changed" and "previous_status" not in payload
        if kind in ("call.created", "call.status_changed", "call.enriched", "call.corrected") and not is_late:
            told |= {name: value for name, value in payload.items() if name in TOLD}
    return {name: told.get(name) for name in TOLD}


def _same(told: Row, held: Row) -> bool:
    def plain(name: str, value: Any) -> Any:
        if name.endswith("_time") and value is not None:  # ours have no zone, and mean UTC
            time = datetime.fromisoformat(value)
            return time if time.tzinfo else time.replace(tzinfo=UTC)
        return value

    return all(plain(name, told[name]) == plain(name, held[name]) for name in TOLD)


def _said(row: Row) -> dict[str, str] | None:
    """Return the expected event of a processed webhook; None if it leaves no event of that kind."""
    payload = row["payload"]
    match row["event_type"]:
        case "call-status" if "CallStatus" not in payload:
            return None  # a participant's of a conference
        case "call-status" | "call-inbound":
            return {"call_sid": payload["CallSid"], "event_status": payload["CallStatus"]}
        case "dial-action":
            return {"call_sid": payload["DialCallSid"], "event_status": payload["DialCallStatus"]}
        case "recording-complete":
            return {"call_sid": payload["CallSid"], "event_type": "recording.ready"}
    return None

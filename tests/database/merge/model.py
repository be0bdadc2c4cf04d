"""The merge rules once more, one call and one observation at a time, as plainly as they can be said.

Held against the SQL by test_model.py. Written from the rules, not from the statement.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from reconciler.model import Observation

RANK = {"queued": 0, "initiated": 1, "ringing": 2, "in-progress": 3} | dict.fromkeys(
    ("completed", "busy", "no-answer", "canceled", "failed"), 4
)
FIELDS = (
    "account_sid", "parent_call_sid", "from_number", "to_number", "duration", "price", "price_unit", "start_time",
    "end_time", "answered_by", "date_created",
)  # fmt: skip
BOOKKEEPING = ("account_sid", "date_created")


@dataclass
class Call:
    """The expected state of one call: its row, and its events as (type, status, time) by their key."""

    row: dict[str, Any] | None = None
    events: dict[object, tuple[str, str, datetime]] = field(default_factory=dict)

    def merge(self, said: Observation, *, now: datetime, freeze_after: timedelta) -> None:
        """Apply the rules."""
        clock = (said.observed_at, said.via == "rest")
        values = {name: getattr(said, name) for name in FIELDS}
        others = json.loads(said.other_fields or "{}")
        if self.row is None:  # rule 1
            self.row = {
                **values,
                "other_fields": others,
                "status": said.status,
                "clock": clock,
                "last_event_time": said.status_at,
                "frozen": False,
            }
            self._finalize(None, said)
            self._record("created", "call.created", said.status, said.status_at)
            self._freeze(said, now, freeze_after, landed=True)
            return
        row, old = self.row, dict(self.row)
        old_others = row["other_fields"]
        if row["frozen"]:  # rule 7
            of_call = {name: values[name] for name in FIELDS if name not in BOOKKEEPING} | {"status": said.status}
            is_drift = any(value not in (None, row[name]) for name, value in of_call.items())
            is_drift |= any(value != others.get(name, value) for name, value in old_others.items())
            if said.via == "webhook":
                self._record_late(said)
            elif not is_drift:  # rule 5: values that a row of an older version lacks
                row["other_fields"] = others | old_others
            return
        rank, old_rank = RANK[said.status], RANK[row["status"]]
        later = clock > row["clock"]
        conflict = rank == old_rank == 4 and said.status != row["status"]
        if rank < old_rank or (conflict and not later):  # rules 3 and 4
            if said.via == "webhook":
                self._record_late(said)
            return
        newer = rank > old_rank or later
        for name, value in values.items():  # rule 5
            if value is not None and (newer or row[name] is None):
                row[name] = value
        row["other_fields"] = old_others | others if newer else others | old_others
        if newer:
            row |= {"status": said.status, "clock": clock}
        row["last_event_time"] = max(row["last_event_time"], said.status_at)  # rule 6
        self._finalize(old, said)
        changed = {name for name in FIELDS if row[name] != old[name]}
        replaced = {name for name in old_others if row["other_fields"][name] != old_others[name]}
        is_same = all(row[name] == old[name] for name in ("status", "finalized_at", "other_fields"))
        if is_same and not changed:
            row.update(old)  # rule 8
        elif conflict:
            self._record(("corrected", said.status, said.observed_at), "call.corrected", said.status, said.status_at)
        elif row["status"] != old["status"]:
            self._record(("status", said.status), "call.status_changed", said.status, said.status_at)
        elif changed - set(BOOKKEEPING) or replaced:
            others_told = {name: value for name, value in row["other_fields"].items() if old_others.get(name) != value}
            told = (*((name, row[name]) for name in sorted(changed)), json.dumps(others_told, sort_keys=True))
            self._record(("enriched", said.observed_at, told), "call.enriched", row["status"], said.observed_at)
        disagrees = any(values[name] not in (None, row[name]) for name in FIELDS if name not in BOOKKEEPING)
        disagrees = disagrees or any(row["other_fields"][name] != value for name, value in others.items())
        if newer or not disagrees:  # else the row holds something of two answers, and nobody knows which is newer
            self._freeze(said, now, freeze_after, unwritten=row == old)

    def _finalize(self, old: dict[str, Any] | None, said: Observation) -> None:
        row = self.row
        assert row is not None
        if RANK[row["status"]] < 4:
            row["finalized_at"] = None
        elif row["end_time"]:
            row["finalized_at"] = row["end_time"]
        elif old and RANK[old["status"]] == 4 and old["status"] == row["status"]:
            row["finalized_at"] = old["finalized_at"]
        else:
            row["finalized_at"] = said.status_at

    def _freeze(
        self,
        said: Observation,
        now: datetime,
        freeze_after: timedelta,
        *,
        landed: bool = False,
        unwritten: bool = False,
    ) -> None:
        row = self.row
        assert row is not None
        if said.via != "rest" or RANK[row["status"]] < 4:
            return
        complete = row["status"] != "completed" or None not in (row["price"], row["end_time"], row["duration"])
        if complete or row["finalized_at"] + freeze_after <= min(now, said.observed_at):
            row["frozen"] = True
            if unwritten:  # the freeze itself is what this observation changed
                row["last_event_time"] = max(row["last_event_time"], said.status_at)
                row["clock"] = max(row["clock"], (said.observed_at, True))
            if not landed:  # else call.created says so
                self._record("frozen", "call.frozen", row["status"], now)

    def _record_late(self, said: Observation) -> None:
        assert self.row is not None
        if said.status in (self.row["status"], self.events["created"][1]):
            return
        self._record(("status", said.status), "call.status_changed", said.status, said.status_at)

    def _record(self, key: object, kind: str, status: str, time: datetime) -> None:
        self.events.setdefault(key, (kind, str(status), time))

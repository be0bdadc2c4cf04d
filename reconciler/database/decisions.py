"""The decisions of a merge, and their counts in calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from reconciler.database.recordings import Told
from reconciler.model import DeadLetter, Gap, RecordingState

WRITES: Final = ("insert", "update")  # the actions that write a row


class Decision(NamedTuple):
    """The merge's decision about one observation that holds something new; in a brief merge about `calls` alike.

    A brief merge names a call only if it drifts, or if its end became known late.

    Only a preview and a drift have these two:
    - `theirs`: the fields that differ, with Twilio's values;
    - `ours`: our row; empty if there is none.
    """

    call_sid: str  # empty if it is not named
    action: str  # insert, update, late (an event only) or drift (a frozen row that Twilio disagrees with)
    gap: Gap | None
    is_imported: bool  # it would be a gap, but it was so before anybody looked after the account
    from_status: str | None
    to_status: str
    late_seconds: float
    freezes: bool
    is_news: bool  # False for a drift reported before
    theirs: dict[str, Any] | None
    ours: dict[str, Any] | None
    calls: int = 1

    @property
    def fields(self) -> dict[str, tuple[Any, Any]]:
        """Return our value and Twilio's of each field that differs; `other_fields` by their own names."""
        ours = self.ours or {}
        held = {**ours, **(ours.get("other_fields") or {})}
        theirs = self.theirs or {}
        return {name: (held.get(name), theirs[name]) for name in theirs if name != "previous_status"}


@dataclass(frozen=True, slots=True)
class Merged:
    """The counts and decisions of a merge, in calls."""

    seen: int = 0
    inserted: int = 0
    updated: int = 0
    late: int = 0
    imported: int = 0
    frozen: int = 0
    drifted: int = 0
    dead_letters: int = 0
    refused: list[DeadLetter] = field(default_factory=list)  # the dead letters that PostgreSQL refused
    held: list[DeadLetter] = field(default_factory=list)  # another session holds the row; tried again later
    gaps: Counter[Gap] = field(default_factory=Counter)
    decisions: list[Decision] = field(default_factory=list)
    recordings: list[Told] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        seen: int,
        written: Sequence[Decision | Told],
        *,
        dead_letters: int = 0,
        refused: Sequence[DeadLetter] = (),
        held: Sequence[DeadLetter] = (),
    ) -> Merged:
        """Count what was `written`; `dead_letters` does not include those of `refused`."""
        decisions = [decision for decision in written if isinstance(decision, Decision)]
        actions = Counter[str]()
        gaps = Counter[Gap]()
        for decision in decisions:
            actions[decision.action] += decision.calls
            if decision.gap is not None:
                gaps[decision.gap] += decision.calls
        return cls(
            seen=seen,
            inserted=actions["insert"],
            updated=actions["update"],
            late=actions["late"],
            imported=sum(decision.calls for decision in decisions if decision.is_imported),
            frozen=sum(decision.calls for decision in decisions if decision.freezes and decision.action in WRITES),
            drifted=actions["drift"],
            dead_letters=dead_letters + len(refused),
            refused=list(refused),
            held=list(held),
            gaps=gaps,
            decisions=decisions,
            recordings=[told for told in written if isinstance(told, Told)],
        )

    def told(self, state: RecordingState) -> int:
        """The number of recordings that were told to be in `state`, without imported ones."""
        return sum(told.state is state and not told.is_imported for told in self.recordings)

    @property
    def unchanged(self) -> int:
        """The number of calls whose rows already agreed with Twilio."""
        return self.seen - self.inserted - self.updated

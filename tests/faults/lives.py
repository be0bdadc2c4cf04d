"""The parts of a history, drawn from a seed: lives of calls, the road of their webhooks, steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random
from typing import Any, NamedTuple

from reconciler.simulator import Callbacks, SimulatedAccount
from reconciler.simulator.calls import FINAL
from reconciler.simulator.viewer import Habits
from reconciler.simulator.webhooks import Channel, Delivery, webhooks

START = datetime(2026, 6, 10, 22, 30, tzinfo=UTC)  # a midnight is near
BEFORE = timedelta(hours=12)  # how long before that calls may have been made
SPAN = timedelta(hours=24)  # by then the steps are done
HABITS = ("regress_statuses", "seal_wrongly", "overwrite_metadata", "never_release")
TERMINAL = sorted(FINAL)

ACCOUNTS = (f"AC{number:032x}" for number in count(1))


class Road(NamedTuple):
    """The losses on the way of one call's webhooks, as shares, and the seed that decides."""

    seed: int
    loss: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0
    reorder: float = 0.0
    undated: float = 0.0  # without a Timestamp
    wrong: float = 0.0  # of the final ones: another final status than the call's
    of_children: bool = False  # a child leg sends its own


class Life(NamedTuple):
    """One call: created so many seconds after START, with that script (see `SimulatedAccount.call`)."""

    sid: str
    created: float
    script: dict[str, Any]
    road: Road


@dataclass(frozen=True)
class Step:
    """One event of a history. `kind` is that of a job, or wait, viewer, fail, correct, delete or unrecord.

    After unrecord Twilio has deleted the recordings of a call.

    Attributes:
        seconds: how long to wait, or how far back a backfill reads.
        cut: the run is stopped after so many of its commits, or dies there.
        during: what happens after so many commits of the run, before it goes on.
        twice: the job is run a second time, and must write nothing.
        tells: the correction is told by a webhook as well.
        ahead: while the run lasts, our clock is so many hours ahead of Twilio's; less than 0: behind.
        finds_nothing: while the run lasts, Twilio answers with empty lists and 404, as a wrong region does.
        locked: while the run lasts, an idle transaction keeps the row of this call locked.
        silenced: while the run lasts, a trigger lets no write of this call through and says nothing.

    """

    kind: str
    seconds: float = 0
    cut: int | None = None
    dies: bool = False
    during: tuple[tuple[int, tuple[Step, ...]], ...] = ()
    twice: bool = False
    is_scheduled: bool = False
    sid: str = ""
    status: str = ""
    tells: bool = False
    ahead: float = 0
    finds_nothing: bool = False
    locked: str = ""
    silenced: str = ""
    habits: Habits = Habits()

    @property
    def hindered(self) -> str:
        """The call that cannot be written in this run; empty where nothing is in the way."""
        return self.locked or self.silenced

    @property
    def is_misled(self) -> bool:
        """Whether this run is told the wrong time or a wrong answer: later runs mend what it does."""
        return self.ahead != 0 or self.finds_nothing

    def __repr__(self) -> str:
        plain = Step(self.kind)
        said = [f"{name}={value!r}" for name, value in vars(self).items() if value != getattr(plain, name)]
        return f"Step({', '.join([repr(self.kind), *said])})"

    def simpler(self) -> Iterator[Step]:
        """With less happening during it."""
        if self.cut is not None:
            yield replace(self, cut=None, dies=False)
        if self.hindered:
            yield replace(self, locked="", silenced="")
        if self.ahead:
            yield replace(self, ahead=0)
        if self.finds_nothing:
            yield replace(self, finds_nothing=False)
        for index, (after, steps) in enumerate(self.during):
            yield replace(self, during=self.during[:index] + self.during[index + 1 :])
            for other in _without_one(steps):
                yield replace(self, during=(*self.during[:index], (after, other), *self.during[index + 1 :]))
        for name in HABITS:
            if getattr(self.habits, name):
                yield replace(self, habits=replace(self.habits, **{name: False}))


@dataclass(frozen=True)
class History:
    """All of it. `is_alone`: the Viewer's worker does nothing, so all that is known is known by us."""

    seed: int
    lives: Sequence[Life]
    steps: Sequence[Step]
    is_alone: bool = field(default=False)

    def smaller(self) -> Iterator[History]:
        """Each history with something left out, the boldest first."""
        for lives in _with_less(self.lives):
            yield replace(self, lives=lives)
        for steps in _with_less(self.steps):
            yield replace(self, steps=steps)
        for index, step in enumerate(self.steps):
            for simpler in step.simpler():
                yield replace(self, steps=[*self.steps[:index], simpler, *self.steps[index + 1 :]])
        for index, life in enumerate(self.lives):
            for name in ("loss", "duplicate", "late", "reorder", "undated", "wrong"):
                if getattr(life.road, name):
                    changed: dict[str, Any] = {name: 0.0}
                    simpler_life = life._replace(road=life.road._replace(**changed))
                    yield replace(self, lives=[*self.lives[:index], simpler_life, *self.lives[index + 1 :]])


def _with_less(things: Sequence[Any]) -> Iterator[list[Any]]:
    size = len(things)
    while size := size // 2:
        for first in range(0, len(things), size):
            yield [*things[:first], *things[first + size :]]


def _without_one(steps: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
    if len(steps) > 1:
        for index in range(len(steps)):
            yield steps[:index] + steps[index + 1 :]


def draw(seed: int) -> History:
    """The history of that seed."""
    rng = Random(seed)
    is_alone = rng.random() < 0.4
    lives = list(_lives(rng))
    habits = Habits(**{name: rng.random() < 0.4 for name in HABITS})
    steps, left = [], SPAN / timedelta(seconds=1)
    for _ in range(rng.randrange(3, 10)):
        step = _step(rng, lives, habits, is_alone=is_alone)
        waits = [step, *(inner for _, inside in step.during for inner in inside)]
        left -= sum(each.seconds for each in waits if each.kind == "wait")
        if left < 0:
            break
        steps.append(step)
    return History(seed, lives, steps, is_alone)


def _lives(rng: Random) -> Iterator[Life]:
    road = _road(rng)
    moments = [_moment(rng) for _ in range(3)]
    for number in range(rng.choice((1, 2, 4, 7, 10))):
        # Often in the same second as another one.
        created = rng.choice(moments) if rng.random() < 0.3 else _moment(rng)
        sid = f"CA{rng.getrandbits(128):032x}"
        its_road = (road if rng.random() < 0.7 else _road(rng))._replace(seed=rng.getrandbits(32))
        script = _script(rng)
        yield Life(sid, created, script, its_road)
        if script["direction"] == "inbound" and script["status"] == "completed" and rng.random() < 0.4:
            child = {**_script(rng), "direction": "outbound-dial", "parent_call_sid": sid}
            child.pop("never_dialled", None)
            yield Life(f"CA{number:08x}{rng.getrandbits(96):024x}", created + rng.randrange(8), child, its_road)


def _moment(rng: Random) -> int:
    before = int(BEFORE / timedelta(seconds=1))
    return rng.choice((rng.randrange(-before, 0), rng.randrange(-600, 5400), rng.randrange(0, 60_000)))


def _script(rng: Random) -> dict[str, Any]:
    status = rng.choice(("completed", "completed", "completed", *TERMINAL))
    script: dict[str, Any] = {
        "direction": rng.choice(("inbound", "outbound-api", "outbound-api", "trunking-terminating")),
        "status": status,
        "queued_for": rng.choice((0, 0, 0, 2, 90, 4_000, 12_000, None)),
        "rings_for": rng.choice((0, 1, 6, 30, 30, None)),
        "talks_for": rng.choice((0, 1, 30, 30, 700, 5_000, None)),
        "priced_after": rng.choice((0, 20, 20, 600, 7_000, 70_000, 110_000, None)),
        "to": rng.choice(("+13125550123", "sip:front-desk@pbx.example.com", "client:alice")),
        "price": rng.choice(("-0.01400", "0.00000")),
    }
    if script["direction"] == "inbound":
        script["queued_for"] = 0
    if status in ("canceled", "failed") and script["direction"] == "outbound-api" and rng.random() < 0.5:
        script["never_dialled"] = True
    elif status == "completed" and rng.random() < 0.2:
        script["answered_by"] = rng.choice(("human", "machine_start"))
    return script


def _road(rng: Random) -> Road:
    def share() -> float:
        return rng.choice((0.0, 0.0, 0.3, 0.8))

    loss = rng.choice((0.0, 0.3, 0.7, 1.0))
    return Road(
        0, loss, share(), share(), share(), share(), rng.choice((0.0, 0.0, 0.5)), of_children=rng.random() < 0.3
    )


def _step(rng: Random, lives: Sequence[Life], habits: Habits, *, is_alone: bool, depth: int = 0) -> Step:
    kind = rng.choice((
        "wait", "wait", "wait", "hot", "hot", "hot", "warm", "warm", "cold", "freeze", "inbox", "inbox", "backfill",
        "viewer", "viewer", "fail", "correct", "delete", "recordings", "unrecord",
    ))  # fmt: skip
    match kind:
        case "wait":
            seconds = rng.choice((0.4, 1, 7, 31, 61, 300, 301, 660, 900, 3_600, 14_000, 40_000))
            return Step("wait", seconds=seconds * rng.choice((1, 1, rng.random())))
        case "viewer" if is_alone:
            return Step("inbox")
        case "viewer":
            return Step("viewer", habits=habits if rng.random() < 0.7 else Habits())
        case "correct":
            return Step("correct", sid=rng.choice(lives).sid, status=rng.choice(TERMINAL), tells=rng.random() < 0.3)
        case "delete":
            return Step("delete" if rng.random() < 0.4 else "wait", seconds=5, sid=rng.choice(lives).sid)
        case "fail":
            return Step("fail")
        case "unrecord":
            return Step("unrecord", sid=rng.choice(lives).sid)
    step = Step(kind, is_scheduled=rng.random() < 0.5, twice=rng.random() < 0.1)
    if kind == "backfill":
        step = replace(step, seconds=rng.choice((3_600, 50_000, 86_400)))
    fate = rng.random()
    if fate < 0.15:
        step = replace(step, cut=_commit(rng))
    elif fate < 0.3:
        step = replace(step, cut=_commit(rng), dies=True)
    if rng.random() < 0.06:
        return replace(step, ahead=rng.choice((25, 25, -1)), twice=False)
    if rng.random() < 0.03:
        return replace(step, finds_nothing=True, twice=False)
    if rng.random() < 0.06:
        sid, is_locked = rng.choice(lives).sid, rng.random() < 0.5
        return replace(step, locked=sid if is_locked else "", silenced="" if is_locked else sid, twice=False)
    if depth == 0 and rng.random() < 0.35:
        during = {
            _commit(rng): tuple(
                _step(rng, lives, habits, is_alone=is_alone, depth=1) for _ in range(rng.randrange(1, 4))
            )
            for _ in range(rng.randrange(1, 3))
        }
        step = replace(step, during=tuple(sorted(during.items())))
    return step


def _commit(rng: Random) -> int:
    return rng.choice((1, 2, 2, 3, 3, 4, 5, 6, 8, 11))


def deliveries(account: SimulatedAccount, lives: Sequence[Life]) -> list[Delivery]:
    """Take the calls in; returns their webhooks as they will arrive, earliest first."""
    account.callbacks = Callbacks(recorded=0.6, recorded_trunks=0.6, conferences=0.3)
    for life in lives:
        account.call(START + timedelta(seconds=life.created), sid=life.sid, **life.script)
    # Before and after that nothing happens.
    first, last = START - BEFORE - timedelta(days=1), START + SPAN + timedelta(days=3)
    sent = {of_children: webhooks(account, first, last, child_callbacks=of_children) for of_children in (False, True)}
    arriving = []
    for life in lives:
        road = life.road
        mine = [webhook for webhook in sent[road.of_children] if webhook.call_sid == life.sid]
        channel = Channel(road.seed, road.loss, road.duplicate, road.late, road.reorder)
        arriving += [_told(delivery, road, number) for number, delivery in enumerate(channel.deliver(mine))]
    return sorted(arriving, key=lambda delivery: delivery.received_at)


def _told(delivery: Delivery, road: Road, number: int) -> Delivery:
    rng = Random(road.seed + number)
    webhook = delivery.webhook
    if webhook.kind != "status-callback":
        return delivery
    said = dict(webhook.params)
    if rng.random() < road.undated:
        said["Timestamp"] = ""
    elif rng.random() < 0.3:
        said["Timestamp"] = said["Timestamp"].replace("+0000", "GMT")
    if said["CallStatus"] in FINAL and rng.random() < road.wrong:
        said["CallStatus"] = rng.choice(TERMINAL)
    return replace(delivery, webhook=replace(webhook, params=said))

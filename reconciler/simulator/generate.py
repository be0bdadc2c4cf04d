"""Random calls in the proportions of a busy contact centre. The same seed makes the same calls.

Numbers are fictitious: 555-0100 to 555-0199 are reserved for that in every North American area code.
Addresses come in the forms of tests/data/real_calls.jsonl: numbers, `sip:` URIs, `client:` names.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator
from random import Random
from zlib import crc32

from reconciler.simulator.calls import TRUNK_SID, SimulatedCall

AREA_CODES = (202, 212, 305, 312, 404, 415, 512, 617, 702, 808)
OWN_NUMBERS = tuple(f"+1{area}55501{n:02d}" for area in AREA_CODES[:3] for n in range(4))
OTHER_NUMBERS = tuple(f"+1{area}55501{n:02d}" for area in AREA_CODES for n in range(4, 100))
CLIENTS = tuple(f"client:{name}" for name in ("alice", "bob", "carol", "dispatch.desk"))
SIP_URIS = tuple(
    f"sip:{user}@{host}"
    for user in ("front-desk", "agent.7", "+12025550177")
    for host in ("pbx.example.com", "pbx.example.com:5061;transport=tls", "sbc.long-host-name.example.net;user=phone")
)
NUMBER_SIDS = {number: f"PN{index:032x}" for index, number in enumerate(OWN_NUMBERS, 1)}
_LOOKED_UP = {"caller_name": "EXAMPLE, ALICE"}
TRUNK_SHARE = 0.06  # default share of an account's calls

_KINDS = ("inbound", "outbound-api", "dialled", "trunking-originating", "trunking-terminating")
_KIND_LIMITS = (0.42, 0.75, 0.94)  # "dialled": an inbound call with a child leg; above the last limit: trunk calls
_STATUSES = ("completed", "busy", "no-answer", "failed", "canceled")
_STATUS_LIMITS = (0.80, 0.86, 0.94, 0.97)
_MINUTE_PRICE = {"inbound": 850, "outbound-api": 1400, "outbound-dial": 1400}  # in 1/100,000 dollar, as on the wire


def lives(
    rng: Random, account_sid: str, count: int, since: int, until: int, trunk_share: float = TRUNK_SHARE
) -> list[SimulatedCall]:
    """Return exactly `count` calls created in [since, until). A child leg may be created some seconds later."""
    made: list[SimulatedCall] = []
    if until <= since:
        raise ValueError("the window must end after it begins")
    created = since
    while len(made) < count:
        # One call in thirty shares its second with the one before: at Twilio such ties are common.
        created = created if made and rng.random() < 1 / 30 else rng.randrange(since, until)
        kind = _kind(rng.random(), trunk_share)
        made.extend(_life(rng, kind, account_sid, created, room=count - len(made)))
    return made


def _kind(drawn: float, trunk_share: float) -> str:
    """Return the kind of call for a random number. Half of the trunk calls go each way."""
    others = 1 - trunk_share
    limits = [limit * others / (1 - TRUNK_SHARE) for limit in _KIND_LIMITS]
    return _KINDS[bisect([*limits, others + trunk_share / 2], drawn)]


def _life(rng: Random, kind: str, account_sid: str, created: int, room: int) -> Iterator[SimulatedCall]:
    if kind == "dialled" and room > 1:
        yield from _dialled(rng, account_sid, created)
        return
    status = _STATUSES[bisect(_STATUS_LIMITS, rng.random())]
    match kind:
        case "outbound-api":
            yield _outbound(rng, account_sid, created, status)
        case "trunking-originating" | "trunking-terminating":
            yield _trunking(rng, account_sid, created, status, kind)
        case _:
            yield _inbound(rng, account_sid, created, status)


def _inbound(rng: Random, account_sid: str, created: int, status: str, talk: int | None = None) -> SimulatedCall:
    answered = created + rng.randrange(0, 3) if status == "completed" else None
    talked = (talk or _talk(rng)) if status == "completed" else rng.randrange(1, 40)
    ended = created + talked
    number = rng.choice(OWN_NUMBERS)
    price = _price(rng, "inbound", talked) if status == "completed" else None
    sid = _sid(rng)
    return SimulatedCall(
        sid=sid, account_sid=account_sid, direction="inbound", from_=_somebody(rng), to=number, status=status,
        created=created, dialled=created, answered=answered and min(answered, ended), ended=ended,
        price=price, priced=_priced(rng, ended, price), phone_number_sid=NUMBER_SIDS[number],
        fields=_seldom_filled(sid),
    )  # fmt: skip


def _seldom_filled(sid: str) -> dict[str, str] | None:
    """Return a looked-up name for one inbound call in 20, a forwarding number for one in 40. The SID decides."""
    draw = crc32(sid.encode()) % 40
    if draw in (0, 1):
        return _LOOKED_UP
    return {"forwarded_from": OTHER_NUMBERS[draw]} if draw == 2 else None


def _outbound(rng: Random, account_sid: str, created: int, status: str) -> SimulatedCall:
    number, to = rng.choice(OWN_NUMBERS), _somebody(rng)
    # One call in fifty waits in the account's queue for minutes, one in a thousand for hours.
    draw = rng.random()
    waited = rng.randrange(*((0, 4) if draw > 0.02 else (5, 900) if draw > 0.001 else (900, 12_000)))
    if status == "canceled" and rng.random() < 0.5:  # canceled in the queue: never dialled
        return SimulatedCall(
            sid=_sid(rng), account_sid=account_sid, direction="outbound-api", from_=number, to=to, status=status,
            created=created, ended=created + waited, phone_number_sid=NUMBER_SIDS[number],
        )  # fmt: skip
    dialled = created + waited
    rings = rng.randrange(3, 32)
    answered = dialled + rings if status == "completed" else None
    talked = _talk(rng) if answered else 0
    ended = dialled + rings + talked
    price = _price(rng, "outbound-api", talked) if answered else None
    if status == "failed" and to.startswith("sip:"):
        price = "0.00000"
    return SimulatedCall(
        sid=_sid(rng), account_sid=account_sid, direction="outbound-api", from_=number, to=to, status=status,
        created=created, dialled=dialled, answered=answered, ended=ended, price=price,
        priced=_priced(rng, ended, price), phone_number_sid="" if to.startswith("sip:") else NUMBER_SIDS[number],
        answered_by=rng.choice(("human", "machine_start")) if answered and rng.random() < 0.1 else None,
    )  # fmt: skip


def _dialled(rng: Random, account_sid: str, created: int) -> Iterator[SimulatedCall]:
    """Yield an inbound call and the child leg of its <Dial>. The child begins and ends within the parent's life."""
    parent = _inbound(rng, account_sid, created, "completed", talk=rng.randrange(40, 600))
    yield parent
    begins = created + rng.randrange(2, 7)
    rings = rng.randrange(3, 20)
    status = _STATUSES[bisect(_STATUS_LIMITS, rng.random())]
    answered = begins + rings if status == "completed" else None
    ended = created + rng.randrange(30, 40) if not answered else (parent.ended or answered)
    price = _price(rng, "outbound-dial", ended - answered) if answered else None
    yield SimulatedCall(
        sid=_sid(rng), account_sid=account_sid, direction="outbound-dial", from_=parent.to, to=_somebody(rng),
        status=status, created=begins, dialled=begins, answered=answered, ended=ended, price=price,
        priced=_priced(rng, ended, price), parent_call_sid=parent.sid,
    )  # fmt: skip


def _trunking(rng: Random, account_sid: str, created: int, status: str, direction: str) -> SimulatedCall:
    answered = created + rng.randrange(2, 20) if status == "completed" else None
    ended = answered + _talk(rng) if answered else created + rng.randrange(1, 40)
    price = _price(rng, "inbound", ended - answered) if answered else None
    return SimulatedCall(
        sid=_sid(rng), account_sid=account_sid, direction=direction, from_=rng.choice(OTHER_NUMBERS),
        to=rng.choice(OTHER_NUMBERS), status=status, created=created, dialled=created, answered=answered, ended=ended,
        price=price, priced=_priced(rng, ended, price), trunk_sid=TRUNK_SID,
    )  # fmt: skip


def _sid(rng: Random) -> str:
    return f"CA{rng.getrandbits(128):032x}"


def _somebody(rng: Random) -> str:
    draw = rng.random()
    return rng.choice(OTHER_NUMBERS if draw > 0.08 else CLIENTS if draw > 0.04 else SIP_URIS)


def _talk(rng: Random) -> int:
    """Return a talk time in seconds: two minutes on average, and more than an hour for one call in a thousand."""
    return rng.randrange(3600, 9000) if rng.random() < 0.001 else 1 + min(3599, int(rng.expovariate(1 / 120)))


def _price(rng: Random, direction: str, talked: int) -> str:
    if rng.random() < 0.02:  # legs to applications have the price 0
        return "0.00000"
    cost = _MINUTE_PRICE[direction] * -(-talked // 60)
    return f"-{cost // 100_000}.{cost % 100_000:05d}"


def _priced(rng: Random, ended: int, price: str | None) -> int | None:
    """Return when a price appears. Most take under a minute, some a quarter of an hour, one in 100 up to 20 hours."""
    if price is None:
        return None
    draw = rng.random()
    return ended + rng.randrange(*((5, 46) if draw > 0.1 else (46, 900) if draw > 0.01 else (900, 72_000)))

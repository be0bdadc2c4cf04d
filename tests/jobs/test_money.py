"""What a day's calls cost: Twilio's usage records beside our rows, and the days on which they differ."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from reconciler.database.account_days import HeldPrice
from reconciler.errors import ExitCode
from reconciler.metrics import REGISTRY
from reconciler.simulator import Fault
from reconciler.simulator.messages import Answer, Request
from reconciler.sync.day_proof import price_drifts
from tests.harness.names import ACCOUNT, NOW
from tests.harness.world import World, day

SETTLED = "2026-06-08"  # it ended 36 hours before NOW
DAYS = ("2026-06-07", SETTLED, "2026-06-09")


def usage(world: World, **fields: Any) -> None:
    """Have Twilio say so of each day."""
    record = {"count": "1", "price": "0.01400", "price_unit": "usd", **fields}
    answer = Answer(payload={"usage_records": [{"start_date": name, **record} for name in DAYS]})
    world.twilio.faults.clear()
    world.twilio.faults.when(_is_usage, Fault("usage", instead=answer))


def _is_usage(request: Request) -> bool:
    return "Usage" in request.path


def prices(world: World, name: str = SETTLED) -> tuple[Any, ...]:
    """Return the prices that account_days holds of a day."""
    return next(found[1:] for found in all_prices(world) if found[0] == name)


def all_prices(world: World) -> list[tuple[Any, ...]]:
    """Return the prices that account_days holds of each day; the last value says whether they drift."""
    return world.conn.execute(
        "SELECT day::text, billed_price, held_price, price_unit, unsettled, differences ? 'price_drift'"
        " FROM account_days ORDER BY day"
    ).fetchall()


@pytest.fixture
def priced(world: World) -> World:
    """A call for 0.014 dollars, a trunk call, one that nobody answered and one that was never dialled."""
    world.account.call(day(2))
    world.account.call(day(2), direction="trunking-terminating", price="-9.00000")
    world.account.call(day(2), status="busy")
    world.account.call(day(2), status="canceled", never_dialled=True)
    return world


def test_a_day_costs_what_twilio_billed(world: World) -> None:
    """900 calls of two days cost the same to the last decimal, in the account's currency, without trunk calls."""
    world.account.generate(900, day(3), day(1))  # every price has come
    assert world.cold().exit_code is ExitCode.DONE
    found = all_prices(world)
    assert [(billed - held, *rest) for _, billed, held, *rest in found] == [(0, "USD", 0, False)] * 3
    assert [billed > 1 for _, billed, *_ in found] == [True, True, False]
    assert world.said("day.price_drift") == []


def test_another_sum_is_drift(priced: World) -> None:
    """Logged, counted, and no longer so when the sums agree; the day is complete all the same."""
    usage(priced, price="0.02400")
    counts = priced.cold()
    assert (counts.exit_code, counts.price_drifts, counts.days_incomplete) == (ExitCode.UNRECONCILED, 2, 0)
    assert prices(priced) == (Decimal("0.024"), Decimal("0.014"), "USD", 0, True)
    said = {"day": SETTLED, "billed_price": "0.02400", "held_price": "0.01400", "price_unit": "USD"}
    assert said in priced.said("day.price_drift")
    assert _metric() == 2
    priced.twilio.faults.clear()
    counts = priced.cold()
    assert (counts.exit_code, counts.price_drifts) == (ExitCode.DONE, 0)
    assert prices(priced) == (Decimal("0.014"), Decimal("0.014"), "USD", 0, False)
    assert _metric() == 0


def _metric() -> float | None:
    return REGISTRY.get_sample_value("reconciler_price_drifts", {"account": ACCOUNT})


def test_yesterdays_sum_still_moves(priced: World) -> None:
    """cold judges a day 24 hours after its end. It keeps the sums of yesterday without a judgement."""
    priced.account.call(day(1))
    usage(priced)
    assert priced.cold().exit_code is ExitCode.UNRECONCILED  # of the 7th, without any call
    assert prices(priced, "2026-06-09") == (Decimal("0.014"), Decimal("0.014"), "USD", 0, False)
    usage(priced, price="5")
    priced.cold()
    assert prices(priced, "2026-06-09") == (Decimal(5), Decimal("0.014"), "USD", 0, False)


def test_a_day_with_an_open_price_is_not_judged(priced: World) -> None:
    """A call that began on that day and ended hours ago: Twilio's sum may hold it already."""
    priced.account.call(day(1.2), talks_for=130_000, priced_after=None)
    usage(priced, price="0.02800")
    priced.cold()
    assert prices(priced) == (Decimal("0.028"), Decimal("0.014"), "USD", 1, False)


def test_a_price_that_is_billed_and_never_shown_is_drift(priced: World) -> None:
    """The row froze without it, past its deadline."""
    priced.account.call(day(2), priced_after=None)
    usage(priced, price="0.02800")
    priced.cold()
    assert prices(priced) == (Decimal("0.028"), Decimal("0.014"), "USD", 0, True)


def test_a_call_that_went_before_its_price_came_is_not_judged(priced: World) -> None:
    """Twilio knows a price that we cannot."""
    late = priced.account.call(day(2), priced_after=400_000)
    priced.know([late.sid])
    priced.conn.execute("UPDATE messages SET gone_at = %s WHERE twilio_sid = %s", (NOW, late.sid))
    priced.account.delete(late.sid, NOW - timedelta(hours=1))
    usage(priced, price="0.02800")
    priced.cold()
    assert prices(priced) == (Decimal("0.028"), Decimal("0.014"), "USD", 1, False)


def test_a_call_that_twilio_deleted_was_billed_all_the_same(priced: World) -> None:
    """Its row counts."""
    deleted = priced.account.call(day(2))
    priced.cold()
    priced.account.delete(deleted.sid, NOW)
    priced.clock.advance(timedelta(days=1))
    priced.cold()
    assert prices(priced)[:2] == (Decimal("0.028"), Decimal("0.028"))


def test_prices_of_another_currency_do_not_count(priced: World) -> None:
    """An account has one currency: the sums are of that."""
    usage(priced, price_unit="eur")
    priced.cold()
    assert prices(priced) == (Decimal("0.014"), Decimal(0), "EUR", 0, True)


@pytest.mark.parametrize("missing", [{"price": None}, {"price_unit": None}])
def test_without_a_price_of_twilios_nothing_is_compared(priced: World, missing: dict[str, None]) -> None:
    """This is so where the credentials may not read usage records."""
    usage(priced, **missing)
    assert priced.cold().exit_code is ExitCode.DONE
    assert prices(priced) == (None, None, None, None, False)


@pytest.mark.parametrize(
    ("billed", "held", "priced", "drifts"),
    [
        ("1.23456", "1.23456", 1, False),
        ("1.23456", "1.23457", 1, False),  # half of a price's last decimal, and half of the sum's
        ("1.23456", "1.23458", 1, True),
        ("1.23456", "1.23458", 3, False),
        ("1.23", "1.235", 0, False),
        ("1.23", "1.2351", 0, True),
        ("100", "100.005", 0, False),  # a sum without decimals is still a sum of cents
        ("100", "100.5", 0, True),
        ("0", "0.0085", 1, True),
    ],
)
def test_rounding_is_no_drift(billed: str, held: str, priced: int, drifts: bool) -> None:
    """Each price has five decimals, and the sum those that Twilio writes."""
    assert price_drifts(Decimal(billed), HeldPrice(Decimal(held), priced, 0)) is drifts

"""The SQL against the plain model, over arbitrary orders, losses and repetitions of observations."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.database.transaction import Rules
from reconciler.model import Observation, Status, Via
from tests.harness.names import ACCOUNT
from tests.harness.rows import ORIGIN, T0, make_observation

from .model import FIELDS, Call

# Few values and whole seconds, so that ties, repetitions and conflicts are common.
seconds = st.integers(0, 4).map(lambda n: T0 + timedelta(seconds=n))
maybe_seconds = st.none() | seconds
# A NULL, an object of one field and one of two, whose values differ.
other_fields = st.none() | st.dictionaries(
    st.sampled_from(["caller_name", "queue_time"]), st.sampled_from(["0", {"a": ["0"]}]), min_size=1
).map(json.dumps)


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """Anything one source may say about one of three calls."""
    status = draw(st.sampled_from(Status))
    via = draw(st.sampled_from(Via))
    rest_only: dict[str, Any] = dict.fromkeys(("price", "start_time", "end_time", "date_created"))
    if via is Via.REST:
        rest_only = {
            "price": draw(st.none() | st.sampled_from([Decimal("-0.0085"), Decimal("-0.00850"), Decimal(0)])),
            "start_time": draw(maybe_seconds),
            "end_time": draw(maybe_seconds),
            "date_created": draw(st.none() | st.just(T0)),
        }
    return make_observation(
        status,
        call=draw(st.integers(0, 2)),
        via=via,
        account_sid=draw(st.none() | st.just(ACCOUNT)),
        parent_call_sid=draw(st.none() | st.just("CA" + 32 * "f")),
        from_number=draw(st.none() | st.sampled_from(["client:a", "sip:b@example.com"])),
        to_number=draw(st.none() | st.just("+15005550101")),
        duration=draw(st.none() | st.integers(0, 1)),
        price_unit=draw(st.none() | st.just("USD")),
        answered_by=draw(st.none() | st.sampled_from(["human", "fax"])),
        other_fields=draw(other_fields),
        status_at=draw(seconds),
        observed_at=draw(seconds),
        **rest_only,
    )


pages = st.lists(st.lists(observations(), min_size=1, max_size=6), min_size=1, max_size=6)
_calls = count(1)


@pytest.mark.parametrize("freeze_after", [timedelta(seconds=3), timedelta(hours=24)], ids=["soon", "late"])
@settings(
    max_examples=150, derandomize=False, phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(pages=pages, data=st.data())
def test_any_history_ends_as_the_model_says(database_url, conn, freeze_after, pages, data):
    """Pages of any observations in any order, merged and replayed: rows and events are the model's."""
    # Every example has calls of its own, so that one database serves all of them.
    names: dict[str, str] = defaultdict(lambda: f"CA{next(_calls):032x}")
    history = [[said._replace(call_sid=names[said.call_sid]) for said in page] for page in pages]
    replayed = data.draw(st.lists(st.sampled_from(history), max_size=2), label="replayed")
    now = T0 + timedelta(seconds=5)
    model: dict[str, Call] = defaultdict(Call)
    with Store(database_url, rules=Rules(freeze_after=freeze_after)) as store:
        for page in history + replayed:
            merged = store.commit_page(page, origin=ORIGIN, now=now)
            for said in page:
                model[said.call_sid].merge(said, now=now, freeze_after=freeze_after)
            assert merged.seen == len({said.call_sid for said in page})
    for sid, call in model.items():
        assert call.row is not None
        expected = {name: call.row[name] for name in (*FIELDS, "last_event_time", "finalized_at")}
        expected["other_fields"] = call.row["other_fields"] or None
        assert (_row(conn, sid), _events(conn, sid)) == (
            {**expected, "status": call.row["status"].value, "frozen": call.row["frozen"], "clock": call.row["clock"]},
            sorted(call.events.values()),
        )


def _row(conn: db.Connection, sid: str) -> dict[str, Any]:
    with conn.cursor() as cur:
        cur.execute("SELECT * FROM messages WHERE twilio_sid = %s", (sid,))
        assert cur.description is not None
        found = dict(zip([column.name for column in cur.description], cur.fetchone() or (), strict=True))
    for name in ("start_time", "end_time"):
        found[name] = found[name] and found[name].replace(tzinfo=UTC)
    for name in ("from_number", "to_number"):
        found[name] = found[name] or None
    assert found["is_final"] == (found["finalized_at"] is not None)
    return {
        **{name: found[name] for name in (*FIELDS, "last_event_time", "finalized_at", "status", "other_fields")},
        "frozen": found["sync_state"] == "frozen",
        "clock": (found["observed_at"], found["observed_via"] == "rest"),
    }


def _events(conn: db.Connection, sid: str) -> list[tuple[Any, ...]]:
    return sorted(
        conn.execute(
            "SELECT event_type, event_status, event_time FROM call_events"
            " WHERE call_sid = %s AND event_type <> 'call.frozen_drift'",
            (sid,),
        ).fetchall()
    )

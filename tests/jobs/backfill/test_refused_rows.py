"""A row that PostgreSQL refuses: the Viewer's own constraints and triggers stop one call, and nothing beside it."""

from __future__ import annotations

import json

import pytest

from reconciler.database.store import Store
from reconciler.errors import ExitCode
from reconciler.twilio.records import bury_observation, read_record
from tests.harness.contexts import run_replay
from tests.harness.equality import records_of
from tests.harness.names import NOW
from tests.harness.recorded import REAL_CALLS
from tests.harness.rows import SAID, make_record

REFUSALS = {
    "constraint": "ALTER TABLE messages ADD CONSTRAINT viewers CHECK (twilio_sid <> '{sid}')",
    "trigger": """
        CREATE FUNCTION viewers() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.twilio_sid = '{sid}' THEN RAISE 'not this one: +15005550100'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER viewers BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION viewers()""",
    "index": "CREATE UNIQUE INDEX viewers ON messages ((CASE WHEN twilio_sid IN ('{sid}', '{other}') THEN 1 END))",
}


@pytest.mark.parametrize("how", REFUSALS)
def test_one_refused_row_stops_nothing(world, conn, how):
    """It is a dead letter with its reason, met again it is the same one, and replayed when the Viewer allows it."""
    sids = sorted(record["sid"] for record in records_of(world.account, NOW))
    conn.execute(REFUSALS[how].format(sid=sids[500], other=sids[501]).encode())
    for _ in range(2):
        summary = world.backfill(days=8)
        assert summary.exit_code is ExitCode.UNRECONCILED
        assert summary.dead_letters == 1
        assert summary.failed == []
        assert len({line.split()[0] for line in world.differences()}) == 1
    ((call_sid, reason),) = conn.execute("SELECT call_sid, error FROM twilio_webhook_inbox").fetchall()
    assert call_sid in (sids[500], sids[501])
    assert "viewers" in reason or "not this one" in reason
    assert "+15005550100" not in reason
    conn.execute(
        {
            "constraint": b"ALTER TABLE messages DROP CONSTRAINT viewers",
            "trigger": b"DROP TRIGGER viewers ON messages",
            "index": b"DROP INDEX viewers",
        }[how]
    )
    with Store(world.database_url) as store:
        assert run_replay(store, clock=world.clock.now).dead_letters == 0
    assert world.differences() == []


@pytest.mark.parametrize("record", [*REAL_CALLS, make_record(status="queued", price=None)], ids=lambda r: r["sid"])
def test_a_buried_observation_is_read_again_as_it_was(record):
    """Nothing that we keep of a call is lost on the way through a dead letter."""
    observation = read_record(record, observed_at=SAID)
    letter = bury_observation(observation, "why")
    assert read_record(json.loads(letter.record), observed_at=SAID) == observation
    assert (letter.call_sid, letter.reason) == (observation.call_sid, "why")

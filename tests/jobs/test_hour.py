"""A quarter of an hour of calls, a third of their webhooks lost, and a day after it."""

from __future__ import annotations

from reconciler.database import connection as db
from tests.programs.hour import live


def test_whatever_the_webhooks_did_all_is_as_twilio_says(conn: db.Connection, database_url: str) -> None:
    """Equal, each fact once, each final call frozen, and no lost ending waits longer than a hot interval."""
    told = live(conn, database_url, calls=300, minutes=15, seed=3)
    assert told.differences == []
    assert (told.doubled, told.unfrozen) == (0, 0)
    assert told.webhooks_lost > 0.25
    assert len(told.repairs) > 50
    assert max(told.repairs) <= 60

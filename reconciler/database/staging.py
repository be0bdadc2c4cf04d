"""Staging: the observations of a page become rows of a temporary table, from which `merge_staged` reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from reconciler.database import connection as db
from reconciler.model import Observation

# The types of the columns. COPY in binary form needs them, and costs a quarter of the text form.
TYPES: Final = (
    "text", "text", "text", "text", "text", "text", "text", "int8", "numeric", "text", "timestamptz", "timestamptz",
    "text", "timestamptz", "timestamptz", "timestamptz", "text", "text",
)  # fmt: skip

_queries = db.load_queries("staging")


def create(conn: db.Connection) -> None:
    """Create the staging table of a connection, which has to exist before the first merge."""
    conn.execute(_queries["create_staging"])


def stage(conn: db.Connection, observations: Sequence[Observation], *, is_first: bool = True) -> None:
    """Fill the staging table with `observations`, and empty it before that if they are not the transaction's first."""
    if not is_first:
        conn.execute(_queries["empty_staging"])
    with conn.cursor() as cur, cur.copy(_queries["copy_into_staging"]) as copy:
        copy.set_types(TYPES)
        for observation in observations:
            copy.write_row(observation)


def neighbourhood(observations: Sequence[Observation]) -> dict[str, Any]:
    """Return the parameters of merge_staged by which it reads most calls of a page together: account, time, number."""
    times = [time for observation in observations if (time := observation.window_time)]
    return {
        "account_sid": observations[0].account_sid,
        "began_since": min(times, default=None),
        "began_until": max(times, default=None),
        "staged": len(observations),
    }


def one_per_call(observations: Sequence[Observation]) -> Iterator[list[Observation]]:
    """Divide `observations` into rounds with each call at most once; the order within each call stays.

    A listing may contain a call twice, and an inbox holds several webhooks of one call. One statement must not touch a
    row twice. If no call repeats, there is one round.
    """
    rest: Sequence[Observation] = observations
    while rest:
        this_round: dict[str, Observation] = {}
        later: list[Observation] = []
        for observation in rest:
            if observation.call_sid in this_round:
                later.append(observation)
            else:
                this_round[observation.call_sid] = observation
        yield list(this_round.values())
        rest = later

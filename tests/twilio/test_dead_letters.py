"""Records that could not be read must still fit into the database."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import psycopg
import pytest

from reconciler.simulator.breakage import BREAKAGES, Breakage
from reconciler.twilio.records import dead_letter_of, decode_page
from tests.harness.present import present

SAID = datetime(2026, 6, 10, tzinfo=UTC)


@pytest.fixture(scope="module")
def keep(server_url):
    """Stores a dead letter's text as jsonb in PostgreSQL, as the inbox does, and reads it back."""
    with psycopg.connect(server_url) as conn:

        def keep_one(text: str) -> str:
            row = conn.execute("SELECT jsonb_build_object('record', %s::text) ->> 'record'", (text,)).fetchone()
            return present(row)[0]

        yield keep_one


@pytest.mark.parametrize("kind", sorted(BREAKAGES))
def test_a_broken_record_comes_back_from_jsonb_whole(keep, account, kind):
    """NUL, lone surrogates and all: the text that went in, which is the record."""
    [call] = account.calls_at(datetime(2026, 6, 10, 12, tzinfo=UTC), limit=1)
    body = Breakage(kind).encode({"calls": [call.record(SAID)]})
    record = json.loads(body, parse_int=str, parse_float=str)["calls"][0]
    page = decode_page(body, observed_at=SAID)
    letters = page.dead_letters or [dead_letter_of(record, reason="none")]
    assert [record] == [json.loads(keep(letter.record)) for letter in letters]

"""Dead letters for a person to read: the list, and one of them in full; read only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from reconciler.database import connection as db
from reconciler.errors import BadObservation
from reconciler.exact_json import parse_json
from reconciler.masking import mask, mask_field

_queries = db.load_queries("inbox")


class Letter(NamedTuple):
    """One dead letter in a list."""

    id: int
    received_at: str | None
    source: str
    event_type: str
    call_sid: str | None
    reason: str | None


def list_newest(conn: db.Connection, *, limit: int) -> tuple[list[Letter], int]:
    """Return the newest dead letters, and the number of all dead letters."""
    with db.translated():
        rows = conn.execute(_queries["list_dead_letters"], {"limit": limit}).fetchall()
        total = conn.execute(_queries["count_dead_letters"]).fetchone()
    return [Letter(*row) for row in rows], total[0] if total else 0


def find(conn: db.Connection, id_: int) -> dict[str, Any] | None:
    """Return one row of the inbox by the names of its columns, with `payload` as JSON text; None if there is none."""
    with db.translated(), conn.cursor() as cur:
        row = cur.execute(_queries["find"], {"id": id_}).fetchone()
        names = [column.name for column in cur.description or ()]
    return dict(zip(names, row, strict=True)) if row else None


def not_dead(conn: db.Connection, ids: Sequence[int]) -> list[int]:
    """Return those of `ids` that are no dead letters."""
    with db.translated():
        return [row[0] for row in conn.execute(_queries["not_dead"], {"ids": list(ids)})]


def indented(payload: str, *, masked: bool) -> str:
    """Return a payload as indented JSON with numbers as text; `masked` hides phone numbers and addresses in it."""
    try:
        value = parse_json(payload)
        return json.dumps(without_numbers(value) if masked else value, indent=2, ensure_ascii=False)
    except (BadObservation, RecursionError):
        return mask(payload) if masked else payload


def without_numbers(value: Any) -> Any:
    """Return a JSON value in which every phone number, address and name of a person is masked."""
    match value:
        case str():
            return mask(value)
        case dict():
            return {
                mask(name): mask_field(name, item) if isinstance(item, str) else without_numbers(item)
                for name, item in value.items()
            }
        case list():
            return [without_numbers(item) for item in value]
    return value

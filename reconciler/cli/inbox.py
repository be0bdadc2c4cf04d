"""`reconcile inbox list`, `show` and `replay`: the dead letters."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Final

from reconciler.cli.wiring import (
    connect,
    database_url,
    make_store,
    prepare_schema,
    read_settings,
    require_schema,
    stop_on_signal,
)
from reconciler.database import connection as db
from reconciler.errors import ExitCode, UsageError
from reconciler.jobs import inbox
from reconciler.masking import mask
from reconciler.status import dead_letters as letters
from reconciler.terminal.printing import harmless, print_json, print_rows
from reconciler.wording import short_sids

_LISTED: Final = 50  # dead letters


def list_letters(args: argparse.Namespace) -> int:
    """Print the newest dead letters with their reasons."""
    settings = read_settings()
    with connect(settings, purpose="inbox") as conn:
        require_schema(conn)
        newest, total = letters.list_newest(conn, limit=_LISTED)
    rows = [letter._asdict() for letter in newest]
    if settings.log_pii == "masked":
        rows = [_masked(row) for row in rows]
    if args.json:
        print_json({"dead_letters": rows, "total": total})
    elif rows:
        print_rows([_row(row) for row in rows])
        if total > len(rows):
            print(f"These are the newest {len(rows)} of {total:,}.")
        print(f"→ see one: `reconcile inbox show {rows[0]['id']}`")
        print("  after an upgrade: `reconcile inbox replay --all`")
    else:
        print("There are no dead letters.")
    return int(ExitCode.DONE)


def _row(letter: dict[str, Any]) -> dict[str, str]:
    """Return the columns that fit a terminal: the time to the second, in UTC, and the call's SID shortened."""
    received = (letter["received_at"] or "")[:19].replace("T", " ")
    return {
        "id": str(letter["id"]), "received_at": received, "event": harmless(letter["event_type"]),
        "call": harmless(short_sids(letter["call_sid"] or "")), "reason": harmless(letter["reason"]),
    }  # fmt: skip


def show(args: argparse.Namespace) -> int:
    """Print one row of the inbox, whatever its status."""
    settings = read_settings()
    with connect(settings, purpose="inbox") as conn:
        require_schema(conn)
        row = letters.find(conn, args.id)
    if row is None:
        raise UsageError(f"the inbox has no row {args.id}", hint="reconcile inbox list")
    is_masked = settings.log_pii == "masked"
    payload = letters.indented(row.pop("payload"), masked=is_masked)
    if is_masked:
        row = _masked(row)
    if args.json:
        # The payload is inserted as text: it may be nested deeper than `json` can go.
        sys.stdout.write(f'{json.dumps(row, indent=2)[:-2]},\n  "payload": {payload}\n}}\n')
    else:
        for name, value in row.items():
            print(f"{name}: {harmless(value)}")
        print("payload:")
        for line in payload.splitlines():
            print(harmless(line, markup=False))
    return int(ExitCode.DONE)


def replay(args: argparse.Namespace) -> int:
    """Read dead letters again with the current code."""
    if bool(args.ids) == args.all:
        raise UsageError("say which dead letters to replay, or --all", hint="reconcile inbox list")
    settings = read_settings()
    url = database_url(settings)
    prepare_schema(url, migrate=False)
    if args.ids:
        with db.connect(url, purpose="inbox") as conn:
            if unknown := letters.not_dead(conn, args.ids):
                raise UsageError(f"no dead letters: {', '.join(map(str, unknown))}", hint="reconcile inbox list")
    with stop_on_signal() as stop, make_store(url, settings) as store:
        context = inbox.ReplayContext(
            job=inbox.REPLAY, settings=settings, store=store, stop=stop, ids=sorted(set(args.ids)) or None
        )
        worked = inbox.replay(context)
    if args.json:
        counts = {"completed": worked.completed, "dead_letters": worked.dead_letters, "put_off": worked.put_off}
        print_json({"replayed": worked.rows, **counts})
    else:
        put_off = f" {worked.put_off} are locked by another session: the inbox job tries them again."
        print(
            f"{worked.completed} completed, {worked.dead_letters} could still not be read."
            f"{put_off if worked.put_off else ''}"
        )
    return int(worked.exit_code)


def _masked(row: dict[str, Any]) -> dict[str, Any]:
    return {name: mask(value) if isinstance(value, str) else value for name, value in row.items()}

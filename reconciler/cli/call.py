"""`reconcile call CA…`: one call as we hold it and as Twilio has it; --repair makes the row equal."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reconciler.cli.wiring import (
    database_url,
    make_client,
    make_store,
    read_settings,
    require_account,
    require_schema,
    share_budget,
    stop_on_signal,
)
from reconciler.database import connection as db
from reconciler.errors import ConfigError, ExitCode, UsageError
from reconciler.jobs.repair import REPAIR, RepairContext, read_call, repair
from reconciler.masking import mask_field
from reconciler.model import CALL_SID, DeadLetter, Page
from reconciler.settings import Settings
from reconciler.status import call as facts
from reconciler.status.dead_letters import without_numbers
from reconciler.sync.context import Account
from reconciler.terminal import console
from reconciler.terminal.printing import harmless, print_json
from reconciler.twilio.accounts import named_accounts
from reconciler.wording import rough

_NO_SID: Final = "a call's SID is CA and 32 hexadecimal digits"

# The Viewer also has rows under other SIDs: its own (`local_...`), a message's (`SM...`), another provider's
# (`vapi:...`). A text that begins like the SID of a call or an account is a typing error instead.
_VIEWERS_OWN: Final = re.compile(r"(?!CA|AC)[!-~]{1,100}")


def show(args: argparse.Namespace) -> int:
    """Print row, record, differences and events; with --repair or --thaw merge Twilio's record first."""
    call_sid: str = args.call_sid
    is_twilios = CALL_SID.fullmatch(call_sid) is not None
    if not is_twilios and not _VIEWERS_OWN.fullmatch(call_sid):
        raise UsageError(_NO_SID)
    if args.account is not None:
        require_account(args.account)
    settings = read_settings()
    url = database_url(settings)
    with closing(db.connect(url, purpose="call")) as conn:
        require_schema(conn)
        call = facts.call(conn, call_sid)
        if not is_twilios:
            if call.row is None:
                raise UsageError(f"{_NO_SID}, and no row has this one")
            seen = facts.Seen(
                call, _account(call), None, "Twilio cannot be asked: this SID is not that of a call of its own."
            )
        elif args.repair or (args.thaw and call.is_frozen):
            seen = _repair(args, call, settings, url)
            seen = replace(seen, call=facts.call(conn, call_sid))
        else:
            seen = _look(args, call, settings)
        if seen.page is not None:
            seen = replace(seen, untold=facts.untold(conn, seen.page.recordings))
    masked = settings.log_pii == "masked"
    is_idle = args.thaw and not args.repair and not call.is_frozen and call.row is not None
    if is_idle:
        seen = replace(seen, note="It is not frozen: there is nothing to thaw.")
    if args.json:
        print_json(seen.as_dict(masked=masked))
    else:
        _print(seen, masked=masked, stuck_after=settings.stuck_after)
    return int(ExitCode.DONE if is_idle else seen.exit_code)


def _look(args: argparse.Namespace, call: facts.Call, settings: Settings) -> facts.Seen:
    try:
        credentials = settings.credentials()
    except ConfigError as exc:
        reason = "; ".join(str(exc).splitlines())
        return facts.Seen(call, _account(call), None, f"Twilio was not asked: {reason}.")
    account = args.account or _account(call) or credentials.account_sid
    with stop_on_signal() as stop, make_client(settings) as client:
        page = read_call(client.session(stop), account, call.call_sid)
    return facts.Seen(call, account, page, _note(page, account))


def _repair(args: argparse.Namespace, call: facts.Call, settings: Settings, url: str) -> facts.Seen:
    main = settings.credentials().account_sid
    account = args.account or _account(call) or main
    is_only = named_accounts(settings, main).is_only_account
    with (
        stop_on_signal() as stop,
        make_client(settings) as client,
        make_store(url, settings) as store,
    ):
        share_budget(client, url)
        context = RepairContext(
            job=REPAIR,
            settings=settings,
            store=store,
            session=client.session(stop),
            account=Account(account, is_only=is_only),
            stop=stop,
            call_sid=call.call_sid,
            # A frozen row is never marked as gone: no job asks about it any more.
            held=None if call.is_frozen else call.known(now=datetime.now(UTC), is_only_account=is_only),
            thaws=args.thaw,
        )
        counts = repair(context)
    assert counts.page is not None
    note = _note(counts.page, account)
    if note is not None:
        outcome = "It is marked as gone." if counts.gone else "Nothing was changed."
        return facts.Seen(call, account, counts.page, f"{note} {outcome}")
    if counts.is_thawed:
        note = "It was thawed, and Twilio's record merged."
    elif counts.change is not None:
        note = "Twilio's record was merged."
    return facts.Seen(call, account, counts.page, note, thawed=counts.is_thawed, change=counts.change)


def _account(call: facts.Call) -> str | None:
    return None if call.row is None else call.row["account_sid"]


def _note(page: Page, account: str) -> str | None:
    if page.dead_letters:
        return f"Twilio's record cannot be read: {_reason(page.dead_letters)}."
    return None if page.observations else f"Twilio has no such call in {account}."


def _reason(letters: Sequence[DeadLetter]) -> str:
    return "; ".join(letter.reason for letter in letters)


def _print(seen: facts.Seen, *, masked: bool, stuck_after: timedelta = timedelta.max) -> None:
    row, record = seen.call.row, seen.page and seen.page.observations
    if row is not None:
        state = "gone at Twilio" if row["gone_at"] else "frozen" if seen.call.is_frozen else row["sync_state"]
        head = f"{state}, {row['direction'] or 'no direction'}"
    else:
        head = "only Twilio knows it" if record else "not found"
    console.out.print(Text.assemble((seen.call.call_sid, "bold"), f"  {_plain(head)}"))
    if seen.note:
        console.out.print(Text(_plain(seen.note), "yellow"))
    if seen.changes:
        console.out.print(_changes(seen, masked=masked))
    if row is not None or record:
        console.out.print()
        console.out.print(_fields(seen, masked=masked))
    if seen.recordings:
        console.out.print(Text("\nRecordings", "bold"))
        console.out.print(_recordings(seen))
    if hint := _hint(seen, stuck_after):
        console.out.print(Text(f"\n{hint}"))
    if seen.call.events:
        console.out.print(Text("\nEvents", "bold"))
        if seen.call.has_older_events:
            console.out.print(Text(f"  older ones than these {len(seen.call.events)} are not shown", "dim"))
        _show_events(seen.call.events, masked=masked)


def _hint(seen: facts.Seen, stuck_after: timedelta) -> str | None:
    """Return what to do next; None if there is nothing."""
    row, call_sid = seen.call.row, seen.call.call_sid
    if row is None:
        if seen.page and seen.page.dead_letters:
            return None
        if seen.differs:
            return f"We have no row: `reconcile call {call_sid} --repair` brings it back."
        return f"We have no such call{'' if seen.page else ', and Twilio was not asked'}."
    if not seen.fields:
        return None
    if not seen.differs:
        open_for = seen.call.open_for(datetime.now(UTC))
        is_stuck = open_for is not None and open_for > stuck_after
        return _how_to_end(seen, rough(open_for)) if open_for and is_stuck else "Row and record agree."
    if seen.call.is_frozen and not seen.lacks_only_others:
        return f"It is frozen; `reconcile call {call_sid} --thaw` lets Twilio's record win."
    if row["is_final"] and not seen.is_over_at_twilio:
        return "Our row is ahead of Twilio's record, and a call never goes back: the record follows within minutes."
    return f"The next run of hot, warm or cold puts it right; `reconcile call {call_sid} --repair` does so now."


def _how_to_end(seen: facts.Seen, age: str) -> str:
    """Return what to do about a call that both sides hold for open, but that is probably over.

    https://www.twilio.com/docs/voice/api/call-resource#update-a-call-resource: `completed` ends a call in any status,
    `canceled` a call that has not been answered.
    """
    row, call_sid = seen.call.row, seen.call.call_sid
    assert row is not None
    return (
        f"Both say {row['status']}, for {age}. If the call is over, end it at Twilio:\n"
        f"  twilio api:core:calls:update --sid {call_sid} --status completed\n"
        f"Then `reconcile call {call_sid} --repair`. If Twilio refuses to end it, only Twilio's support can."
    )


def _changes(seen: facts.Seen, *, masked: bool) -> Table:
    """Return a table of the written fields, before and after."""
    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False, header_style="dim")
    for name in ("", "changed", "before", "after"):
        table.add_column(name, overflow="fold")
    for change in seen.changes:
        before, after = (_shown(change.field, value, masked=masked) for value in (change.before, change.after))
        table.add_row("", Text(change.field, "dim"), before, after)
    return table


def _recordings(seen: facts.Seen) -> Table:
    """Return a table of Twilio's recordings of the call."""
    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False, header_style="dim")
    for name in ("", "recording", "state", "created", "seconds", "in call_events"):
        table.add_column(name, overflow="fold")
    for each in seen.recordings:
        told = Text("yes" if each.is_told else "no", "" if each.is_told else "red")
        created = "" if each.date_created is None else _time(each.date_created)
        table.add_row("", Text(each.recording_sid), each.state, created, each.duration or "", told)
    return table


def _fields(seen: facts.Seen, *, masked: bool) -> Table:
    mark = "!" if console.is_plain(console.out) else "≠"
    record = seen.page.observations[0] if seen.page and seen.page.observations else None
    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False, header_style="dim")
    for name in ("", "field", *(["we hold"] if seen.call.row else []), *(["Twilio says"] if record else [])):
        table.add_column(name, overflow="fold")
    for field in facts.compare(seen.call.row, record):
        cells = [_shown(field.field, field.ours, masked=masked)] if seen.call.row else []
        if record:
            is_same = not field.differs and field.twilio is not None
            cells.append(Text("the same", "dim") if is_same else _shown(field.field, field.twilio, masked=masked))
        if field.differs:
            cells[0].stylize("red")
            cells[-1].stylize("green")
        is_marked = field.differs and seen.call.row is not None
        table.add_row(Text(mark if is_marked else "", "bold red"), Text(field.field, "dim"), *cells)
    return table


def _show_events(events: Sequence[facts.Event], *, masked: bool) -> None:
    """Print a line for each event, and below it its payload, wrapped between words."""
    for event in events:
        # The payload of call.created mostly repeats the fields above.
        payload = {} if event.event == "call.created" else event.payload
        payload = without_numbers(payload) if masked else payload
        if isinstance(payload, dict):
            payload = ", ".join(
                f"{name} {_time(str(value))}" for name, value in payload.items() if not isinstance(value, dict | list)
            )
        source = event.source.removeprefix("reconcile_")
        head = f"{_time(event.at)}  {event.event} {event.status or ''}  {source}"
        console.out.print(Padding(Text(_plain(head)), (0, 0, 0, 2)))
        if payload:
            console.out.print(Padding(Text(_plain(payload), "dim"), (0, 0, 0, 6)))


def _shown(name: str, value: Any, *, masked: bool) -> Text:
    if value is None or value == "":
        return Text("nothing", "dim")
    if name.endswith("_time") or name == "date_created":
        return Text(_time(str(value)))
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    return Text(_plain(mask_field(name, text) if masked else text))


def _time(iso: str) -> str:
    """Return a moment to the second, the precision of Twilio's."""
    return re.sub(r"(\.\d+)?\+00:00$", "", iso.replace("T", " "))


def _plain(value: object) -> str:
    return harmless(value, markup=False)

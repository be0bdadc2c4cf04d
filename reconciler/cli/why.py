"""`reconcile why`: the causes of lost webhooks, with the next step for each."""

from __future__ import annotations

import argparse
from collections import Counter
from datetime import UTC, datetime
from typing import Final

from rich.table import Table
from rich.text import Text

from reconciler.cli.wiring import connect, read_settings, read_since, require_account, require_schema
from reconciler.errors import ExitCode
from reconciler.status.overview import NAMED
from reconciler.status.why import Why, next_step, read_why, title
from reconciler.terminal import console
from reconciler.terminal.printing import harmless, print_headed, print_json
from reconciler.wording import counted, imported

_HOURS_SHOWN: Final = 6


def print_why(args: argparse.Namespace) -> int:
    """Print the causes of the gaps that were found in a span of time."""
    now = datetime.now(UTC)
    since = read_since(args.since, now)
    if args.account is not None:
        require_account(args.account)
    settings = read_settings()
    with connect(settings, purpose="why") as conn:
        require_schema(conn)
        why = read_why(conn, since=since, now=now, webhook_grace=settings.webhook_grace, account_sid=args.account)
    if args.json:
        print_json(why.as_dict())
    else:
        console.out.print(Text(f"Why webhooks lost something, since {since:%Y-%m-%d %H:%M} UTC", "bold"))
        show_why(why)
        _show_hours(why)
    return int(ExitCode.DONE)


def show_why(why: Why) -> None:
    """Print the causes, the most frequent first, each with the next step."""
    if why.imported:
        _say(imported(why.imported))
    if not why.gaps:
        _say("Webhooks lost nothing that was found.")
    else:
        _say(f"Webhooks lost something of {counted(why.gaps, 'call')}:")
    table = Table.grid(padding=(0, 2))
    for justify in ("right", "right", "left"):
        table.add_column(justify=justify, no_wrap=True)
    table.add_column(overflow="fold")
    for cause in why.causes[:NAMED]:
        share = f"{cause.gaps / why.gaps:.0%}" if cause.gaps * 100 >= why.gaps else "<1%"
        head = (Text(f"  {cause.gaps:,}", "bold"), Text(share, "bold"), Text(cause.cause.value, "yellow"))
        table.add_row(*head, Text(harmless(title(cause), markup=False)))
        table.add_row("", "", "", Text.assemble(("→ ", "cyan"), harmless(next_step(cause), markup=False)))
    console.out.print(table)
    if len(why.causes) > NAMED:
        rest = why.causes[NAMED:]
        _say(f"and {sum(cause.gaps for cause in rest):,} of {len(rest):,} more causes: `--json` has them all")
    for line in why.unread:
        print_headed(Text("  ! ", "yellow"), Text(f"{line}."), console.out)


def _show_hours(why: Why) -> None:
    """Print the hours with the most gaps, each with its causes."""
    hours: dict[datetime, Counter[str]] = {}
    for cause in why.causes:
        for hour, gaps in cause.hours.items():
            hours.setdefault(hour, Counter())[cause.cause.value] += gaps
    if not hours:
        return
    worst = sorted(hours, key=lambda hour: (-hours[hour].total(), hour))[:_HOURS_SHOWN]
    console.out.print(Text(f"\nThe hours that lost most, of {len(hours):,}", "bold"))
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    table.add_column("hour, UTC", no_wrap=True)
    table.add_column("calls", justify="right")
    table.add_column("causes", overflow="fold")
    for hour in sorted(worst):
        causes = ", ".join(f"{cause} {gaps:,}" for cause, gaps in hours[hour].most_common())
        table.add_row(f"{hour:%Y-%m-%d %H:00}", f"{hours[hour].total():,}", causes)
    console.out.print(table)


def _say(text: str) -> None:
    print_headed(Text("  "), Text(text), console.out)

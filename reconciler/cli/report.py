"""`reconcile report`: which days are proven complete, the losses of webhooks, and the cost of the calls."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Final

from rich.table import Table
from rich.text import Text

from reconciler.cli.wiring import connect, database_url, read_settings, read_since, require_schema
from reconciler.errors import ExitCode, UsageError
from reconciler.model import Gap
from reconciler.status import html_page as status_page
from reconciler.status import report as reports
from reconciler.status.overview import NAMED, accounts_shown
from reconciler.status.snapshot import AccountDay
from reconciler.status.why import Why, read_why, title
from reconciler.terminal import console
from reconciler.terminal.printing import print_json
from reconciler.terminal.sections import headline, new_table, plain, say
from reconciler.wording import counted, differences, imported, short_sids

# A day that is proven complete, a day that is proven incomplete, and a day without a proof.
_DAYS: Final = (("█", "green"), ("░", "red"), ("·", "dim"))
_PLAIN_DAYS: Final = (("#", "green"), ("-", "red"), (".", "dim"))
_BAR: Final = 10  # characters of the longest bar


def print_report(args: argparse.Namespace) -> int:
    """Print the proofs of each account and day, and the gaps; or write the status page."""
    if args.html is not None:
        return _write_page(args.html)
    now = datetime.now(UTC)
    since = read_since(args.since, now)
    settings = read_settings()
    with connect(settings, purpose="report") as conn:
        require_schema(conn)
        report = reports.read_report(conn, since=since, now=now, webhook_grace=settings.webhook_grace)
        why = read_why(conn, since=report.since, now=now, webhook_grace=settings.webhook_grace)
    if args.json:
        print_json(asdict(report))
    else:
        show_report(report)
        show_causes(why)
    return int(ExitCode.DONE)


def _write_page(target: str) -> int:
    settings = read_settings()
    with connect(settings, purpose="report") as conn:
        require_schema(conn)
    state = "as a file, made by reconcile report"
    page = status_page.read_page(database_url(settings), settings, state=state, verdict=None)
    if target == "-":
        sys.stdout.write(page)
        return int(ExitCode.DONE)
    try:
        Path(target).write_text(page, encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"--html {target}: cannot be written: {exc.strerror}") from None
    return int(ExitCode.DONE)


def show_report(report: reports.Report) -> None:
    """Print it for a person."""
    console.out.print(Text(f"Completeness since {report.since:%Y-%m-%d}", "bold"))
    if report.days:
        accounts, hidden = accounts_shown(report.days)
        for account, days in accounts.items():
            _calendar(account, list(days.values()), report)
        if hidden:
            say(f"And {counted(hidden, 'account')} with no more trouble than these; `--json` has them all.")
        console.out.print(_legend())
        if unproven := [day for day in report.days if not day.is_complete]:
            headline("Days that are not complete")
            unproven.sort(key=lambda day: day.day, reverse=True)
            console.out.print(_differing(unproven[:NAMED]))
            if len(unproven) > NAMED:
                say(f"and {len(unproven) - NAMED:,} more: `--json` has them all")
            day = unproven[0].day
            say(f"→ read a day again: `reconcile --since {day} --until {day + timedelta(days=1)}`;")
            say("  then `reconcile once cold`")
    else:
        say("No day is proven: run `reconcile once cold` to prove days.")
    _show_costs(reports.costs(report.days))
    headline("Gaps that webhooks left, by the day they were found on")
    if report.gaps:
        console.out.print(_gaps(report.gaps))
    else:
        say("None was found.")
    if report.share_lost is not None:
        say(
            f"Of {report.calls:,} calls since then, webhooks lost something of {report.calls_with_losses:,} "
            f"({report.share_lost:.1%}): the call, a status or how it ended."
        )
    if report.imported:
        say(imported(report.imported))


def show_causes(why: Why) -> None:
    """Print the causes of lost calls in short; `reconcile why` prints more."""
    if not why.causes:
        return
    headline("Why webhooks lost them, by call")
    table = new_table("cause", "calls", "", right=1)
    for cause in why.causes[:NAMED]:
        table.add_row(cause.cause.value, f"{cause.gaps:,}", Text(plain(title(cause))))
    if rest := why.causes[NAMED:]:
        table.add_row("", f"{sum(cause.gaps for cause in rest):,}", f"of {len(rest):,} more causes")
    console.out.print(table)
    say(f"→ what to do: `reconcile why --since {why.since:%Y-%m-%d}`")


def _show_costs(costs: Sequence[reports.Cost]) -> None:
    """Print what the calls of each account cost, and the days on which Twilio billed another sum."""
    if not costs:
        return
    headline("What the calls cost, on the days that are proven")
    table = new_table("account", "days", "Twilio billed", "our rows", "", "", right=3)
    for cost in costs[:NAMED]:
        note = f"prices missing on {counted(cost.unsettled, 'day')}" if cost.unsettled else ""
        table.add_row(
            short_sids(plain(cost.account_sid)), f"{cost.days:,}", _money(cost.billed), _money(cost.held),
            plain(cost.price_unit), note,
        )  # fmt: skip
    console.out.print(table)
    if len(costs) > NAMED:
        say(f"and {counted(len(costs) - NAMED, 'account')} more: `--json` has each day")
    drifts = sorted((day for cost in costs for day in cost.drifts), key=lambda day: day.day, reverse=True)
    if not drifts:
        return
    headline("Days on which Twilio billed another sum than all their calls cost")
    table = new_table("day", "account", "Twilio billed", "our rows", "difference", "")
    for day in drifts[:NAMED]:
        billed, held = day.billed_price or Decimal(0), day.held_price or Decimal(0)
        table.add_row(
            f"{day.day}", short_sids(plain(day.account_sid)), _money(billed), _money(held), f"{billed - held:+,f}",
            plain(day.price_unit),
        )  # fmt: skip
    console.out.print(table)
    if len(drifts) > NAMED:
        say(f"and {len(drifts) - NAMED:,} more: `--json` has them all")
    say("→ what to do: docs/runbook.md, ReconcilerPriceDrift")


def _money(amount: Decimal) -> str:
    return f"{amount:,f}"


def _calendar(account: str, days: Sequence[AccountDay], report: reports.Report) -> None:
    """Print a calendar with a line for each month and a column for each day."""
    proven = {day.day: day.is_complete for day in days}
    complete, incomplete, unknown = _PLAIN_DAYS if console.is_plain(console.out) else _DAYS
    first, today = report.since.date(), report.until.date()
    asked = [first + timedelta(days=number) for number in range((today - first).days + 1)]
    console.out.print(Text(f"\n{short_sids(plain(account))}", "bold"))
    for (year, month), of_month in groupby(asked, key=lambda day: (day.year, day.month)):
        line = Text.assemble((f"  {year}-{month:02}  ", "dim"))
        for place, day in enumerate(of_month):
            if not place:
                line.append(" " * (day.day - 1))
            line.append(*(unknown if day not in proven else complete if proven[day] else incomplete))
        console.out.print(line)
    over = sum(day < today for day in asked)
    right = sum(proven.values())
    if right == over == len(proven):
        say(f"All {counted(over, 'day')} that are over are proven complete.")
    else:
        say(f"Of {counted(over, 'day')} that are over, {right:,} proven complete, {len(proven) - right:,} incomplete.")


def _legend() -> Text:
    shapes = _PLAIN_DAYS if console.is_plain(console.out) else _DAYS
    words = ("complete", "incomplete", "not proven")
    return Text.assemble(
        "\n  ", *((f"{shape} {word}   ", style) for (shape, style), word in zip(shapes, words, strict=True))
    )


def _differing(days: Sequence[AccountDay]) -> Table:
    table = new_table("day", "account", "listed", "held", "billed", "what differed")
    for day in days:
        billed = "" if day.billed is None else f"{day.billed:,}"
        table.add_row(
            f"{day.day}",
            short_sids(plain(day.account_sid)),
            f"{day.listed:,}",
            f"{day.held:,}",
            billed,
            Text(plain(differences(day.differences))),
        )
    return table


def _gaps(gaps: Sequence[reports.GapsOfDay]) -> Table:
    kinds = [gap.value for gap in Gap]
    table = new_table("day", *kinds, "found by", "", right=len(kinds))
    most = max(sum(of_day.kinds.values()) for of_day in gaps)
    shape = (_PLAIN_DAYS if console.is_plain(console.out) else _DAYS)[0][0]
    for of_day in gaps:
        jobs = sorted(of_day.jobs, key=lambda job: -of_day.jobs[job])
        bar = shape * -(-sum(of_day.kinds.values()) * _BAR // most)
        table.add_row(
            f"{of_day.day}", *(f"{of_day.kinds[kind]:,}" for kind in kinds), ", ".join(jobs), Text(bar, "cyan")
        )
    return table

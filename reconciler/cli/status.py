"""`reconcile status` and `reconcile report`: the state of the work, the proofs and the gaps."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Final

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reconciler.cli.wiring import connect, database_url, read_moment, read_settings, require_schema
from reconciler.database.engine_schema import SILENT_AFTER, Queue, Worker
from reconciler.errors import ExitCode, Retriable, UsageError
from reconciler.masking import mask
from reconciler.model import Gap
from reconciler.settings import Settings
from reconciler.status import html_page as status_page
from reconciler.status import report as reports
from reconciler.status import snapshot as facts
from reconciler.status.overview import NAMED, accounts_shown, jobs_shown
from reconciler.status.why import Why, read_why, title
from reconciler.terminal import console
from reconciler.terminal.printing import harmless, print_json
from reconciler.times import parse_duration
from reconciler.wording import byte_size, counted, differences, rough, short_sids

# A day that is proven complete, a day that is proven incomplete, and a day without a proof.
_DAYS: Final = (("█", "green"), ("░", "red"), ("·", "dim"))
_PLAIN_DAYS: Final = (("#", "green"), ("-", "red"), (".", "dim"))
_BAR: Final = 10  # characters of the longest bar


def print_status(args: argparse.Namespace) -> int:
    """Print the state of jobs, calls, inbox and proven days; the exit code is always 0."""
    every = None if args.watch is None else _interval(args.watch)
    settings = read_settings()
    if every is not None:
        return _watch(settings, every)
    status = _snapshot(settings)
    if args.json:
        print_json(asdict(status))
    else:
        show_status(status)
    return int(ExitCode.DONE)


def _interval(text: str) -> timedelta:
    try:
        every = parse_duration(text)
    except ValueError as exc:
        raise UsageError(f"--watch {text!r} cannot be read", hint=str(exc)) from None
    if not every:
        raise UsageError("--watch must be a second or more")
    return every


def _watch(settings: Settings, every: timedelta) -> int:
    """Show the status again and again until Ctrl-C, in place on a terminal, also while the database is away."""
    try:
        while True:
            try:
                status = _snapshot(settings)
            except Retriable as exc:
                console.out.clear()
                _say(f"{datetime.now(UTC):%H:%M:%S} UTC: {exc}")
            else:
                console.out.clear()
                show_status(status)
            time.sleep(every.total_seconds())
    except KeyboardInterrupt:
        return int(ExitCode.DONE)


def _snapshot(settings: Settings) -> facts.Snapshot:
    with connect(settings, purpose="status") as conn:
        require_schema(conn)
        return facts.take_snapshot(
            conn, now=datetime.now(UTC), stuck_after=settings.stuck_after, inbox_grace=settings.inbox_grace,
            shares=settings.engine != "local",
        )  # fmt: skip


def print_report(args: argparse.Namespace) -> int:
    """Print the proofs of each account and day, and the gaps; or write the status page."""
    if args.html is not None:
        return _write_page(args.html)
    now = datetime.now(UTC)
    since = read_moment(args.since, "--since", now)
    if since >= now:
        raise UsageError(f"--since {args.since} is not before now")
    settings = read_settings()
    with connect(settings, purpose="report") as conn:
        require_schema(conn)
        report = reports.read_report(conn, since=since, now=now, webhook_grace=settings.webhook_grace)
        why = read_why(conn, since=report.since, now=now, webhook_grace=settings.webhook_grace)
    if args.json:
        print_json(asdict(report))
    else:
        show_report(report)
        _show_causes(why)
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


def show_status(status: facts.Snapshot) -> None:
    """Print it for a person."""
    leader = status.leader
    if leader is None:
        _say("No daemon leads: jobs run only when somebody starts them.")
    else:
        _say(f"{leader.name} leads{_since(leader)}.")
    for standby in () if status.fleet else status.standbys:
        _say(f"{standby.name} stands by{_since(standby)}.")
    if status.waiting is not None:
        _say(f"! {status.waiting.in_words(status.at)}; no answer since {status.waiting.since:%H:%M:%S} UTC.")
    if status.next_runs:
        due = (f"{kind} in {rough(at - status.at)}" for kind, at in status.next_runs.items())
        _say(f"Next: {', '.join(due)}.")
    if status.fleet is not None:
        _headline("Fleet")
        console.out.print(_workers(status.fleet.workers))
        console.out.print(_queues(status.fleet.queues))
    _headline("Jobs")
    if status.jobs:
        console.out.print(_jobs(status))
    else:
        _say("No job has run yet: `reconcile run`, or `reconcile --since 7d`.")
    _headline("Calls")
    console.out.print(_pairs(_calls(status)))
    if status.calls.stuck_calls:
        console.out.print(_stuck(status))
    _headline("Inbox")
    console.out.print(_pairs(_inbox(status.inbox)))
    _headline("Days proven complete")
    console.out.print(_pairs(_proven(status.days)))
    _headline("Database")
    console.out.print(_pairs([("schema", Text(f"version {status.schema_version}, up to date"))]))
    console.out.print(_tables(status.tables))


def show_report(report: reports.Report) -> None:
    """Print it for a person."""
    console.out.print(Text(f"Completeness since {report.since:%Y-%m-%d}", "bold"))
    if report.days:
        accounts, hidden = accounts_shown(report.days)
        for account, days in accounts.items():
            _calendar(account, list(days.values()), report)
        if hidden:
            _say(f"And {counted(hidden, 'account')} with no more trouble than these; `--json` has them all.")
        console.out.print(_legend())
        if unproven := [day for day in report.days if not day.is_complete]:
            _headline("Days that are not complete")
            unproven.sort(key=lambda day: day.day, reverse=True)
            console.out.print(_differing(unproven[:NAMED]))
            if len(unproven) > NAMED:
                _say(f"and {len(unproven) - NAMED:,} more: `--json` has them all")
            day = unproven[0].day
            _say(f"→ read a day again: `reconcile --since {day} --until {day + timedelta(days=1)}`;")
            _say("  then `reconcile once cold`")
    else:
        _say("No day is proven: run `reconcile once cold` to prove days.")
    _headline("Gaps that webhooks left, by the day they were found on")
    if report.gaps:
        console.out.print(_gaps(report.gaps))
    else:
        _say("None was found.")
    if report.share_lost is not None:
        _say(
            f"Of {report.calls:,} calls since then, webhooks lost something of {report.calls_with_losses:,} "
            f"({report.share_lost:.1%}): the call, a status or how it ended."
        )
    if report.imported:
        _say(
            f"{counted(report.imported, 'call')} {'was' if report.imported == 1 else 'were'} imported: "
            f"{'it is' if report.imported == 1 else 'they are'} older than the first look after their account."
        )


def _show_causes(why: Why) -> None:
    """Print the causes of lost calls in short; `reconcile why` prints more."""
    if not why.causes:
        return
    _headline("Why webhooks lost them, by call")
    table = _table("cause", "calls", "", right=1)
    for cause in why.causes[:NAMED]:
        table.add_row(cause.cause.value, f"{cause.gaps:,}", Text(_plain(title(cause))))
    if rest := why.causes[NAMED:]:
        table.add_row("", f"{sum(cause.gaps for cause in rest):,}", f"of {len(rest):,} more causes")
    console.out.print(table)
    _say(f"→ what to do: `reconcile why --since {why.since:%Y-%m-%d}`")


def _since(daemon: facts.Daemon) -> str:
    return "" if daemon.since is None else f" (connected since {daemon.since:%Y-%m-%d %H:%M:%S} UTC)"


def _workers(workers: Sequence[Worker]) -> Table:
    table = _table("worker", "since", "runs", "at work on", right=0)
    for worker in workers:
        running = [short_sids(_plain(job)) for job in worker.running[:NAMED]]
        rest = [f"{len(worker.running) - NAMED} more"] if len(worker.running) > NAMED else []
        is_silent = worker.silent_seconds > SILENT_AFTER
        at_work = Text(f"silent for {rough(worker.silent_seconds)}", "yellow") if is_silent else Text()
        since = "" if worker.since is None else f"{worker.since:%Y-%m-%d %H:%M:%S} UTC"
        count = f"{len(worker.running)} of {worker.slots or '?'}"
        remarks = filter(None, (at_work, Text(", ".join(running + rest))))
        table.add_row(worker.name, since, count, Text("; ").join(remarks))
    if not workers:
        table.add_row(Text("none: start a daemon", "yellow"), "", "", "")
    return table


def _queues(queues: Sequence[Queue]) -> Table:
    table = _table("queue", "waiting", "oldest", "put off", "at work", right=4)
    for queue in queues:
        oldest = rough(queue.oldest_seconds) if queue.due else ""
        table.add_row(queue.queue, f"{queue.due:,}", oldest, f"{queue.put_off:,}", f"{queue.at_work:,}")
    if not queues:
        table.add_row(Text("empty", "dim"), "", "", "", "")
    return table


def _jobs(status: facts.Snapshot) -> Table:
    table = _table("job", "last success", "behind", "")
    shown = jobs_shown(status.jobs)
    for job in shown.named:
        remark = Text()
        if job.last_error_at is not None:
            remark = Text(f"failed {rough(status.at - job.last_error_at)} ago: {_plain(job.last_error)}", "red")
        if job.is_running:
            remark = Text.assemble("running", "; " if remark else "", remark)
        table.add_row(
            Text(short_sids(_plain(job.job))),
            Text("never", "dim") if job.last_success_at is None else f"{rough(status.at - job.last_success_at)} ago",
            "" if job.read_until is None else rough(status.at - job.read_until),
            remark,
        )
    if shown.failing_unnamed:
        table.add_row("", "", "", Text(f"and {shown.failing_unnamed:,} more that fail", "red"))
    for group in shown.groups:
        oldest = "never" if group.oldest_success_seconds is None else f"{rough(group.oldest_success_seconds)} ago"
        running = f", {group.running:,} running" if group.running else ""
        table.add_row(group.kind, oldest, "", f"{counted(group.jobs, 'account')} ok, the oldest{running}")
    return table


def _calls(status: facts.Snapshot) -> Iterator[tuple[str, Text]]:
    calls = status.calls
    yield "open", Text(f"{calls.open:,}")
    yield "stuck", Text(f"{calls.stuck:,}", "yellow" if calls.stuck else "")
    yield "unfrozen", Text(f"{calls.unfrozen:,} ended, and something is still expected of them")


def _stuck(status: facts.Snapshot) -> Table:
    table = _table("stuck call", "status", "open for")
    for call in status.calls.stuck_calls:
        table.add_row(Text(_plain(call.call_sid)), Text(_plain(call.status)), rough(status.at - call.began_at))
    if status.calls.stuck > len(status.calls.stuck_calls):
        table.add_row(Text(f"and {status.calls.stuck - len(status.calls.stuck_calls):,} more", "dim"), "", "")
    return table


def _inbox(inbox: facts.Inbox) -> Iterator[tuple[str, Text]]:
    for name, count in (("pending", inbox.pending), ("processing", inbox.processing), ("failed", inbox.failed)):
        yield name, Text(f"{count:,}")
    oldest = "" if inbox.oldest_due_seconds is None else f", the oldest {rough(inbox.oldest_due_seconds)} old"
    yield "due", Text(f"{inbox.due:,}{oldest}", "yellow" if inbox.due else "")
    hint = ": `reconcile inbox list`" if inbox.dead_letters else ""
    yield "dead letters", Text(f"{inbox.dead_letters:,}{hint}", "yellow" if inbox.dead_letters else "")


def _proven(days: facts.ProvenDays) -> Iterator[tuple[str, Text]]:
    yield "verified", Text(f"{days.verified:,} account days of the last {facts.DAYS_SHOWN.days}")
    hint = ": `reconcile report`" if days.incomplete else ""
    yield "incomplete", Text(f"{days.incomplete:,}{hint}", "red" if days.incomplete else "")
    newest = "none: `reconcile once cold` proves days" if days.newest_verified is None else f"{days.newest_verified}"
    yield "newest", Text(newest)


def _tables(sizes: Sequence[facts.TableSize]) -> Table:
    table = _table("table", "size", "rows, about", right=2)
    for size in sizes:
        table.add_row(size.table, byte_size(size.bytes), "?" if size.rows is None else f"{size.rows:,}")
    return table


def _calendar(account: str, days: Sequence[facts.AccountDay], report: reports.Report) -> None:
    """Print a calendar with a line for each month and a column for each day."""
    proven = {day.day: day.is_complete for day in days}
    complete, incomplete, unknown = _PLAIN_DAYS if console.is_plain(console.out) else _DAYS
    first, today = report.since.date(), report.until.date()
    asked = [first + timedelta(days=number) for number in range((today - first).days + 1)]
    console.out.print(Text(f"\n{short_sids(_plain(account))}", "bold"))
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
        _say(f"All {counted(over, 'day')} that are over are proven complete.")
    else:
        _say(f"Of {counted(over, 'day')} that are over, {right:,} proven complete, {len(proven) - right:,} incomplete.")


def _legend() -> Text:
    shapes = _PLAIN_DAYS if console.is_plain(console.out) else _DAYS
    words = ("complete", "incomplete", "not proven")
    return Text.assemble(
        "\n  ", *((f"{shape} {word}   ", style) for (shape, style), word in zip(shapes, words, strict=True))
    )


def _differing(days: Sequence[facts.AccountDay]) -> Table:
    table = _table("day", "account", "listed", "held", "billed", "what differed")
    for day in days:
        billed = "" if day.billed is None else f"{day.billed:,}"
        table.add_row(
            f"{day.day}",
            short_sids(_plain(day.account_sid)),
            f"{day.listed:,}",
            f"{day.held:,}",
            billed,
            Text(_plain(differences(day.differences))),
        )
    return table


def _gaps(gaps: Sequence[reports.GapsOfDay]) -> Table:
    kinds = [gap.value for gap in Gap]
    table = _table("day", *kinds, "found by", "", right=len(kinds))
    most = max(sum(of_day.kinds.values()) for of_day in gaps)
    shape = (_PLAIN_DAYS if console.is_plain(console.out) else _DAYS)[0][0]
    for of_day in gaps:
        jobs = sorted(of_day.jobs, key=lambda job: -of_day.jobs[job])
        bar = shape * -(-sum(of_day.kinds.values()) * _BAR // most)
        table.add_row(
            f"{of_day.day}", *(f"{of_day.kinds[kind]:,}" for kind in kinds), ", ".join(jobs), Text(bar, "cyan")
        )
    return table


def _table(*names: str, right: int = 0) -> Table:
    """Return a table with headings; after the first column, `right` columns hold numbers."""
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    for place, name in enumerate(names):
        table.add_column(name, justify="right" if 1 <= place <= right else "left", overflow="fold")
    return table


def _pairs(rows: Iterable[tuple[str, Text]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(f"  {name}", value)
    return table


def _headline(text: str) -> None:
    console.out.print(Text(f"\n{text}", "bold"))


def _say(text: str) -> None:
    console.out.print(Padding(Text(text), (0, 0, 0, 2), expand=False))


def _plain(text: str | None) -> str:
    """Return foreign text without phone numbers and escape sequences."""
    return harmless(mask(text or ""), markup=False)

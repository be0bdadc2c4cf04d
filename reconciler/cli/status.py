"""`reconcile status`: the state of the work."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from rich.table import Table
from rich.text import Text

from reconciler.cli.wiring import connect, read_settings, require_schema
from reconciler.database.engine_schema import Queue, Worker
from reconciler.errors import ExitCode, Retriable, UsageError
from reconciler.settings import Settings
from reconciler.status import snapshot as facts
from reconciler.status.overview import NAMED, jobs_shown
from reconciler.terminal import console
from reconciler.terminal.printing import print_json
from reconciler.terminal.sections import headline, new_table, plain, say
from reconciler.times import parse_duration
from reconciler.wording import byte_size, counted, rough, short_sids


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
                say(f"{datetime.now(UTC):%H:%M:%S} UTC: {exc}")
            else:
                console.out.clear()
                show_status(status)
            time.sleep(every.total_seconds())
    except KeyboardInterrupt:
        return int(ExitCode.DONE)


def _snapshot(settings: Settings) -> facts.Snapshot:
    with connect(settings, purpose="status") as conn:
        require_schema(conn)
        return facts.read_snapshot(conn, settings, now=datetime.now(UTC))


def show_status(status: facts.Snapshot) -> None:
    """Print it for a person."""
    leader = status.leader
    if leader is None:
        say("No daemon leads: jobs run only when somebody starts them.")
    else:
        say(f"{leader.name} leads{_since(leader)}.")
    for standby in () if status.fleet else status.standbys:
        say(f"{standby.name} stands by{_since(standby)}.")
    if status.waiting is not None:
        say(f"! {status.waiting.in_words(status.at)}; no answer since {status.waiting.since:%H:%M:%S} UTC.")
    if status.next_runs:
        due = (f"{kind} in {rough(at - status.at)}" for kind, at in status.next_runs.items())
        say(f"Next: {', '.join(due)}.")
    if status.fleet is not None:
        headline("Fleet")
        console.out.print(_workers(status.fleet.workers))
        console.out.print(_queues(status.fleet.queues))
    headline("Jobs")
    if status.jobs:
        console.out.print(_jobs(status))
    else:
        say("No job has run yet: `reconcile run`, or `reconcile --since 7d`.")
    headline("Calls")
    console.out.print(_pairs(_calls(status)))
    if status.calls.stuck_calls:
        console.out.print(_stuck(status))
    headline("Inbox")
    console.out.print(_pairs(_inbox(status.inbox)))
    headline("Days proven complete")
    console.out.print(_pairs(_proven(status.days)))
    if recordings := list(_recordings(status)):
        headline("Recordings")
        console.out.print(_pairs(recordings))
    headline("Database")
    console.out.print(_pairs([("schema", Text(f"version {status.schema_version}, up to date"))]))
    console.out.print(_tables(status.tables))


def _since(daemon: facts.Daemon) -> str:
    return "" if daemon.since is None else f" (connected since {daemon.since:%Y-%m-%d %H:%M:%S} UTC)"


def _workers(workers: Sequence[Worker]) -> Table:
    table = new_table("worker", "since", "runs", "at work on", right=0)
    for worker in workers:
        running = [short_sids(plain(job)) for job in worker.running[:NAMED]]
        rest = [f"{len(worker.running) - NAMED} more"] if len(worker.running) > NAMED else []
        at_work = Text() if worker.is_alive else Text(f"silent for {rough(worker.silent_seconds)}", "yellow")
        since = "" if worker.since is None else f"{worker.since:%Y-%m-%d %H:%M:%S} UTC"
        count = f"{len(worker.running)} of {worker.slots or '?'}"
        remarks = filter(None, (at_work, Text(", ".join(running + rest))))
        table.add_row(worker.name, since, count, Text("; ").join(remarks))
    if not workers:
        table.add_row(Text("none: start a daemon", "yellow"), "", "", "")
    return table


def _queues(queues: Sequence[Queue]) -> Table:
    table = new_table("queue", "waiting", "oldest", "put off", "at work", right=4)
    for queue in queues:
        oldest = rough(queue.oldest_seconds) if queue.due else ""
        table.add_row(queue.queue, f"{queue.due:,}", oldest, f"{queue.put_off:,}", f"{queue.at_work:,}")
    if not queues:
        table.add_row(Text("empty", "dim"), "", "", "", "")
    return table


def _jobs(status: facts.Snapshot) -> Table:
    table = new_table("job", "last success", "behind", "")
    shown = jobs_shown(status.jobs)
    for job in shown.named:
        remark = Text()
        if job.last_error_at is not None:
            remark = Text(f"failed {rough(status.at - job.last_error_at)} ago: {plain(job.last_error)}", "red")
        if job.is_running:
            remark = Text.assemble("running", "; " if remark else "", remark)
        table.add_row(
            Text(short_sids(plain(job.job))),
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
    table = new_table("stuck call", "status", "open for")
    for call in status.calls.stuck_calls:
        table.add_row(Text(plain(call.call_sid)), Text(plain(call.status)), rough(status.at - call.began_at))
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


def _recordings(status: facts.Snapshot) -> Iterator[tuple[str, Text]]:
    """Yield nothing for an account without recordings."""
    found = status.recordings
    if found.listed:
        yield "listed", Text(f"{found.listed:,} in the account days of the last {facts.DAYS_SHOWN.days}")
        hint = "" if found.told == found.listed else ": `reconcile report`"
        yield "told", Text(f"{found.told:,}{hint}", "red" if hint else "")
    for each in found.refused[:NAMED]:
        ago = rough(status.at - each.refused_at)
        yield (
            "refused",
            Text(f"{ago} ago: the credentials may not read those of {short_sids(each.account_sid)}", "yellow"),
        )
    if len(found.refused) > NAMED:
        yield "", Text(f"and those of {len(found.refused) - NAMED:,} more accounts", "yellow")


def _tables(sizes: Sequence[facts.TableSize]) -> Table:
    table = new_table("table", "size", "rows, about", right=2)
    for size in sizes:
        table.add_row(size.table, byte_size(size.bytes), "?" if size.rows is None else f"{size.rows:,}")
    return table


def _pairs(rows: Iterable[tuple[str, Text]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(f"  {name}", value)
    return table

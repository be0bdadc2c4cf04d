"""What a person sees, or a program reads: progress on stderr, results on stdout; imported only when there is some."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from reconciler.database.transaction import Decision
from reconciler.jobs.backfill import Summary, Watcher
from reconciler.logs import get_logger
from reconciler.masking import mask
from reconciler.model import Gap
from reconciler.terminal.console import err, out, print_figures
from reconciler.wording import rough

PROGRESS_EVERY: Final = 10.0  # seconds between log lines where there is no bar

_NUMBERS: Final = ("from_number", "to_number")
_FIRST: Final = ("status", *_NUMBERS, "start_time", "end_time", "duration", "price", "price_unit")

log = get_logger(__name__)


@contextmanager
def watching(*, as_json: bool, dry_run: bool, masked: bool) -> Iterator[Watcher]:
    """Show a backfill: a bar where somebody watches, log lines elsewhere; the result as tables or one JSON object."""
    results = _Json(dry_run=dry_run, masked=masked) if as_json else _Tables(dry_run=dry_run, masked=masked)
    # Differences that scroll over the same terminal would tear the bar apart.
    is_free = not (dry_run and out.is_terminal)
    with _bar() if err.is_terminal and not as_json and is_free else _no_bar() as progress:
        yield _Both(progress, results)


class _Both:
    def __init__(self, progress: Watcher, results: Watcher) -> None:
        self._watchers = (progress, results)

    def turned_to(self, account_sid: str, number: int, of: int) -> None:
        for watcher in self._watchers:
            watcher.turned_to(account_sid, number, of)

    def planned(self, slices: int, remaining: int) -> None:
        for watcher in self._watchers:
            watcher.planned(slices, remaining)

    def merged(self, summary: Summary, decisions: Sequence[Decision]) -> None:
        for watcher in self._watchers:
            watcher.merged(summary, decisions)

    def finished(self, summary: Summary) -> None:
        for watcher in self._watchers:
            watcher.finished(summary)


@contextmanager
def _bar() -> Iterator[Watcher]:
    progress = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(complete_style="cyan", finished_style="green"),
        MofNCompleteColumn(),
        TextColumn("slices · {task.fields[calls]:,} calls · {task.fields[rate]:,}/s · {task.fields[left]}"),
        TimeElapsedColumn(),
        console=err,
        redirect_stdout=False,
    )
    with progress:
        yield _Bar(progress, progress.add_task("Reconciling", total=None, calls=0, rate=0, left="…"))


class _Bar:
    """Slices done and left, calls, calls per second, time left."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self._started = time.monotonic()
        self._already = 0

    def turned_to(self, account_sid: str, number: int, of: int) -> None:
        self._progress.update(self._task, description=f"{account_sid[:6]}… {number}/{of}")

    def planned(self, slices: int, remaining: int) -> None:
        self._started = time.monotonic()
        self._already = slices - remaining
        self._progress.update(self._task, total=slices, completed=self._already)

    def merged(self, summary: Summary, decisions: Sequence[Decision]) -> None:
        elapsed = max(0.001, time.monotonic() - self._started)
        done = summary.slices_done - self._already
        remaining = timedelta(seconds=elapsed / done * (summary.slices - summary.slices_done)) if done else None
        left = "…" if remaining is None else f"{rough(remaining)} left"
        self._progress.update(
            self._task, completed=summary.slices_done, calls=summary.seen, rate=round(summary.seen / elapsed), left=left
        )

    def finished(self, summary: Summary) -> None:
        self._progress.stop()


@contextmanager
def _no_bar() -> Iterator[Watcher]:
    yield _Lines()


class _Lines:
    """A log line now and then; `job.started` and `job.finished` have said the rest."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def turned_to(self, account_sid: str, number: int, of: int) -> None:
        pass

    def planned(self, slices: int, remaining: int) -> None:
        pass

    def merged(self, summary: Summary, decisions: Sequence[Decision]) -> None:
        if time.monotonic() - self._last >= PROGRESS_EVERY:
            self._last = time.monotonic()
            log.info(
                "job.progressed", calls_seen=summary.seen, slices_done=summary.slices_done, slices=summary.slices
            )  # fmt: skip

    def finished(self, summary: Summary) -> None:
        pass


class _Tables:
    """For a person: differences as they are found, and a table at the end."""

    def __init__(self, *, dry_run: bool, masked: bool) -> None:
        self._dry_run = dry_run
        self._masked = masked

    def turned_to(self, account_sid: str, number: int, of: int) -> None:
        if err.is_terminal:
            err.print(f"Account {number} of {of}: {account_sid}")

    def planned(self, slices: int, remaining: int) -> None:
        """Say what it will cost at most: adjacent days with few calls are asked for together."""
        resumed = f", {slices - remaining} of them read already" if remaining < slices else ""
        if err.is_terminal:  # in a file, between log lines, `job.started` says it
            cost = f"at most {remaining:,} requests to Twilio, and one per 1,000 calls"
            err.print(f"{slices} slices{resumed}: {cost}.")

    def merged(self, summary: Summary, decisions: Sequence[Decision]) -> None:
        if not self._dry_run or not decisions:
            return
        changes = [change for decision in decisions for change in self._changes(decision)]
        if out.is_terminal:
            out.print(Text("\n").join(changes), soft_wrap=True)
        else:  # laying many lines out takes longer than reading the calls
            out.file.write("".join(f"{change.plain}\n" for change in changes))

    def _changes(self, decision: Decision) -> Iterator[Text]:
        """A line for each field. On a terminal the SID, which would make them too long, stands above; grep wants it."""
        absent = "(empty)" if decision.ours else "(no row)"
        stays = "  frozen, stays" if decision.action == "drift" else ""
        head = Text(decision.call_sid, "cyan")
        if out.is_terminal:
            yield head
            head = Text()
        for field, *values in _differences(decision, masked=self._masked):
            ours, theirs = (absent if value is None else value for value in values)
            yield Text.assemble(head, f"  {field:<16}", (ours, "red"), " → ", (theirs, "green"), stays)

    def finished(self, summary: Summary) -> None:
        self._show_accounts(summary)
        would = "would be " if self._dry_run else ""
        figures = {
            "calls seen": summary.seen,
            f"{would}inserted": summary.inserted,
            f"{would}updated": summary.updated,
            "unchanged": summary.unchanged,
            **{f"gaps: {gap.value}": summary.gaps[gap] for gap in Gap},
            f"{would}frozen": summary.frozen,
            "requests": summary.requests,
            "retries": summary.retries,
            "seconds": summary.seconds,
        }
        troubles = {"frozen, but Twilio disagrees": summary.drifted, "dead letters": summary.dead_letters}
        print_figures(figures, {name: count for name, count in troubles.items() if count})

    def _show_accounts(self, summary: Summary) -> None:
        if not summary.accounts and not summary.unread:
            return
        columns = ("calls seen", "inserted", "updated", "unchanged", "requests")
        table = Table("account", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, justify="right")
        table.add_column()
        for account_sid, one in summary.accounts.items():
            counts = (one.seen, one.inserted, one.updated, one.unchanged, one.requests)
            table.add_row(account_sid, *(f"{count:,}" for count in counts), one.problem or "")
        for account_sid, error in summary.unread.items():
            table.add_row(account_sid, *("-" for _ in columns), str(error))
        out.print(table)
        out.print()


class _Json:
    """For a program: one object; differences are written as they are found, so that memory stays flat."""

    def __init__(self, *, dry_run: bool, masked: bool) -> None:
        self._dry_run = dry_run
        self._masked = masked
        self._separator = '{"differences": [\n'

    def turned_to(self, account_sid: str, number: int, of: int) -> None:
        pass

    def planned(self, slices: int, remaining: int) -> None:
        pass

    def merged(self, summary: Summary, decisions: Sequence[Decision]) -> None:
        if self._dry_run:
            for decision in decisions:
                fields = {f: {"ours": o, "twilio": t} for f, o, t in _differences(decision, masked=self._masked)}
                sys.stdout.write(self._separator)
                json.dump({"call_sid": decision.call_sid, "action": decision.action, "fields": fields}, sys.stdout)
                self._separator = ",\n"

    def finished(self, summary: Summary) -> None:
        if self._dry_run:
            if self._separator != ",\n":
                sys.stdout.write(self._separator)
            sys.stdout.write("],\n")
            sys.stdout.write(json.dumps(summary.as_dict(), indent=2).removeprefix("{\n"))
        else:
            json.dump(summary.as_dict(), sys.stdout, indent=2)
        sys.stdout.write("\n")


def _differences(decision: Decision, *, masked: bool) -> Iterator[tuple[str, str | None, str | None]]:
    """(field, our value, Twilio's) for each field that differs, as text, what matters most first; None: no value."""

    def shown(field: str, value: Any) -> str | None:
        if value is None:
            return None
        return mask(str(value)) if masked and field in _NUMBERS else str(value)

    ours, theirs = decision.ours or {}, decision.theirs or {}
    for field in (*(f for f in _FIRST if f in theirs), *sorted(theirs.keys() - {*_FIRST, "previous_status"})):
        yield field, shown(field, ours.get(field)), shown(field, theirs[field])

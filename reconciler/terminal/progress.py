"""Progress on stderr and results on stdout, for a person or a program; imported only if there is something to show."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from reconciler.database.decisions import Decision
from reconciler.jobs.backfill import BackfillCounts, Watcher
from reconciler.model import Gap
from reconciler.terminal.console import err, out, print_figures
from reconciler.terminal.differences import DifferencesListed, DifferencesSummed, JsonResult
from reconciler.wording import counted, rough, short_sids


@contextmanager
def watching(*, as_json: bool, dry_run: bool, masked: bool, show_all: bool = False) -> Iterator[Watcher]:
    """Show a backfill: a progress bar on a terminal, and the result as tables or one JSON object.

    With `dry_run` the differences are shown too. On a terminal they are summed up at the end, without `show_all`.
    """
    scrolls = False
    results: Watcher
    if as_json:
        results = JsonResult(dry_run=dry_run, masked=masked)
    else:
        differences: Watcher = Watcher()
        if dry_run and out.is_terminal and not show_all:
            differences = DifferencesSummed(out, masked=masked)
        elif dry_run:
            differences = DifferencesListed(out, masked=masked)
            scrolls = out.is_terminal
        results = _Both(differences, _Tables(dry_run=dry_run))
    # Lines that scroll over the same terminal would break the progress bar.
    with _bar() if err.is_terminal and not as_json and not scrolls else nullcontext(Watcher()) as progress:
        yield _Both(progress, results)


class _Both(Watcher):
    """Passes each call on to several watchers, one after another."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def turned_to(self, account_sid: str, number: int, of: int) -> None:
        for watcher in self._watchers:
            watcher.turned_to(account_sid, number, of)

    def planned(self, slices: int, remaining: int) -> None:
        for watcher in self._watchers:
            watcher.planned(slices, remaining)

    def merged(self, summary: BackfillCounts, decisions: Sequence[Decision]) -> None:
        for watcher in self._watchers:
            watcher.merged(summary, decisions)

    def finished(self, summary: BackfillCounts) -> None:
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


class _Bar(Watcher):
    """The progress bar: slices done and left, calls, calls a second, and time left."""

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

    def merged(self, summary: BackfillCounts, decisions: Sequence[Decision]) -> None:
        elapsed = max(0.001, time.monotonic() - self._started)
        done = summary.slices_done - self._already
        remaining = timedelta(seconds=elapsed / done * (summary.slices - summary.slices_done)) if done else None
        left = "…" if remaining is None else f"{rough(remaining)} left"
        self._progress.update(
            self._task, completed=summary.slices_done, calls=summary.seen, rate=round(summary.seen / elapsed), left=left
        )

    def finished(self, summary: BackfillCounts) -> None:
        self._progress.stop()


class _Tables(Watcher):
    """The form for a person: the expected cost, and a table of counts at the end."""

    def __init__(self, *, dry_run: bool) -> None:
        self._dry_run = dry_run

    def turned_to(self, account_sid: str, number: int, of: int) -> None:
        if err.is_terminal:
            err.print(f"Account {number} of {of}: {short_sids(account_sid)}")

    def planned(self, slices: int, remaining: int) -> None:
        """Print the expected number of requests. It is an upper bound: adjacent days with few calls are one request."""
        resumed = f", {slices - remaining} of them read already" if remaining < slices else ""
        if err.is_terminal:  # in a file the log event `job.started` has it
            cost = f"about {counted(remaining, 'request')} to Twilio + 1 per 1,000 calls"
            err.print(f"{counted(slices, 'slice')}{resumed}; {cost}.")

    def finished(self, summary: BackfillCounts) -> None:
        self._show_accounts(summary)
        would = "would be " if self._dry_run else ""
        figures = {
            "calls seen": summary.seen,
            f"{would}inserted": summary.inserted,
            f"{would}updated": summary.updated,
            "unchanged": summary.unchanged,
            **{f"gaps: {gap.value}": summary.gaps[gap] for gap in Gap},
            "imported": summary.imported,
            f"{would}frozen": summary.frozen,
            "requests": summary.requests,
            "retries": summary.retries,
            "seconds": summary.seconds,
        }
        troubles = {"frozen, but Twilio disagrees": summary.drifted, "dead letters": summary.dead_letters}
        print_figures(figures, {name: count for name, count in troubles.items() if count})

    def _show_accounts(self, summary: BackfillCounts) -> None:
        if not summary.accounts and not summary.unread:
            return
        columns = ("calls seen", "inserted", "updated", "unchanged", "requests")
        table = Table("account", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, justify="right")
        table.add_column()
        for account_sid, one in summary.accounts.items():
            counts = (one.seen, one.inserted, one.updated, one.unchanged, one.requests)
            table.add_row(short_sids(account_sid), *(f"{count:,}" for count in counts), one.problem or "")
        for account_sid, error in summary.unread.items():
            table.add_row(short_sids(account_sid), *("-" for _ in columns), str(error))
        out.print(table)
        out.print()

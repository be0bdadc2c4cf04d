"""`reconcile --since …`: reads every call of a window that a person names."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from reconciler.cli.wiring import (
    accounts_asked_for,
    database_url,
    make_client,
    make_store,
    prepare_schema,
    read_moment,
    read_settings,
    read_since,
    share_budget,
    stop_on_signal,
)
from reconciler.database.engine_schema import shares_work
from reconciler.errors import ExitCode, UsageError
from reconciler.jobs import backfill
from reconciler.settings import Settings
from reconciler.sync.context import Account, JobContext
from reconciler.sync.counts import Outcome
from reconciler.terminal.printing import complain
from reconciler.terminal.progress import watching
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.listing import RETENTION

_MERGERS_AT_MOST: Final = 4


def backfill_window(args: argparse.Namespace) -> int:
    """Make the calls of the window equal to Twilio's, or with --dry-run show what would change."""
    asked_at = datetime.now(UTC)
    since, until = _window(args, asked_at)
    if args.all and not args.dry_run:
        raise UsageError("--all goes with --dry-run: it lists each field that would change")
    if args.fleet and args.dry_run:
        raise UsageError("--fleet does not go with --dry-run: workers write")
    settings = read_settings()
    if args.fleet and not shares_work(settings):
        raise UsageError(
            "--fleet needs RECONCILER_ENGINE=procrastinate, here and where the daemons run",
            hint="without --fleet this process reads alone",
        )
    with stop_on_signal() as stop, make_client(settings) as client:
        _, accounts = accounts_asked_for(args.account, settings, client.session(stop))
        since = backfill.clamp(since, now=asked_at)
        window = backfill.Window(since, until, {"since": args.since, "until": args.until})
        url = database_url(settings)
        prepare_schema(url, migrate=not args.dry_run, settings=settings if args.fleet else None)
        share_budget(client, url)
        with (
            make_store(url, settings) as store,
            watching(
                as_json=args.json, dry_run=args.dry_run, masked=settings.log_pii == "masked", show_all=args.all
            ) as watcher,
        ):
            context = backfill.BackfillContext(
                job=backfill.name_backfill(accounts[0]), settings=settings, store=store,
                session=client.session(stop, is_bulk=True), account=Account(accounts[0]), stop=stop,
                dry_run=args.dry_run, window=window, watcher=watcher, mergers=count_mergers(),
            )  # fmt: skip
            counts = _read_by_fleet(context, url, accounts) if args.fleet else _read(context, client, accounts)
            watcher.finished(counts)
    _last_words(counts, settings, dry_run=args.dry_run)
    if args.dry_run and counts.exit_code is ExitCode.DONE and (counts.inserted or counts.updated):
        return int(ExitCode.UNRECONCILED)
    return int(counts.exit_code)


def count_mergers() -> int:
    """Return on how many connections a backfill merges: one for each core, since the database may have as many."""
    return min(_MERGERS_AT_MOST, os.cpu_count() or 1)


def _window(args: argparse.Namespace, asked_at: datetime) -> tuple[datetime, datetime]:
    """Return the moments that --since and --until name.

    Raises:
        UsageError: a moment cannot be read or is in the future, they are in the wrong order, or the whole window
            lies before Twilio's retention.

    """
    since, until = read_since(args.since, asked_at), asked_at
    if args.until is not None:
        until = read_moment(args.until, "--until", asked_at)
    if until > asked_at:
        raise UsageError(f"--until {args.until} lies in the future", hint="leave --until out to read up to now")
    if until <= asked_at - RETENTION:
        raise UsageError(
            f"the window ends before the {RETENTION.days} days that Twilio keeps",
            hint="Twilio's Bulk Export has older calls",
        )
    if since >= until:
        raise UsageError(f"--since {args.since} is not before --until {args.until}")
    return since, until


def _read(context: backfill.BackfillContext, client: TwilioClient, accounts: Sequence[str]) -> backfill.BackfillCounts:
    """Read the window of one account with `context`, or of several accounts one after another."""
    if len(accounts) == 1:
        return backfill.backfill(context)

    def read(account_sid: str, window: backfill.Window) -> backfill.BackfillCounts:
        own = replace(
            context, job=backfill.name_backfill(account_sid), account=Account(account_sid), window=window,
            session=client.session(context.stop, is_bulk=True),
        )  # fmt: skip
        return backfill.backfill(own)

    return backfill.backfill_accounts(
        accounts, context.window, read, store=None if context.dry_run else context.store, watcher=context.watcher,
        stop=context.stop, has_worked=lambda: client.has_worked,
    )  # fmt: skip


def _read_by_fleet(context: backfill.BackfillContext, url: str, accounts: Sequence[str]) -> backfill.BackfillCounts:
    from reconciler.service.backfill_queue import BackfillQueue
    from reconciler.service.fleet_backfill import FLEET, backfill_by_fleet

    own = JobContext(job=FLEET, settings=context.settings, store=context.store, stop=context.stop)
    with closing(BackfillQueue(url)) as queue:
        return backfill_by_fleet(own, accounts, context.window, queue, context.watcher)


def _last_words(counts: backfill.BackfillCounts, settings: Settings, *, dry_run: bool) -> None:
    """Print on stderr why a backfill did not finish, and what to do."""
    hint = None if dry_run else "the same command goes on where this one ended"
    for account_sid, error in counts.unread.items():
        complain(f"{account_sid}: {error}", error.hint)
    if counts.outcome is Outcome.INTERRUPTED:
        complain(f"interrupted after {counts.slices_done} of {counts.slices} slices", hint)
    elif counts.failed:
        reasons = "; ".join(sorted({str(failure.error) for failure in counts.failed}))
        if counts.exit_code is ExitCode.UNAVAILABLE:
            hint = f"is TWILIO_BASE_URL right? {settings.twilio_base_url}" if settings.twilio_base_url else None
            complain(f"Twilio is unavailable: {reasons}", hint or "check the network, and https://status.twilio.com")
        else:
            complain(
                f"{counts.slices - counts.slices_done} of {counts.slices} slices could not be read: {reasons}", hint
            )

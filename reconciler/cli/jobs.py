"""`reconcile run`, the daemon, and `reconcile once`, one run of a job."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from reconciler.cli.wiring import (
    accounts_asked_for,
    database_url,
    make_client,
    make_store,
    prepare_schema,
    read_moment,
    read_settings,
    share_budget,
    stop_on_signal,
)
from reconciler.errors import ReconcilerError, UsageError
from reconciler.jobs.accounts import for_each_account
from reconciler.jobs.registry import KINDS
from reconciler.model import JobName, name_job
from reconciler.settings import Settings
from reconciler.sync.context import Account, JobContext, Options
from reconciler.sync.counts import Counts
from reconciler.terminal.console import print_figures
from reconciler.terminal.printing import complain, print_json, print_rows
from reconciler.twilio.accounts import Accounts
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.listing import RETENTION
from reconciler.wording import short_sids

_SHOWN: Final = ("calls_seen", "inserted", "updated", "frozen", "gone", "requests")  # for each of several accounts
_ALWAYS_SHOWN: Final = ("calls_seen", "requests", "duration_seconds")  # for one account; the others only if not 0
_TROUBLES: Final[tuple[str, ...]] = ("drifted", "dead_letters")  # for one account


def run(_: argparse.Namespace) -> int:
    """Run the daemon until a signal stops it."""
    from reconciler.service.startup import serve
    from reconciler.service.systemd import Notifier

    def prepare(settings: Settings) -> str:
        url = database_url(settings)
        prepare_schema(url, migrate=True, settings=settings)
        return url

    return int(serve(partial(read_settings, serves=True), prepare, Notifier.from_environ(os.environ)))


def once(args: argparse.Namespace) -> int:
    """Run the job, for one account after another if it asks Twilio, and print its counts."""
    kind = KINDS[args.job]
    since = _since(args)
    if args.account is not None and not kind.asks_twilio:
        raise UsageError(f"{args.job} works for all accounts: --account does not go with it")
    settings = read_settings()
    with stop_on_signal() as stop:
        if not kind.asks_twilio:
            url = _prepared(settings)
            with make_store(url, settings) as store:
                context = JobContext(job=JobName(args.job), settings=settings, store=store, stop=stop)
                counts = kind.work(context)
            return _print({"": counts}, {}, as_json=args.json)
        with make_client(settings) as client:
            accounts, sids = accounts_asked_for(args.account, settings, client.session(stop))
            url = _prepared(settings)
            share_budget(client, url)
            with make_store(url, settings) as store:
                context = JobContext(
                    job=JobName(args.job), settings=settings, store=store, stop=stop, options=Options(since=since)
                )
                results = _run_each(sids, accounts, client, context)
            done = {sid: result for sid, result in results.items() if isinstance(result, Counts)}
            failed = {sid: result for sid, result in results.items() if isinstance(result, ReconcilerError)}
            return _print(done, failed, as_json=args.json)


def _prepared(settings: Settings) -> str:
    url = database_url(settings)
    prepare_schema(url, migrate=True)
    return url


def _run_each(
    sids: Sequence[str], accounts: Accounts, client: TwilioClient, context: JobContext
) -> dict[str, Counts | ReconcilerError]:
    """Return the result of each account, up to the one at which the run was stopped."""
    kind = context.job.kind

    def work(account_sid: str) -> Counts:
        own = replace(
            context,
            job=name_job(kind, account_sid, main=accounts.main),
            session=client.session(context.stop, is_bulk=KINDS[kind].is_bulk),
            account=Account(
                account_sid,
                owns_unassigned=account_sid == accounts.default_account,
                is_only=accounts.is_only_account,
            ),
        )
        return KINDS[kind].work(own)

    results: dict[str, Counts | ReconcilerError] = {}
    for account_sid, result in for_each_account(sids, work, has_worked=lambda: client.has_worked):
        results[account_sid] = result
        if context.stop.is_set():
            break
    return results


def _since(args: argparse.Namespace) -> datetime | None:
    if args.from_ is None:
        return None
    if args.job not in ("hot", "warm"):
        raise UsageError(f"--from does not go with {args.job}: only hot and warm read on from a moment")
    now = datetime.now(UTC)
    since = read_moment(args.from_, "--from", now)
    if not now - RETENTION <= since < now:
        raise UsageError(f"--from {args.from_} lies in the future, or before the 400 days that Twilio keeps")
    return since


def _in_words(figures: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("gaps_", "gaps: ").replace("_", " "): value for name, value in figures.items()}


def _print(done: dict[str, Counts], failed: dict[str, ReconcilerError], *, as_json: bool) -> int:
    """Print the counts, a line for each of several accounts; return the highest of their exit codes."""
    if len(done) == 1 and not failed:
        (figures,) = (counts.as_dict() for counts in done.values())
    else:
        figures = {"accounts": {account_sid: counts.as_dict() for account_sid, counts in done.items()}}
        figures["accounts"] |= {account_sid: {"error": str(error)} for account_sid, error in failed.items()}
    if as_json:
        print_json(figures)
    elif "accounts" not in figures:
        told = {name: value for name, value in figures.items() if value or name in _ALWAYS_SHOWN}
        troubles = {name: told.pop(name) for name in _TROUBLES if name in told}
        print_figures(_in_words(told), _in_words(troubles))
    else:
        print_rows(
            [
                {"account": short_sids(sid), **{name: counts.as_dict()[name] for name in _SHOWN}}
                for sid, counts in done.items()
            ]
        )
    for account_sid, counts in done.items():
        if counts.problem is not None:
            of = f"{short_sids(account_sid)}: " if len(done) > 1 else ""
            complain(f"{of}{counts.problem}", "the next run goes on where this one ended")
    for account_sid, error in failed.items():
        complain(f"{account_sid}: {error}", error.hint)
    return max(int(code) for code in (*(t.exit_code for t in done.values()), *(e.exit_code for e in failed.values())))

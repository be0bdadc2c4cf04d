"""`reconcile run`, the daemon, and `reconcile once`, one run of a job."""

from __future__ import annotations

import argparse
import os
from contextlib import closing
from datetime import UTC, datetime

from reconciler.commands.printing import complain, print_json, print_rows
from reconciler.commands.setup import (
    database_url,
    make_store,
    prepare_schema,
    read_moment,
    read_settings,
    stop_on_signal,
)
from reconciler.config import Settings
from reconciler.daemon import serve
from reconciler.errors import UsageError
from reconciler.jobs import KINDS, Means, job_of
from reconciler.pacing import Pacer
from reconciler.runs import Terms, Totals
from reconciler.source import RETENTION, Source
from reconciler.systemd import Notifier
from reconciler.wire import ACCOUNT_SID


def run(_: argparse.Namespace) -> int:
    """Serve until told to stop."""

    def prepare(settings: Settings) -> str:
        url = database_url(settings)
        prepare_schema(url, migrate=True)
        return url

    return int(serve(read_settings, prepare, Notifier.from_environ(os.environ)))


def once(args: argparse.Namespace) -> int:
    """Run the job and print its counts."""
    kind = KINDS[args.job]
    since = _since(args)
    if args.account is not None and not kind.asks_twilio:
        raise UsageError(f"{args.job} works for all accounts: --account does not go with it")
    if args.account is not None and not ACCOUNT_SID.fullmatch(args.account):
        raise UsageError("--account must be AC and 32 hexadecimal digits")
    settings = read_settings()
    credentials = settings.credentials() if kind.asks_twilio else None
    url = database_url(settings)
    prepare_schema(url, migrate=True)
    main = None if credentials is None else credentials.account_sid
    account = args.account or main
    with stop_on_signal() as stop, make_store(url, settings) as store:
        terms = Terms(stop)
        means = Means(job_of(args.job, account, main=main), settings, store, terms, since=since)
        if credentials is None or account is None:
            totals = kind.work(means)
        else:
            with closing(Source(credentials, pacer=Pacer(settings.max_concurrency), stop=stop)) as source:
                totals = kind.work(
                    Means(
                        means.job, settings, store, terms, source.for_run(stop, is_bulk=kind.is_bulk), account,
                        account == main, since,
                    )
                )  # fmt: skip
    _print(totals, as_json=args.json)
    return int(totals.exit_code)


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


def _print(totals: Totals, *, as_json: bool) -> None:
    figures = totals.as_dict()
    if as_json:
        print_json(figures)
    else:
        print_rows([{"": name, " ": str(value)} for name, value in figures.items()])
    if totals.problem is not None:
        complain(totals.problem, "the next run goes on where this one ended")

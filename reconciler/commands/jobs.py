"""`reconcile once`: one run of a job."""

from __future__ import annotations

import argparse

from reconciler import inbox
from reconciler.commands.printing import print_json, print_rows
from reconciler.commands.setup import database_url, make_store, prepare_schema, read_settings, stop_on_signal
from reconciler.runs import Terms


def once(args: argparse.Namespace) -> int:
    """Run the job and print its counts."""
    settings = read_settings()
    url = database_url(settings)
    prepare_schema(url, migrate=True)
    with stop_on_signal() as stop, make_store(url, settings) as store:
        worked = inbox.work_inbox(store, terms=Terms(stop), grace=settings.inbox_grace)
    result = {"rows": worked.rows, "completed": worked.completed, **worked.counts()}
    if args.json:
        print_json(result)
    else:
        print_rows([{"": name, " ": str(value)} for name, value in result.items()])
    return int(worked.exit_code)

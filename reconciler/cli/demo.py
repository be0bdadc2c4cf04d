"""`reconcile demo`: the demonstration, which needs nothing else installed."""

from __future__ import annotations

import argparse

from reconciler.demo import run, run_live


def show(args: argparse.Namespace) -> int:
    """Run the demonstration: the story of a week, or the live one."""
    return run_live() if args.live else run()

"""`reconcile demo`: the demonstration, which needs nothing else installed."""

from __future__ import annotations

import argparse

from reconciler.demo import run


def show(_: argparse.Namespace) -> int:
    """Run the demonstration."""
    return int(run())

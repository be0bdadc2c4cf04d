"""`reconcile demo`: everything at once, with nothing installed but this."""

from __future__ import annotations

import argparse

from reconciler.demo import run


def show(_: argparse.Namespace) -> int:
    """Tell the story of the demo."""
    return int(run())

"""Facts about every process that tests start."""

from __future__ import annotations

import os
import re
import sysconfig
from pathlib import Path

COMMAND = Path(sysconfig.get_path("scripts")) / "reconcile"

# No process writes a phone number to stderr that is not masked.
PLAIN_NUMBER = re.compile(r"\+\d{7,}")


def coverage_environment() -> dict[str, str]:
    """The variables of coverage.py, for a process that `make coverage` measures as well; usually none."""
    return {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}

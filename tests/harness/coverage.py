"""The environment of a process that `make coverage` measures as well."""

from __future__ import annotations

import os


def coverage_environment() -> dict[str, str]:
    """The variables of coverage.py; none, unless the tests run under it."""
    return {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}

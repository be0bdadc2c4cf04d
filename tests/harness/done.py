"""The exit code and the output of a command that has ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Done:
    """Its exit code, and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """Lines on stderr for a person: those that are no log lines."""
        return [line for line in self.err.splitlines() if not line.startswith("{")]

    @property
    def logs(self) -> list[dict[str, Any]]:
        """Lines on stderr for a program."""
        return [json.loads(line) for line in self.err.splitlines() if line.startswith("{")]

    def event(self, name: str) -> dict[str, Any]:
        """The one log line of this event."""
        (line,) = [line for line in self.logs if line["event"] == name]
        return line

    @property
    def result(self) -> Any:
        """The JSON document that is all of stdout."""
        return json.loads(self.out)

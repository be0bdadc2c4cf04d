"""The files of `sql/`: what the runner has to know of each, read from its name and header.

A file is plain SQL that psql runs too. Its opening comment says what it finds in the field and, for the runner,
which `lock:` it takes, whether it runs without a `transaction:`, and which table it `drops:`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Final

from reconciler.errors import ReconcilerError

TABLES: Final = ("messages", "twilio_webhook_inbox", "call_events", "sync_state", "account_days")

_FILE = re.compile(r"(?P<rollback>rollback_)?(?P<version>\d{3})_(?P<name>\w+)\.sql")
_HEADER = re.compile(r"^-- (?P<key>lock|transaction|drops): (?P<value>.+)$", re.MULTILINE)
_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)
      | '(?:[^']|'')*' | "(?:[^"]|"")*" | (?P<tag>\$\w*\$).*?(?P=tag)
      | (?P<end>;) | .""",
    re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True)
class Script:
    """One file of `sql/`: plain SQL that psql runs too, with a header for us."""

    filename: str
    text: str

    @cached_property
    def header(self) -> dict[str, str]:
        """What the opening comment says to the runner."""
        return {match["key"]: match["value"] for match in _HEADER.finditer(self.text)}

    @property
    def lock(self) -> str:
        """What it locks, for a person to read; empty if nothing that anybody could meet."""
        lock = self.header["lock"]
        return "" if lock.startswith("none") else lock

    @property
    def locked(self) -> list[str]:
        """The tables that its lock names."""
        return [table for table in TABLES if re.search(rf"\b{table}\b", self.lock)]

    @property
    def transactional(self) -> bool:
        """Whether it can share a transaction with its row in the ledger."""
        return self.header.get("transaction") != "none"

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the file, whatever its line endings."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Migration:
    """A version of the schema: the file that makes it and the one that undoes it."""

    version: int
    name: str
    up: Script
    down: Script


@cache
def load_migrations() -> tuple[Migration, ...]:
    """Every migration in order, from the wheel or, in a checkout, from the sibling `sql/`.

    Raises:
        ReconcilerError: a file is misnamed, a number is missing, or a migration has no rollback.

    """
    packed = files("reconciler").joinpath("sql")
    folder = packed if packed.is_dir() else Path(__file__).parents[2] / "sql"
    ups: dict[int, tuple[str, Script]] = {}
    downs: dict[int, Script] = {}
    for file in folder.iterdir():
        if not file.name.endswith(".sql"):
            continue
        match = _FILE.fullmatch(file.name)
        if match is None:
            raise ReconcilerError(f"sql/{file.name} is not named like a migration")
        script = Script(file.name, file.read_text(encoding="utf-8"))
        if match["rollback"]:
            downs[int(match["version"])] = script
        else:
            ups[int(match["version"])] = (match["name"], script)
    if not ups or sorted(ups) != list(range(len(ups))) or ups.keys() != downs.keys():
        raise ReconcilerError(f"sql/ is incomplete: migrations {sorted(ups)}, rollbacks {sorted(downs)}")
    return tuple(Migration(version, name, up, downs[version]) for version, (name, up) in sorted(ups.items()))


def split(text: str) -> list[str]:
    """The statements of a file without its comments; quotes and dollar quotes are respected."""
    statements = [""]
    for token in _TOKEN.finditer(text):
        if token["end"]:
            statements.append("")
        elif not token["comment"]:
            statements[-1] += token[0]
    return [statement.strip() for statement in statements if statement.strip()]

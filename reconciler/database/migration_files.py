"""The files of `sql/`, with the facts that the runner reads from each file's name and header.

A file is plain SQL that psql runs too. Its opening comment describes the databases in the field that it must handle.
For the runner the comment names:

- `lock:` the lock that the file takes,
- `transaction: none` if the file cannot run in a transaction,
- `drops:` the table that the file drops.
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

TABLES: Final = (
    "messages", "twilio_webhook_inbox", "call_events", "sync_state", "account_days", "twilio_budgets",
    "webhook_alerts", "endpoint_faults",
)  # fmt: skip

_FILE = re.compile(r"(?P<rollback>rollback_)?(?P<version>\d{3})_(?P<name>\w+)\.sql")
_HEADER = re.compile(r"^-- (?P<key>lock|transaction|drops): (?P<value>.+)$", re.MULTILINE)
_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)
      | '(?:[^']|'')*' | "(?:[^"]|"")*" | (?P<tag>\$\w*\$).*?(?P=tag)
      | (?P<end>;) | (?P<space>\s+) | .""",
    re.DOTALL | re.VERBOSE,
)

# Version 0.1.0 wrote the SHA-256 of a whole file, comments included, into the ledger. These are the sums of its files,
# whose statements have not changed since. The list never grows: later versions write `Script.checksum`.
_CHECKSUMS_OF_0_1_0: Final = (
    "c83251bc0d01dd619f1acbdbde163b347a7d046c8cd63b1d1a11649e60b8686d",
    "aa8fc1bc9a9a3185eaca43c4386ca01b57637f1818b45a3fb63a107274292b85",
    "d021e6855da9093917f520c94d005e3c43928be972dc7a6a0b47d5d9207c5675",
    "24ffcbc77b386cce4f17ef7f29cf72501bfa5401928a319e6e7cb49cde3485aa",
    "675f145dfc93d80287f78315e1301648f44107d2d2d1aa831dff302cb5008c14",
    "dfec85f157cf1ddb198e7827ed72cdb972b2ef0f84c2cc145553b2e552de27ed",
    "58129fa46acd102a31bd6fbe41e9e5e87502ebdd6de1f933b6f65379431bc953",
    "f7e7ceb9154cd9e828bcb6b73602ee5e1df7e0cb60e0ba063a66dc69391ca324",
    "fc905f37facd8a2eeb1b7f693b03fc2ccac1f7278ab6bfac972ba5b9460f80d3",
    "cd26f2c0421c02c407776b85c471aa44e3dcc6d6e68207c4d7f4452727437c86",
    "8ba272036036c7c11993dea95d7a91fe27e2b06d1b6171f75d82c0744a2de2f5",
    "c5121c2fc7b2ee936012e029e05cce0f5d5fe3a6e49e3c8dbbc0bf8f8df123d0",
    "399d4cc1f4f7601811fce23159991650fd24bb4607b3821e26d6443067004621",
    "f3903bcb99c929f7af5d54df278b84b87a4f0aa82dcb6544009f321894c7e8f3",
)


@dataclass(frozen=True)
class Script:
    """One file of `sql/`: plain SQL that psql runs too, with a header for the runner."""

    filename: str
    text: str

    @cached_property
    def header(self) -> dict[str, str]:
        """The entries for the runner in the opening comment, by key."""
        return {match["key"]: match["value"] for match in _HEADER.finditer(self.text)}

    @property
    def lock(self) -> str:
        """The lock that the file takes, in words; empty if it cannot block anybody."""
        lock = self.header["lock"]
        return "" if lock.startswith("none") else lock

    @property
    def locked(self) -> list[str]:
        """The tables named in `lock`."""
        return [table for table in TABLES if re.search(rf"\b{table}\b", self.lock)]

    @property
    def transactional(self) -> bool:
        """Whether the file can run in one transaction with its row in the ledger."""
        return self.header.get("transaction") != "none"

    @cached_property
    def checksum(self) -> str:
        """The SHA-256 of the statements, without comments, line endings and indentation."""
        return hashlib.sha256("\n".join(map(_one_line, split(self.text))).encode()).hexdigest()


@dataclass(frozen=True)
class Migration:
    """A version of the schema: the file that makes it, and the file that undoes it."""

    version: int
    name: str
    up: Script
    down: Script

    def is_recorded_as(self, checksum: str) -> bool:
        """Whether `checksum` is the ledger's entry for this file, written by this version or by 0.1.0."""
        return checksum in (self.up.checksum, *_CHECKSUMS_OF_0_1_0[self.version : self.version + 1])


@cache
def load_migrations() -> tuple[Migration, ...]:
    """Return every migration in order, from the wheel or, in a checkout, from the folder `sql/` beside the package.

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
    """Return the statements of a file without comments; semicolons inside quotes and dollar quotes do not split."""
    statements = [""]
    for token in _TOKEN.finditer(text):
        if token["end"]:
            statements.append("")
        elif not token["comment"]:
            statements[-1] += token[0]
    return [statement.strip() for statement in statements if statement.strip()]


def _one_line(statement: str) -> str:
    """Return the statement with each run of white space, except inside quotes, as one space."""
    return "".join(" " if token["space"] else token[0] for token in _TOKEN.finditer(statement))

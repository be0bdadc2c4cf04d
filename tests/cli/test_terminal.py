"""The output on a terminal of 80 columns: few lines, and none that the terminal must wrap."""

from __future__ import annotations

import re
from typing import Any

import pyte
import pytest

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLUMNS = 80


@pytest.fixture
def screen(cli, database_url):
    """Runs `reconcile ARGS` on a terminal of 80 columns; returns its exit code and the lines it shows at the end.

    That the lines are those that were written says that the terminal broke none of them.
    """
    cli.env["DATABASE_URL"] = database_url

    def show(*args: str, **options: Any) -> tuple[int, list[str]]:
        code, seen = cli.on_terminal(*args, COLUMNS=str(COLUMNS), **options)
        terminal = pyte.Screen(COLUMNS, 1_000)
        pyte.Stream(terminal).feed(seen.replace("\n", "\r\n"))
        lines = [line.rstrip() for line in terminal.display]
        while lines and not lines[-1]:
            lines.pop()
        written = [line.rsplit("\r", 1)[-1].rstrip() for line in ESCAPES.sub("", seen).splitlines()]
        assert max(map(len, written), default=0) <= COLUMNS
        # A SID is whole, or shortened on purpose.
        assert not [line for line in lines if re.search(r"\b(AC|CA)[0-9a-f]{5,31}$", line)]
        return code, lines

    return show


def test_a_dry_run_is_summed_up(screen, account, calls):
    """A table by field, five examples of a line each, how many more there are and how to see them."""
    code, lines = screen("--since", "3d", "--dry-run")
    assert code == 1
    assert len(lines) <= 60
    assert "Changes that a run would make; nothing was written" in lines
    assert [" ".join(line.split()) for line in lines if line.startswith("status")] == ["status 300"]
    assert sum(line.startswith("+ CA") for line in lines) == 5
    assert any(line.startswith("… 295 more: `--dry-run --all`") for line in lines)


def test_what_differs_is_named(screen, run, calls, conn):
    """A call that is wrong shows the fields, one that is missing what it is."""
    assert run("--since", "3d").code == 0
    conn.execute("SELECT set_config('reconciler.thaw', 'on', false)")
    conn.execute("DELETE FROM messages WHERE id IN (SELECT min(id) FROM messages)")
    conn.execute(
        "UPDATE messages SET sync_state = 'active', price = -7, observed_at = observed_at - interval '1 hour'"
        " WHERE id IN (SELECT max(id) FROM messages WHERE price IS NOT NULL)"
    )
    code, lines = screen("--since", "3d", "--dry-run")
    assert code == 1
    assert "Missing calls" in lines and "Calls that differ" in lines
    (differing,) = [line for line in lines if line.startswith("~ CA")]
    assert "price -7 → " in differing
    assert not [line for line in lines if line.startswith("…")]


def test_the_daemon_tells_few_lines(screen, calls):
    """A line for each run; of hundreds of gaps a few, and the number of the others."""
    code, lines = screen("run", end_after=(r"hot AC[^\r\n]* read", r"days\s+proven complete"))
    assert code == 0
    assert len(lines) <= 40
    assert sum(" filled, " in line for line in lines) <= 10
    assert not re.search(r"run_id|logger", "".join(lines))


def test_migrations_are_printed_once(screen, cli, empty_database_url):
    """The advice before, each migration when it is applied, and the number at the end."""
    code, (advice, *lines) = screen("migrate", DATABASE_URL=empty_database_url)
    assert code == 0
    assert advice.startswith("Before you migrate: back up")
    told = [line for line in lines if line.startswith("Migration ")]
    assert len(told) == len(set(told)) == len(lines) - 1
    assert re.fullmatch(rf"{len(told)} migrations in \d+\.\d s\.", lines[-1])

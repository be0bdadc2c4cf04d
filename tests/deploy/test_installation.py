"""README's "As a service", typed line by line on a system of its own: it ends with both units at work.

The system is this machine's, with /etc and /opt of its own in a mount namespace. It has no systemd and no person:
stand_ins.py acts for both.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio
from tests.faults.proxy import Proxy

from . import stand_ins

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ACCOUNT, TOKEN, NEXT_TOKEN = "AC" + 32 * "7", "the-first-token", "the-next-token"
PYTHON = "/usr/bin/python3"  # one that every user of the machine may run
PATIENCE = 60.0  # seconds until what must come has come

pytestmark = [
    pytest.mark.slow,  # pip builds and installs the package
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, for a system of its own"),
]


def lines_of(heading: str) -> list[str]:
    """The lines that a part of README shows to be typed."""
    part = README.split(heading, 1)[1]
    part = re.split(r"^## |^\*\*Uninstall" if "Uninstall" not in heading else r"^## ", part, flags=re.MULTILINE)[0]
    return [line.strip() for line in re.findall(r"^(?: {7}|    )(\S.*)$", part, re.MULTILINE)]


INSTALL, UNINSTALL = lines_of("## As a service"), lines_of("**Uninstall:**")


class Shell:
    """A shell on the system of its own; it types one line after another."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.logs = folder / "logs"
        self.logs.mkdir()
        stand_ins.install(folder, PYTHON)
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "bash"], cwd=ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={"PATH": f"{folder}:/usr/sbin:{os.defpath}", "HOME": "/root", "LOGS": str(self.logs), **environment},
        )  # fmt: skip
        # Files in /etc and /opt stay in memory, and vanish with the shell.
        for line in (
            f"mkdir {folder}/memory && mount -t tmpfs none {folder}/memory",
            f"mkdir -p {folder}/memory/{{etc,opt}}/{{new,work}}",
            *(f"mount -t overlay none -o lowerdir=/{name},upperdir={folder}/memory/{name}/new,"
              f"workdir={folder}/memory/{name}/work /{name}" for name in ("etc", "opt")),
            "mkdir -p /etc/systemd/system",
        ):  # fmt: skip
            if self.type(line)[0]:
                pytest.skip("this machine lets nobody mount an overlay")

    def type(self, line: str) -> tuple[int, str]:
        """Type a line; returns its exit code and what it said."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f'{line}\necho "<$?>"\n')
        self._process.stdin.flush()
        said: list[Any] = []
        for answer in self._process.stdout:
            if end := re.search(r"<(\d+)>\n$", answer):
                return int(end[1]), "".join(said)
            said.append(answer)
        raise AssertionError(f"the shell ended at {line}: {''.join(said)}")

    def wait_for(self, unit: str, event: str) -> dict[str, object]:
        """The first such line of a unit's log, once it is there."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            lines = (self.logs / f"{unit}.jsonl").read_text(encoding="utf-8").splitlines()
            for line in lines:
                if line.startswith("{") and line.endswith("}") and (said := json.loads(line))["event"] == event:
                    return said
            time.sleep(0.05)
        raise AssertionError(f"no {event} among {lines[-20:]}")

    def close(self) -> None:
        """End the shell, and the processes that its daemon left."""
        for path in self.logs.glob("*.pid"):
            subprocess.run(["kill", "-KILL", path.read_text(encoding="ascii")], check=False, capture_output=True)
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def account() -> SimulatedAccount:
    """Five hundred calls of the last month."""
    account = SimulatedAccount(ACCOUNT, TOKEN, seed=3)
    now = datetime.now(UTC)
    account.generate(500, now - timedelta(days=30), now - timedelta(hours=1))
    return account


@pytest.fixture
def shell(account, tmp_path, empty_database_url, server_url) -> Iterator[Shell]:
    """With the answers of a person who knows the database and the account."""
    proxy = Proxy(empty_database_url)  # over TCP: the server's own socket may be for its owner alone
    with SimulatedTwilio([account], clock=Clock.running()) as twilio:
        tmp_path.chmod(0o755)
        shell = Shell(tmp_path, {
            "OWNER_URL": make_conninfo(proxy.url), "TYPED_DATABASE_URL": make_conninfo(proxy.url, user="reconciler"),
            "TYPED_TWILIO_AUTH_TOKEN": TOKEN,
            "EDITED": f"TWILIO_ACCOUNT_SID={ACCOUNT}\nTWILIO_BASE_URL={twilio.base_url}\nRECONCILER_HOT_INTERVAL=1s",
        })  # fmt: skip
        try:
            yield shell
        finally:
            shell.close()
    proxy.close()
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        if conn.execute("SELECT 1 FROM pg_roles WHERE rolname = 'reconciler'").fetchone():
            conn.execute("DROP OWNED BY reconciler")
            conn.execute("DROP ROLE reconciler")


def test_the_lines_of_readme_end_with_both_units_at_work(shell, account, empty_database_url):
    """Installed, checked as the service, started, backfilled; a reload takes a rotated token; uninstalled."""
    assert len(INSTALL) == 13
    for line in INSTALL:
        code, said = shell.type(line)
        assert code == 0, f"{line}\n{said}"
        if " check" in line:
            assert "FAIL" not in said
            assert "WARN  daemon" in re.sub(r"WARN +", "WARN  ", said), said
    assert shell.wait_for("reconciler", "daemon.readied")
    assert (shell.logs / "reconciler-backfill@90d.code").read_text(encoding="ascii") == "0"
    with psycopg.connect(empty_database_url) as conn:
        assert conn.execute("SELECT count(*) FROM messages").fetchone() == (account.call_count,)

    account.auth_token = NEXT_TOKEN
    (typed,) = (line for line in INSTALL if "TWILIO_AUTH_TOKEN" in line)
    assert shell.type(f"export TYPED_TWILIO_AUTH_TOKEN={NEXT_TOKEN}; {typed}")[0] == 0
    assert shell.type("sudo systemctl reload reconciler")[0] == 0
    assert "TWILIO_AUTH_TOKEN" in shell.wait_for("reconciler", "configuration.reloaded")["changed"]

    for line in UNINSTALL:
        code, said = shell.type(line)
        assert code == 0, f"{line}\n{said}"
    assert shell.wait_for("reconciler", "daemon.stopped")["unfinished"] == []
    assert shell.type("ls /opt/reconciler /etc/reconciler /etc/systemd/system/reconciler.service")[0] != 0
    assert shell.type("getent passwd reconciler")[0] != 0

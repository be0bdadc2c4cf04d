"""Make docs/terminal.png: `python -m tests.programs.terminal_picture [FILE]`, with Chromium installed (half a minute).

The picture shows the output of the command on a terminal of 80 columns: a backfill of a week from a simulated Twilio,
some of whose webhooks were lost, and its proof. It cannot be made in the first hour of a UTC day: yesterday is not
proven then.
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import re
import subprocess
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

from reconciler import logs
from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.database.transaction import Cursor
from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio, viewer
from reconciler.simulator.webhooks import Channel, webhooks
from reconciler.sync.cursors import AccountCursor, encode, name_account
from tests.bench.servers import database

from .browser import browser

PICTURE: Final = Path(__file__).parents[2] / "docs" / "terminal.png"
COMMAND: Final = Path(sys.executable).with_name("reconcile")
TOKEN: Final = "token-of-the-account"
COLUMNS: Final = 80
LINES: Final = ("reconcile --since 7d", "reconcile once cold > cold.txt", "reconcile report --since 7d")
WIDTH: Final = 720
PAGE: Final = """\
<!doctype html><meta charset="utf-8"><style>{stylesheet}
body {{ margin: 0; padding: 14px 18px; background: {background}; color: {foreground}; width: max-content; }}
pre {{ margin: 0; font: 14px/18px "DejaVu Sans Mono", monospace; }}</style><pre>{code}</pre>
"""


def seen() -> str:
    """Return the screen of a terminal after the commands, with its colours."""
    account = SimulatedAccount("AC" + 8 * "4f7a", TOKEN, seed=4)
    now = datetime.now(UTC)
    account.generate(9_000, now - timedelta(days=8), now)
    channel = Channel(seed=4, loss=0.04, duplicate=0.05, late=0.05, reorder=0.1)
    arriving = channel.deliver(webhooks(account, now - timedelta(days=8), now))
    with (
        tempfile.TemporaryDirectory() as folder,
        database() as url,
        SimulatedTwilio([account], clock=Clock.running()) as twilio,
        closing(db.connect(url, purpose="picture")) as conn,
    ):
        with Store(url) as store:
            # This installation has always looked after the account: calls without webhooks are lost, not imported.
            note = Cursor(name_account(account.sid), encode(AccountCursor(since=now - timedelta(days=8))))
            store.commit_cursor(note, now=now)
        viewer.receive(conn, [delivery for delivery in arriving if delivery.received_at < now])
        while viewer.work(conn, now=now, batch=1_000):
            pass
        environ = {
            "PATH": f"{COMMAND.parent}:{os.defpath}", "HOME": folder, "TERM": "xterm-256color", "LANG": "C.UTF-8",
            "COLUMNS": str(COLUMNS), "DATABASE_URL": url, "TWILIO_ACCOUNT_SID": account.sid,
            "TWILIO_AUTH_TOKEN": TOKEN, "TWILIO_BASE_URL": twilio.base_url, "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        return "\n".join(
            f"\x1b[1;34m$\x1b[0m \x1b[1m{line}\x1b[0m\n{_printed(line, folder, environ)}" for line in LINES
        )


def _printed(line: str, folder: str, environ: dict[str, str]) -> str:
    terminal, theirs = pty.openpty()
    with subprocess.Popen(
        ["sh", "-c", line], cwd=folder, env=environ, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        written = b""
        try:
            while part := os.read(terminal, 65_536):
                written += part
        except OSError:  # Linux says EIO when the other side is gone
            pass
        os.close(terminal)
    assert process.returncode == 0, written.decode()
    # A bar draws itself anew on its line: what it came to is what stays. `?25l` hides the cursor.
    text = re.sub(r"\x1b\[\?25[lh]", "", written.decode().replace("\r\n", "\n"))
    return re.sub(r"[^\n]*\r\x1b\[2K", "", text)


def main() -> None:
    logs.configure(form="json", level="error", pii="masked")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=PICTURE)
    target = parser.parse_args().file
    console = Console(file=io.StringIO(), record=True, width=COLUMNS, force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(seen()), soft_wrap=True)
    page = console.export_html(theme=SVG_EXPORT_THEME, code_format=PAGE)
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        file = Path(folder) / "page.html"
        file.write_text(page, encoding="utf-8")
        chromium.open(file.as_uri(), width=WIDTH)
        chromium.shoot(target, height=chromium.value("document.body.offsetHeight"))
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

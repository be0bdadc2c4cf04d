"""Programs that are measured run in processes of their own: the simulated Twilio, and its clients."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

Environment = Mapping[str, str]

ROOT = Path(__file__).parents[2]
RECONCILE = (sys.executable, "-m", "reconciler")


class Ran(NamedTuple):
    """The resources that a program used from start to end, and the JSON that it printed, if it did."""

    seconds: float
    peak_mib: float
    cpu_seconds: float
    result: dict[str, Any]


def run(command: Sequence[str], environment: Environment, *, may_end_with: Sequence[int] = (0,)) -> Ran:
    """Run a program to its end; it must succeed, or end with one of these codes."""
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=dict(environment), cwd=ROOT, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        with process.stdout:
            output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in may_end_with:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read().decode()[-2000:]}")
    result = json.loads(output) if output.startswith(b"{") else {}
    return Ran(seconds, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime, result)


def server_cpu(url: str) -> float:
    """Return the CPU seconds of all processes of a PostgreSQL on this machine since it started."""
    with psycopg.connect(url) as conn:
        backend = conn.info.backend_pid
        postmaster = int(_stat(backend)[1])
        stats = [(int(part.name), _stat(int(part.name))) for part in Path("/proc").iterdir() if part.name.isdigit()]
        own = [stat for pid, stat in stats if stat and postmaster in (pid, int(stat[1]))]
        # A process that ended is counted with its parent.
        ticks = sum(int(stat[11]) + int(stat[12]) for stat in own) + sum(map(int, _stat(postmaster)[13:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def cpu_of(pids: Iterable[int]) -> float:
    """Return the CPU seconds of these processes of this machine, without those of their children."""
    stats = filter(None, map(_stat, pids))
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def ask_simulator(environment: Environment) -> dict[str, Any]:
    """Return what the simulated Twilio tells of its requests so far, and let it forget them."""
    url = environment["TWILIO_BASE_URL"] + "/_simulator"
    with urllib.request.urlopen(url) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    with urllib.request.urlopen(urllib.request.Request(url, method="DELETE")):
        return found


@contextmanager
def simulated_twilio(
    calls: int,
    days: int,
    delay: str,
    *,
    tls: bool = False,
    now: datetime | None = None,
    options: Sequence[str] = (),
) -> Iterator[Environment]:
    """A simulated account in a process of its own, at the time `now`; yields the environment that points at it.

    The same numbers and the same time make the same account.
    """
    with _certificate() if tls else nullcontext() as certificate:
        command = [sys.executable, "-m", "reconciler.simulator", "--port", "0", "--page-delay", delay]
        # Its time stands still: no price arrives between two runs, so the second has nothing to write.
        command += [
            "--calls",
            str(calls),
            "--days",
            str(days),
            "--clock",
            (now or datetime.now(UTC)).isoformat(),
            *options,
        ]
        if certificate is not None:
            command += ["--tls-cert", str(certificate), "--tls-key", str(certificate)]
        with serving(command) as (environment, _):
            bundle = {} if certificate is None else {"REQUESTS_CA_BUNDLE": str(certificate)}
            yield {**environment, **bundle}


@contextmanager
def serving(command: Sequence[str]) -> Iterator[tuple[Environment, subprocess.Popen[str]]]:
    """A process that prints three settings, then serves; yields an environment with them."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    found: dict[str, str] = {}
    try:
        while len(found) < 3:
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"{' '.join(command)} ended too early")
            if match := re.search(r"(\w+)=(\S+)", line):
                found[match[1]] = match[2].strip("'\"")
        yield {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **found}, process
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def _certificate() -> Iterator[Path]:
    """A self-signed certificate for 127.0.0.1, with its key, in one file."""
    with tempfile.TemporaryDirectory() as folder:
        key, certificate, both = (Path(folder) / name for name in ("key.pem", "cert.pem", "both.pem"))
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
            check=True, capture_output=True,
        )  # fmt: skip
        both.write_bytes(certificate.read_bytes() + key.read_bytes())
        yield both

"""Programs that are measured run in processes of their own: the simulated Twilio, and what talks to it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

Environment = Mapping[str, str]

ROOT = Path(__file__).parents[2]
RECONCILE = (sys.executable, "-m", "reconciler")


class Ran(NamedTuple):
    """The resources that a program used from start to end, and the JSON that it printed, if it did."""

    seconds: float
    peak_mib: float
    result: dict[str, Any]


def run(command: Sequence[str], environment: Environment) -> Ran:
    """Run a program to its end; it must succeed."""
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=dict(environment), cwd=ROOT, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        with process.stdout:
            output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read().decode()[-2000:]}")
    return Ran(seconds, usage.ru_maxrss / 1024, json.loads(output) if output.startswith(b"{") else {})


@contextmanager
def simulated_twilio(calls: int, days: int, delay: str, *, tls: bool = False) -> Iterator[Environment]:
    """A simulated account in a process of its own; yields the environment that points at it."""
    with _certificate() if tls else nullcontext() as certificate:
        command = [sys.executable, "-m", "reconciler.simulator", "--port", "0", "--page-delay", delay]
        # Its time stands still: no price arrives between two runs, so the second has nothing to write.
        command += ["--calls", str(calls), "--days", str(days), "--clock", datetime.now(UTC).isoformat()]
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

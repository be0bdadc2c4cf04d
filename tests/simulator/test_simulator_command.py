"""`python -m reconciler.simulator`, as a person runs it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import requests

from reconciler.simulator.__main__ import duration, main


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_what_to_type_and_ends_on_a_signal(end):
    """The lines on stdout set the variables that reach it; SIGINT and SIGTERM end it with 0."""
    command = [sys.executable, "-m", "reconciler.simulator", "--calls", "200", "--days", "2", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            lines = [process.stdout.readline().strip() for _ in range(3)]
            settings = dict(line.removeprefix("export ").split("=", 1) for line in lines)
            sid = settings["TWILIO_ACCOUNT_SID"]
            answer = requests.get(
                f"{settings['TWILIO_BASE_URL']}/2010-04-01/Accounts/{sid}/Calls.json?PageSize=1000",
                auth=(sid, settings["TWILIO_AUTH_TOKEN"]),
                timeout=10,
            )
            assert 190 <= len(answer.json()["calls"]) <= 200
            process.send_signal(end)
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_a_wrong_argument_is_named():
    """argparse says what is wrong and leaves with 2, and signals reach the process as before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    with pytest.raises(SystemExit, match="2"):
        main(["--page-delay", "soon"])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before
    assert duration("50ms").total_seconds() == 0.05
    assert duration("1.5s").total_seconds() == 1.5

"""`python -m reconciler.simulator`, as a person runs it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
import requests

from reconciler.simulator.__main__ import duration, main, share
from tests.harness.present import present

SIMULATOR = [sys.executable, "-m", "reconciler.simulator"]


@contextmanager
def running(*options, lines=3, **environment):
    """The command at work; yields the process and the variables that it tells one to set."""
    command = [*SIMULATOR, "--port", "0", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **environment}
    ) as process:
        try:
            said = [present(process.stdout).readline().strip() for _ in range(lines)]
            yield process, dict(line.removeprefix("export ").split("=", 1) for line in said)
        finally:
            process.kill()


def ask(settings, path):
    """GET a path below the account, signed in as it."""
    sid = settings["TWILIO_ACCOUNT_SID"]
    url = f"{settings['TWILIO_BASE_URL']}/2010-04-01/{path.format(sid=sid)}"
    return requests.get(url, auth=(sid, settings["TWILIO_AUTH_TOKEN"]), timeout=10)


def refused(*options, **environment):
    """Exit code and stderr of a command that cannot run."""
    env = {**os.environ, **environment}
    done = subprocess.run([*SIMULATOR, *options], check=False, capture_output=True, text=True, timeout=60, env=env)
    return done.returncode, done.stderr


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_what_to_type_and_ends_on_a_signal(end):
    """The lines on stdout set the variables that reach it; SIGINT and SIGTERM end it with 0."""
    with running("--calls", "200", "--days", "2") as (process, settings):
        assert 190 <= len(ask(settings, "Accounts/{sid}/Calls.json?PageSize=1000").json()["calls"]) <= 200
        process.send_signal(end)
        assert process.wait(10) == 0


def test_subaccounts_share_the_calls_and_trunks_are_a_share_of_them():
    """Each account has its part; a fourth line sets RECONCILER_ACCOUNTS."""
    options = ("--calls", "300", "--days", "2", "--subaccounts", "2", "--trunks", "100%", "--clock", "2026-06-10T12:00")
    with running(*options, lines=4) as (_, settings):
        assert "all" == settings["RECONCILER_ACCOUNTS"]
        accounts = ask(settings, "Accounts.json").json()["accounts"]
        listed = [
            ask(settings, f"Accounts/{each['sid']}/Calls.json?PageSize=1000").json()["calls"] for each in accounts
        ]
        assert 3 == len(listed)
        assert all(95 < len(calls) <= 100 for calls in listed)
        assert {"trunking-originating", "trunking-terminating"} == {
            call["direction"] for calls in listed for call in calls
        }


def test_faults_of_all_requests_or_of_a_share():
    """`--fail 503` spoils every request; a share spoils some, the same ones for the same seed."""
    with running("--calls", "10", "--fail", "503") as (_, settings):
        assert [503] * 3 == [ask(settings, "Accounts/{sid}/Calls.json").status_code for _ in range(3)]
    with running("--calls", "10", "--fail", "503:40%", "--fail", "429:0.2") as (_, settings):
        statuses = [ask(settings, f"Accounts/{{sid}}/Calls.json?PageSize={size}").status_code for size in range(1, 60)]
        assert {200, 429, 503} == set(statuses)


def test_large_pages_fail_and_calls_are_recorded():
    """`--fail-pages-above` and `--recorded`."""
    with running("--calls", "30", "--days", "2", "--fail-pages-above", "100", "--recorded", "100%") as (_, settings):
        pages = [ask(settings, f"Accounts/{{sid}}/Calls.json?PageSize={size}") for size in (100, 101)]
        recordings = ask(settings, "Accounts/{sid}/Recordings.json").json()["recordings"]
    assert [200, 500] == [page.status_code for page in pages]
    calls = {call["sid"]: call for call in pages[0].json()["calls"]}
    assert {
        sid
        for sid, call in calls.items()
        if call["status"] == "completed" and not call["parent_call_sid"] and "trunk" not in call["direction"]
    } == {recording["call_sid"] for recording in recordings}


def test_webhooks_reach_the_viewer_and_some_are_lost(conn, database_url):
    """Those of the past days have become rows before it says what to type; with a share lost, some stay behind."""
    options = ("--calls", "400", "--days", "2", "--lose", "30%", "--trunks", "0%")
    with running(*options, DATABASE_URL=database_url) as (_, settings):
        calls = ask(settings, "Accounts/{sid}/Calls.json?PageSize=1000").json()["calls"]
        over = {call["sid"]: call["status"] for call in calls if call["direction"] in ("inbound", "outbound-api")}
        held = dict(conn.execute("SELECT twilio_sid, status FROM messages").fetchall())
    right = sum(held.get(sid) == status for sid, status in over.items())
    assert 0.5 < right / len(over) < 0.85


def test_a_taken_port_is_one_clear_line():
    """Exit code 69, the port, and what to do; no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = refused("--calls", "1", "--port", port)
    assert 69 == code
    assert f"python -m reconciler.simulator: port {port} cannot be used: Address already in use" in said
    assert "--port 0" in said
    assert 1 == len(said.splitlines())


@pytest.mark.parametrize(
    ("options", "environment", "code", "words"),
    [
        (["--lose", "10%"], {"DATABASE_URL": ""}, 78, "set DATABASE_URL"),
        (["--webhooks"], {"DATABASE_URL": "postgresql://u:hush@127.0.0.1:1/x"}, 69, "cannot be reached"),
        (["--webhooks"], {"DATABASE_URL": "postgresql+asyncpg://u:hush@127.0.0.1/x"}, 69, "cannot be read"),
        (["--tls-cert", "/nowhere.pem"], {}, 78, "/nowhere.pem: No such file"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, environment, code, words):
    """One line, an exit code, and no password."""
    ended, said = refused("--calls", "1", "--port", "0", *options, **environment)
    assert (code, 1) == (ended, len(said.splitlines())), said
    assert words in said
    assert "hush" not in said


def test_a_database_without_an_inbox_is_named(empty_database_url):
    """The error says that `reconcile migrate` creates it."""
    code, said = refused("--calls", "1", "--port", "0", "--webhooks", DATABASE_URL=empty_database_url)
    assert (78, True) == (code, "reconcile migrate" in said), said


@pytest.mark.parametrize(
    "options",
    [["--page-delay", "soon"], ["--lose", "120%"], ["--fail", "418"], ["--fail", "503:x"], ["--clock", "noon"]],
)
def test_a_wrong_argument_is_named(options, capsys):
    """argparse says what is wrong and leaves with 2, and signals reach the process as before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before
    assert f"argument {options[0]}" in capsys.readouterr().err


def test_durations_and_shares():
    """The parser reads them as people write them."""
    assert (0.05, 1.5) == (duration("50ms").total_seconds(), duration("1.5s").total_seconds())
    assert (0.15, 0.15, 1.0, 0.0) == (share("15%"), share("0.15"), share("100%"), share("0"))

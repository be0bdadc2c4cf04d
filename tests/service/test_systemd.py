"""The messages to systemd on a real socket, with a path and in the abstract namespace."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.service.systemd import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A socket like systemd's, and its address as in $NOTIFY_SOCKET."""
    name = f"{tmp_path}/notify" if request.param == "path" else f"@reconciler-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        sock.settimeout(30)
        yield sock, name


@pytest.mark.parametrize(
    ("tell", "lines"),
    [
        (lambda n: n.ready("2 jobs"), ["READY=1", "STATUS=2 jobs"]),
        (lambda n: n.status("hot: 3 calls"), ["STATUS=hot: 3 calls"]),
        (lambda n: n.stopping("ends its page"), ["STOPPING=1", "STATUS=ends its page"]),
        (lambda n: n.alive(), ["WATCHDOG=1"]),
        (lambda n: n.extend_timeout(timedelta(minutes=1, microseconds=5)), ["EXTEND_TIMEOUT_USEC=60000005"]),
    ],
)
def test_each_message_is_one_datagram(manager, tell, lines):
    """The assignments of sd_notify(3) are in one datagram, so that systemd applies them together."""
    sock, address = manager
    tell(Notifier.from_environ({"NOTIFY_SOCKET": address}))
    assert lines == sock.recv(4096).decode().split("\n")


def test_a_reload_says_when_it_began(manager):
    """The time is CLOCK_MONOTONIC in microseconds, which Type=notify-reload compares with its own."""
    sock, address = manager
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Notifier(address, None).reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    first, second = sock.recv(4096).decode().split("\n")
    name, _, moment = second.partition("=")
    assert ("RELOADING=1", "MONOTONIC_USEC") == (first, name)
    assert before <= int(moment) <= after


def test_threads_share_a_notifier(manager):
    """One thread feeds the watchdog while another sends the status."""
    sock, address = manager
    notifier = Notifier(address, None)
    threads = [threading.Thread(target=notifier.alive), threading.Thread(target=notifier.status, args=("busy",))]
    for thread in threads:
        thread.start()
    assert {b"WATCHDOG=1", b"STATUS=busy"} == {sock.recv(4096), sock.recv(4096)}
    for thread in threads:
        thread.join()


@given(st.text())
def test_a_status_is_one_line_of_a_message_that_is_never_too_long(text):
    """Foreign text cannot add an assignment, nor make systemd drop READY=1."""
    address = f"@reconciler-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:])
        sock.settimeout(30)
        Notifier(address, None).ready(text * 50)
        message = sock.recv(65536)
    ready, status = message.decode().split("\n")
    assert "READY=1" == ready
    assert status.startswith("STATUS=")
    assert len(message) <= 4096


@pytest.mark.parametrize("text", ["a\nREADY=1", "a\r\nREADY=1", " a \n\n READY=1 "])
def test_a_status_of_several_lines_becomes_one(manager, text):
    """A line break is a space."""
    sock, address = manager
    Notifier(address, None).status(text)
    assert b"STATUS=a READY=1" == sock.recv(4096)


def tell_all(notifier):
    """Send every kind of message."""
    notifier.ready("")
    notifier.status("")
    notifier.reloading()
    notifier.stopping("")
    notifier.alive()
    notifier.extend_timeout(timedelta(seconds=1))


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_a_socket_nothing_is_said(environ, monkeypatch):
    """A process that systemd did not start opens no socket."""
    monkeypatch.setattr(socket, "socket", None)
    tell_all(Notifier.from_environ(environ))


@pytest.mark.parametrize(
    "address", ["/nowhere/notify", "@reconciler-nobody-listens", "relative", "vsock:2:1", "/" * 200]
)
def test_a_socket_that_cannot_be_reached_makes_nothing_fail(address):
    """It is missing, its address is too long, or it is of the kind for virtual machines."""
    tell_all(Notifier(address, None))


def test_a_socket_that_vanishes_makes_nothing_fail(manager):
    """systemd may be re-executed, or the daemon's folder be taken away, while the daemon runs."""
    sock, address = manager
    notifier = Notifier(address, None)
    notifier.alive()
    assert b"WATCHDOG=1" == sock.recv(4096)
    sock.close()
    tell_all(notifier)


def test_a_manager_that_does_not_read_makes_nothing_fail(manager):
    """After a short wait for a full socket the message is dropped."""
    sock, address = manager
    notifier = Notifier(address, None, send_timeout=timedelta(milliseconds=1))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        filler.setblocking(False)
        filler.connect(sock.getsockname())
        with pytest.raises(BlockingIOError):
            while True:
                filler.send(b"STATUS=full")
    tell_all(notifier)
    assert b"STATUS=full" == sock.recv(4096)


@pytest.mark.parametrize("pid", [None, str(os.getpid())], ids=["nobody", "us"])
def test_the_watchdog_is_read(pid):
    """It is for this process, or $WATCHDOG_PID is not set."""
    environ = {"WATCHDOG_USEC": "60000000"} | ({"WATCHDOG_PID": pid} if pid else {})
    assert timedelta(minutes=1) == Notifier.from_environ(environ).watchdog


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "1m"},
        {"WATCHDOG_USEC": "\u0661"},
        {"WATCHDOG_USEC": "9" * 30},
        {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "me"},
        {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": ""},
    ],
)
def test_no_watchdog_or_not_for_us(environ):
    """It is not set, for another process, or not a time."""
    assert Notifier.from_environ(environ).watchdog is None

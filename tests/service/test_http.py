"""The daemon's HTTP server, as monitoring and people use it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from prometheus_client.parser import text_string_to_metric_families

from reconciler.errors import ConfigError
from reconciler.service.http_server import Health, StatusPage, Web
from tests.harness.daemons import eventually
from tests.harness.names import ACCOUNT

FINE = Health(is_alive=True, is_ready=True, reason="fine")


def test_what_is_served(command, twilio, database):
    """Each path, HEAD and an unknown path, also while the database does not answer."""
    daemon = command.daemon()
    daemon.settle()
    eventually(lambda: daemon.get("/readyz")[0] == 200)
    assert daemon.get("/readyz")[1].startswith("leading, hot ")
    assert daemon.get("/healthz") == (200, "alive\n")
    assert daemon.get("/healthz?verbose") == (200, "alive\n")
    assert daemon.get("/nothing")[0] == daemon.get("/metrics/more")[0] == 404
    assert daemon.get("/metrics", "HEAD") == (200, "")
    assert daemon.get("/", "POST")[0] == 501
    database.down()
    daemon.wait_for("lead.dropped")
    families = {family.name for family in text_string_to_metric_families(daemon.get("/metrics")[1])}
    assert families >= {"reconciler_build_info", "reconciler_leading", "reconciler_runs", "reconciler_interval_seconds"}
    assert all(name.startswith("reconciler_") for name in families)
    assert daemon.metric("reconciler_leading") == 0
    assert daemon.metric("reconciler_runs_total", job_name="hot", account=ACCOUNT, outcome="succeeded") >= 1
    assert daemon.metric("reconciler_requests_total", outcome="answered") > 0
    assert daemon.metric("reconciler_last_success_timestamp_seconds", job_name="hot") > 1e9
    assert daemon.get("/healthz") == (200, "alive\n")


def test_without_the_setting_nothing_is_served(command):
    """Off by default."""
    daemon = command.daemon(RECONCILER_HTTP_LISTEN="")
    assert daemon.wait_for("daemon.started")["http_port"] is None
    daemon.wait_for_runs()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_address_is_taken_once(host):
    """Both families do so. A second listener gets an error that names the setting."""
    page = StatusPage(lambda: "", "default-src 'none'", str)
    web = Web((host, 0), health=lambda: FINE, status_page=page)
    web.start()
    try:
        with pytest.raises(ConfigError, match="RECONCILER_HTTP_LISTEN"):
            Web((host, web.port), health=lambda: FINE, status_page=page)
    finally:
        web.close()


@pytest.fixture
def web() -> Iterator[Web]:
    """A server for monitoring, without a daemon."""
    web = Web(("127.0.0.1", 0), health=lambda: FINE, status_page=StatusPage(lambda: "page", "default-src 'none'", str))
    web.start()
    yield web
    web.close()


def get(web: Web, path: str, host: str = "127.0.0.1") -> int:
    """Return the status of an answer."""
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        with sock.makefile("rb") as answer:
            return int(answer.readline().split()[1])


def test_slow_clients_keep_nobody_from_an_answer(web):
    """200 clients send a part of a request, or a byte now and then; none of them occupies a thread."""
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", web.port))) for _ in range(200)]
        for sock in slow:
            sock.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        threads = threading.active_count()
        for _ in range(20):
            begun = time.monotonic()
            assert get(web, "/metrics") == 200
            assert time.monotonic() - begun < 2
            for sock in slow[-50:]:
                sock.sendall(b"x")
        assert threading.active_count() - threads <= 8
        for sock in slow:  # all are closed in the end, the trickling ones too
            sock.settimeout(10)
            with suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        assert get(web, "/healthz") == 200


def test_a_request_without_end(web):
    """Its head is larger than the limit: the connection is closed without an answer."""
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000)
        with suppress(ConnectionResetError):
            assert sock.recv(1) == b""


def test_a_page_that_takes_its_time_keeps_monitoring_from_nothing():
    """With a slow database some clients wait for the page, but /metrics is answered."""
    go_on = threading.Event()
    page = StatusPage(lambda: f"{go_on.wait(20)}", "default-src 'none'", str)
    web = Web(("127.0.0.1", 0), health=lambda: FINE, status_page=page)
    web.start()
    try:
        seen: list[int] = []
        people = [threading.Thread(target=lambda: seen.append(get(web, "/"))) for _ in range(7)]
        for person in people:
            person.start()
        assert [get(web, "/metrics") for _ in range(10)] == [200] * 10
        go_on.set()
        for person in people:
            person.join(20)
        assert 200 in seen
    finally:
        go_on.set()
        web.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9464", 200), ("[::1]:9464", 200), ("localhost", 200), ("LOCALHOST:1", 200),
        (socket.gethostname(), 200), ("evil.example", 421), ("localhost.evil.example:9464", 421), ("", 421),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/metrics"])
def test_a_name_that_is_not_ours(web, host, status, path):
    """DNS rebinding: a web page whose own name leads to this machine reads nothing."""
    assert get(web, path, host) == status


def test_monitoring_may_ask_by_any_name_from_other_machines():
    """The name of a service or of a load balancer is allowed; the status page is not."""
    web = Web(("0.0.0.0", 0), health=lambda: FINE, status_page=StatusPage(lambda: "page", "default-src 'none'", str))
    web.start()
    try:
        assert get(web, "/metrics", "reconciler.monitoring.svc") == 200
        assert get(web, "/", "reconciler.monitoring.svc") == 421
        assert get(web, "/", "10.0.0.7:9464") == 200
    finally:
        web.close()


def test_a_probe_of_http_1_0_names_no_host(web):
    """Its request without a Host header is answered."""
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as sock:
        sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        with sock.makefile("rb") as answer:
            assert answer.read().endswith(b"alive\n")

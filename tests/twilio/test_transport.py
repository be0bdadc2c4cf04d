"""The client under the SDK: the answers it returns, the requests it sends, and TLS."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading

import pytest
import requests

from reconciler.errors import ConnectionLost, TwilioAnswerError, Unavailable
from reconciler.settings import Credentials
from reconciler.simulator import Fault, SimulatedTwilio
from reconciler.simulator.messages import Answer
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.concurrency import Pacer
from reconciler.twilio.transport import Transport
from tests.harness.present import present


@pytest.fixture
def transport(twilio):
    """A client bound to the simulated Twilio."""
    transport = Transport(twilio.base_url, connections=2)
    yield transport
    transport.close()


def test_the_body_is_kept_as_bytes(transport, twilio, plan):
    """Text is for error messages only; neither shows in a repr, where phone numbers would reach the logs."""
    plan.next(Fault("bytes", instead=Answer(body=b'{"to": "+12025550100\xff"}')))
    answer = transport.request("GET", f"{twilio.base_url}/x")
    assert b'{"to": "+12025550100\xff"}' == answer.body
    assert '{"to": "+12025550100�"}' == answer.text
    assert "<Answer 200, 23 bytes>" == repr(answer)


def test_cookies_are_not_kept(transport, twilio, plan):
    """One account's session must not colour the next request."""
    plan.next(Fault("cookie", instead=Answer(body=b"{}", headers=(("Set-Cookie", "session=1; Path=/"),))))
    transport.request("GET", f"{twilio.base_url}/x")
    assert [] == list(transport._session.cookies)


def test_one_connection_serves_many_requests(transport, twilio, plan):
    """Connections are pooled: a handshake for each page would cost more than the page."""
    for _ in range(5):
        transport.request("GET", f"{twilio.base_url}/x")
    assert 1 == twilio.connections


def test_a_proxy_in_the_environment_is_asked(monkeypatch, elsewhere):
    """Companies reach Twilio through a proxy. Its answers are not taken for Twilio's."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    transport = Transport("https://api.twilio.com", connections=1)
    with pytest.raises(ConnectionLost, match=r"^the connection failed: connection refused$") as refused:
        transport.request("GET", "https://api.twilio.com/2010-04-01", auth=("AC", "secret"))
    transport.close()
    assert present(refused.value.hint).startswith(
        "can this machine reach api.twilio.com, by way of https_proxy if it is set?"
    )


@pytest.mark.parametrize("uri", ["ftp://api.twilio.com/", "/2010-04-01", "https://api.twilio.com.evil.example/"])
def test_an_address_that_is_not_ours_is_refused(uri):
    """So is one that only begins like ours."""
    transport = Transport("https://api.twilio.com", connections=1)
    with pytest.raises(TwilioAnswerError, match="refused to send credentials"):
        transport.request("GET", uri)
    transport.close()


def test_the_credentials_go_to_the_hosts_of_both_apis_and_no_other(monkeypatch):
    """Calls to one, alerts to the other, by the rule of region and edge; a third host is refused."""
    asked: list[str] = []

    def request(_: object, method: str, uri: str, **__: object) -> None:
        asked.append(f"{method} {uri}")
        raise requests.ConnectionError

    monkeypatch.setattr(requests.Session, "request", request)
    client = TwilioClient(Credentials("AC1", "AC1", "token", region="ie1", edge="dublin"), pacer=Pacer(1))
    for path in ("/2010-04-01/Accounts/AC1/Calls.json", "/v1/Alerts?PageSize=1"):
        with pytest.raises(ConnectionLost):
            client.get(path)
    with pytest.raises(TwilioAnswerError, match=r"refused to send credentials to insights\.twilio\.com"):
        client._transport.request("GET", "https://insights.twilio.com/v1/Voice")
    client.close()
    assert asked == [
        "GET https://api.dublin.ie1.twilio.com/2010-04-01/Accounts/AC1/Calls.json",
        "GET https://monitor.dublin.ie1.twilio.com/v1/Alerts?PageSize=1",
    ]


def test_ports_that_go_without_saying_are_the_same():
    """https://host and https://host:443 are one origin."""
    transport = Transport("https://127.0.0.1:443", connections=1, read_timeout=0.1)
    with pytest.raises(Unavailable):
        transport.request("GET", "https://127.0.0.1/")
    transport.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_a_certificate_nobody_vouches_for_is_refused(tmp_path, clock):
    """The credentials are not sent, and the message says that it is TLS."""
    names = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-days", "1", *names],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    with SimulatedTwilio([], clock=clock, tls=tls) as twilio:
        transport = Transport(twilio.base_url, connections=1)
        with pytest.raises(Unavailable, match=r"^TLS failed: SSLCertVerificationError$"):
            transport.request("GET", f"{twilio.base_url}/x", auth=("AC", "secret"))
        transport.close()
        assert 0 == len(twilio.requests)


@pytest.mark.parametrize(("status", "words"), [(407, ": it wants a login"), (403, ""), (502, "")])
def test_a_proxy_that_refuses_is_named_with_its_number(monkeypatch, status, words):
    """It wants a login, or does not let us through. Others mend that, so the client asks again."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def refuse() -> None:
            client, _ = proxy.accept()
            with client:
                client.recv(65_536)
                client.sendall(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())

        thread = threading.Thread(target=refuse)
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        transport = Transport("https://api.twilio.com", connections=1)
        with pytest.raises(Unavailable) as refused:
            transport.request("GET", "https://api.twilio.com/2010-04-01", auth=("AC", "secret"))
        thread.join()
        transport.close()
    assert str(refused.value) == f"the proxy in HTTPS_PROXY refused the connection: HTTP {status}{words}"
    assert "NO_PROXY" in str(refused.value.hint)

"""Connections that fail are sorted by SQLSTATE, in any language of the server. No part of a password is shown."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from psycopg.conninfo import make_conninfo

from reconciler.database import connection as db
from reconciler.errors import ConfigError, LoginRefused, Refused, Unavailable
from reconciler.settings import Settings

SECRET = "5ecret"


class GermanServer:
    """Speaks PostgreSQL's protocol as far as its refusal, in German; counts the logins."""

    def __init__(self, sqlstate: str, words: str, *, asks_password: bool = False) -> None:
        self.logins = 0
        self._sqlstate, self._words, self._asks_password = sqlstate, words, asks_password
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"postgresql://viewer:{SECRET}@127.0.0.1:{self._listener.getsockname()[1]}/calls"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with suppress(OSError, struct.error), client, client.makefile("rb") as received:  # it may hang up
                self._refuse(client, received.read)

    def _refuse(self, client: socket.socket, read: Callable[[int], bytes]) -> None:
        length, code = struct.unpack("!II", read(8))
        read(length - 8)
        if code == 80877103:  # SSLRequest
            client.sendall(b"N")
            (length,) = struct.unpack("!I", read(4))
            read(length - 4)
        self.logins += 1
        if self._asks_password:
            client.sendall(b"R" + struct.pack("!II", 8, 3))  # AuthenticationCleartextPassword
            read(1)
            (length,) = struct.unpack("!I", read(4))
            read(length - 4)
        fields = {"S": "SCHWERWIEGEND", "V": "FATAL", "C": self._sqlstate, "M": self._words, "F": "auth.c"}
        body = b"".join(f"{name}{text}\0".encode() for name, text in fields.items()) + b"\0"
        client.sendall(b"E" + struct.pack("!I", len(body) + 4) + body)


@pytest.fixture
def german() -> Iterator[Callable[..., GermanServer]]:
    """Starts servers that refuse everybody."""
    servers: list[GermanServer] = []

    def start(sqlstate: str, words: str, **more: bool) -> GermanServer:
        servers.append(GermanServer(sqlstate, words, **more))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("sqlstate", "words", "kind"),
    [
        ("28P01", "Passwort-Authentifizierung für Benutzer »viewer« fehlgeschlagen", LoginRefused),
        ("28000", "kein pg_hba.conf-Eintrag für Host »127.0.0.1«", LoginRefused),
        ("28000", "Rolle »viewer« hat keine Berechtigung zum Einloggen", LoginRefused),
        ("3D000", "Datenbank »calls« existiert nicht", Refused),
        ("42501", "keine Berechtigung für Datenbank calls", Refused),
        ("42704", "unbekannter Konfigurationsparameter »foo«", ConfigError),
        ("53300", "tut mir leid, schon zu viele Verbindungen", Unavailable),
        ("57P03", "das Datenbanksystem startet", Unavailable),
        ("XXX99", "authentication failed: role does not exist", Unavailable),  # a class of nobody's; words do not count
    ],
)
def test_a_refusal_is_sorted_by_its_sqlstate(german, sqlstate, words, kind):
    """The words are shown, and not read."""
    with pytest.raises(kind) as refused:
        db.connect(german(sqlstate, words).url, purpose="test")
    assert type(refused.value) is kind
    assert words in str(refused.value)


def test_a_password_that_is_refused_after_it_was_sent(german):
    """The error shows nothing that libpq traced of it."""
    server = german("28P01", "Passwort-Authentifizierung fehlgeschlagen", asks_password=True)
    with pytest.raises(Refused, match="fehlgeschlagen") as refused:
        db.connect(server.url, purpose="test")
    assert "DATABASE_URL" in str(refused.value.hint)
    assert SECRET not in f"{refused.value} {refused.value.hint}"


def test_a_refusal_is_asked_about_once(german):
    """Servers lock accounts: the second time the same words cost one login, like any other."""
    server = german("28P01", "einmal")
    for logins in (2, 3):
        with pytest.raises(Refused):
            db.connect(server.url, purpose="test")
        assert server.logins == logins


def test_a_password_that_is_missing(german):
    """libpq itself refuses: the server asked for one."""
    server = german("28P01", "nie gesagt", asks_password=True)
    with pytest.raises(Refused):
        db.connect(server.url.replace(f":{SECRET}", ""), purpose="test")


def test_one_of_two_hosts_that_is_away(german, monkeypatch):
    """It may be the one that would take us: that heals."""
    port = german("28P01", "abgelehnt").url.partition("127.0.0.1:")[2].removesuffix("/calls")
    with pytest.raises(Unavailable):
        db.connect(f"postgresql://viewer:x@127.0.0.1:{port},127.0.0.1:1/calls", purpose="test")


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://u@127.0.0.1:1/c?sslmode=no-verify", "'sslmode'"),
        ("postgresql://u@127.0.0.1:1/c?application_name=x&target_session_attrs=any-one", "'target_session_attrs'"),
        ("postgresql://u@127.0.0.1:1/c?schema=public", "'schema'"),
        ("postgresql://u@127.0.0.1:1/c?connect_timeout=3&pgbouncer=true", "'pgbouncer'"),
        ("host=127.0.0.1 port=1 schem = 'a b'", "'schem'"),
        ("postgresql://u@127.0.0.1:1/c?sslrootcert=/nonexistent", "'sslrootcert'"),
        ("service=nobodys", "'service'"),
        ("host=127.0.0.1 port=1 password=a hush=5ecret", "cannot read it"),
        ("postgresql://u@127.0.0.1:1/c?password=a&hush=5ecret", "cannot read it"),
    ],
)
def test_a_parameter_that_libpq_refuses_is_named(url, named):
    """78, and no value is shown: one of another driver's URL, a misspelt one, a file that is not there."""
    with pytest.raises(ConfigError) as refused:
        db.connect(url, purpose="test")
    assert named in str(refused.value)
    assert not any(word in str(refused.value) for word in ("no-verify", "public", "hush", SECRET))


def test_a_variable_of_libpqs_own_is_to_blame(monkeypatch):
    """The URL is innocent of it."""
    monkeypatch.setenv("PGSSLMODE", "no-verify")
    with pytest.raises(ConfigError, match=r"PG\* variables"):
        db.connect("postgresql://u@127.0.0.1:1/c", purpose="test")


@pytest.mark.parametrize(
    "password", ["top@5ecret", "to/5ecret", "12/5ecret", "to#5ecret", "to?5ecret", "12?p=5ecret", "50%zz5ecret"]
)
def test_a_password_that_is_not_encoded(password):
    """78 before anybody is asked, and how to write it. Nothing of it is shown: it may be taken for host or database."""
    with pytest.raises(ConfigError, match=r"percent-encoded \(@ is %40") as refused:
        Settings.read({"DATABASE_URL": f"postgresql://viewer:{password}@127.0.0.1/calls"})
    assert SECRET not in f"{refused.value} {refused.value.hint}"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://", "postgres://u@[::1]:5432,b:3/c?sslmode=require", "postgresql://%2Fvar%2Frun/x",
        "postgresql://u:p%40q:r@h:54/c", "postgresql:///c?host=/tmp&user=x", "postgresql:///c?application_name=a@b",
        "postgresql://h?user=x", "postgresql:///c?options=-c%20a%3Db",
    ],
)  # fmt: skip
def test_what_libpq_reads_is_read(url):
    """The forms of its documentation."""
    assert Settings.read({"DATABASE_URL": url}).database_url == url


def test_no_database_and_no_role_on_a_real_server(server_url):
    """The same on a server of today."""
    with pytest.raises(Refused, match="no such database"):
        db.connect(make_conninfo(server_url, dbname="no_such_database"), purpose="test")
    with pytest.raises(Refused, match="refused the login"):
        db.connect(make_conninfo(server_url, user="nobody_we_know"), purpose="test")

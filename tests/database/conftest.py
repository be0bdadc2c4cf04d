"""Fixtures for tests of the database: a role without any privilege."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

DATABASES = ("database_url", "field_database_url", "empty_database_url")


@pytest.fixture
def stranger(server_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a role that may log in, owns nothing and may nothing else. What the test gives it goes with it."""
    urls = [request.getfixturevalue(name) for name in DATABASES if name in request.fixturenames]
    name = f"stranger_{secrets.token_hex(4)}"
    role = sql.Identifier(name)
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    yield name
    for url in urls:
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP ROLE {}").format(role))

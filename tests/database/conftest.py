"""What tests of the database share: a role that is nobody's friend."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql


@pytest.fixture
def stranger(server_url: str, database_url: str) -> Iterator[str]:
    """The name of a role that may log in, and owns and may nothing else; in `database_url` its traces are removed."""
    name = f"stranger_{secrets.token_hex(4)}"
    role = sql.Identifier(name)
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    yield name
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
        admin.execute(sql.SQL("DROP ROLE {}").format(role))

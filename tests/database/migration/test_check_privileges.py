"""`reconcile check` on a migrated database tells what the role may not do."""

from __future__ import annotations

import secrets

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from reconciler.database import connection as db
from reconciler.errors import ConfigError
from reconciler.status.check_database import check_schema
from reconciler.status.check_line import Check, Severity


def look(url: str, *, prunes_inbox: bool = False) -> list[Check]:
    """The part of the check that asks the catalog."""
    with db.connect(url, purpose="check") as conn:
        return list(check_schema(conn, prunes_inbox=prunes_inbox))


def test_a_role_that_may_only_read_is_named_with_what_it_lacks(server_url, database_url):
    """Reading is not enough: the check says which grants are missing."""
    role = sql.Identifier(f"reader_{secrets.token_hex(4)}")
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        admin.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}").format(role))
        try:
            found = {c.name: c for c in look(make_conninfo(database_url, user=role.as_string().strip('"')))}
        finally:
            admin.execute(sql.SQL("DROP OWNED BY {}").format(role))
            admin.execute(sql.SQL("DROP ROLE {}").format(role))
    assert found["privileges"].severity is Severity.FAIL
    assert "INSERT on messages" in found["privileges"].detail
    assert "SELECT" not in found["privileges"].detail


def test_the_owner_lacks_nothing(database_url):
    """Whoever migrated may run, and prune."""
    assert {check.severity for check in look(database_url, prunes_inbox=True)} == {Severity.OK}


def test_to_delete_is_asked_for_only_where_a_retention_is_set(database_url):
    """Everything but DELETE: enough to run, and named where webhooks are to go."""
    name = f"runner_{secrets.token_hex(4)}"
    role = sql.Identifier(name)
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        admin.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA public TO {}").format(role))
        admin.execute(sql.SQL("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {}").format(role))
        admin.execute(sql.SQL("REVOKE DELETE ON ALL TABLES IN SCHEMA public FROM {}").format(role))
        try:
            url = make_conninfo(database_url, user=name)
            assert {check.severity for check in look(url)} == {Severity.OK}
            found = {check.name: check for check in look(url, prunes_inbox=True)}
        finally:
            admin.execute(sql.SQL("DROP OWNED BY {}").format(role))
            admin.execute(sql.SQL("DROP ROLE {}").format(role))
    assert found["privileges"].severity is Severity.FAIL
    assert found["privileges"].detail == f"{name} lacks DELETE on twilio_webhook_inbox"


@pytest.mark.parametrize("url", ["a=b", "postgresql://host/db?sslmode", "dbname=x password='secret"])
def test_a_url_libpq_cannot_read_is_a_setting_to_mend(url):
    """It names the setting and quotes nothing."""
    with pytest.raises(ConfigError, match="DATABASE_URL") as refused:
        db.connect(url, purpose="test")
    assert "secret" not in str(refused.value)

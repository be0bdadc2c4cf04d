"""Our tables are listed once, in `migration_files.TABLES`; each other list of them is held against it."""

from __future__ import annotations

import re
from pathlib import Path

from reconciler.database.connection import load_queries
from reconciler.database.migration_files import TABLES
from reconciler.jobs.housekeeping import measured_field
from reconciler.logs import EVENTS

GRANTS = Path(__file__).parents[2] / "deploy" / "grants.sql"


def test_grants_name_each_table():
    """A role that ran deploy/grants.sql may read each of our tables, and none is named that is not ours."""
    granted = re.findall(r"^GRANT SELECT\b[^;]*? ON ([\w, ]+) TO", GRANTS.read_text(encoding="utf-8"), re.MULTILINE)
    named = {name.strip() for names in granted for name in names.split(",")}
    assert named - {"reconciler_migrations"} == set(TABLES)


def test_check_asks_for_privileges_on_each_table():
    """`reconcile check` names a missing SELECT on any of them."""
    lacking = load_queries("check")["lacking_privileges"]
    assert {name for name, _ in re.findall(r"\('(\w+)'(?:::text)?, '(SELECT)'(?:::text)?\)", lacking)} == set(TABLES)


def test_the_log_names_the_size_of_each_table():
    """`tables.measured` has a field for each table, and no other."""
    assert set(EVENTS["tables.measured"]) == {measured_field(table) for table in TABLES}


def test_each_table_is_there(conn):
    """The migrations make all of them."""
    assert conn.execute(
        "SELECT count(*) FROM pg_class WHERE oid = ANY(%s::regclass[])", (list(TABLES),)
    ).fetchone() == (len(TABLES),)

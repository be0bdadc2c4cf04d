"""`reconcile check` on the database: the server, the role's privileges and the schema."""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterator
from datetime import UTC, datetime
from typing import Final

from reconciler.database import connection as db
from reconciler.database import migrate, pooling
from reconciler.database.verify import verify
from reconciler.errors import ExitCode, Refused, SchemaError
from reconciler.settings import Settings
from reconciler.status.check_engine import check_engine
from reconciler.status.check_line import Check, compare_clocks, fail, failed, ok, warn

TESTED: Final = range(14, 19)  # major versions of PostgreSQL
IDS_LOW: Final = 0.9  # of all ids
FEW: Final = 3  # migrations that are named one by one

_QUERIES = db.load_queries("check")


def check_database(url: str, settings: Settings) -> Generator[Check, None, bool]:
    """Yield the lines about the database; after a failure, checks that depend on it are left out.

    The generator returns whether the state of the work can be read.

    Raises:
        ReconcilerError: the database does not answer as it should.

    """
    with db.connect(url, purpose="check") as conn:
        yield from check_server(conn)
        yield from check_creators(conn)
        yield from check_ids(conn)
        found = []
        try:
            for line in check_schema(conn, pruned=pruned_tables(settings)):
                found.append(line)
                yield line
        except SchemaError as exc:  # the ledger does not fit this version's files
            yield failed("schema", exc)
            return False
        if any(check.hint for check in found):
            return False
        yield from check_engine(conn, settings)
        return True


def check_server(conn: db.Connection) -> Iterator[Check]:
    """Check the server: its version, whether it takes writes, our session's time zone, and its clock."""
    version = (conn.info.parameter_status("server_version") or "?").split()[0]
    way = ", through a pooler that keeps sessions together" if pooling.is_pooled(conn) else ""
    server = f"PostgreSQL {version}, database {conn.info.dbname}{way}"
    with db.translated():
        before = datetime.now(UTC)
        row = conn.execute(_QUERIES["session"]).fetchone()
        after = datetime.now(UTC)
    assert row
    is_read_only, zone, servers_zone, clock = row
    if is_read_only:
        hint = "does DATABASE_URL name a standby? else reset default_transaction_read_only"
        yield fail("database", f"{server}, takes no writes", hint, ExitCode.UNAVAILABLE)
    elif conn.info.server_version // 10_000 not in TESTED:
        tested = f"{TESTED[0]} to {TESTED[-1]}"
        yield warn("database", server, f"this version was tested with PostgreSQL {tested}")
    else:
        yield ok("database", server)
    if zone != "UTC":
        yield fail(
            "time zone",
            f"our session runs in {zone}, not UTC",
            "a pooler or proxy drops SET: connect to PostgreSQL directly",
            ExitCode.CONFIG,
        )
    else:
        beside = "" if servers_zone in ("UTC", "Etc/UTC") else f"; the server's own, {servers_zone}, does not matter"
        yield ok("time zone", f"our session runs in UTC{beside}")
    yield compare_clocks("database clock", "the database's", before - clock, clock - after)


def check_creators(conn: db.Connection) -> Iterator[Check]:
    """Check that nobody else may create functions, operators and tables where our search_path finds them."""
    with db.translated():
        creators = conn.execute(_QUERIES["creators"], {}).fetchall()
    if not creators:
        yield ok("schema owner", "only the owners may create objects in it")
    for kind, name, role in creators:
        detail = f"{role} may create functions in schema {name}, and PostgreSQL could take one for another's"
        if kind == "DATABASE":
            detail = f"{role} may create schemas, and one named {conn.info.user} would be searched before all others"
        yield warn("schema owner", detail, f"as its owner: REVOKE CREATE ON {kind} {name} FROM {role}")


def check_ids(conn: db.Connection) -> Iterator[Check]:
    """Check that the sequences of our tables have ids left."""
    with db.translated():
        sequences = conn.execute(_QUERIES["id_sequences"]).fetchall()
    low = [sequence for sequence in sequences if sequence[3] >= sequence[4] * IDS_LOW]
    for table, sequence, of_type, last, limit in low:
        detail = f"{last / limit:.0%} of the ids of {table} are used: {last:,} of {limit:,}"
        hint = f"ALTER SEQUENCE {sequence} AS bigint"
        if of_type != "bigint":
            hint = f"{hint}; ALTER TABLE {table} ALTER COLUMN id TYPE bigint (this rewrites the table: plan a window)"
        if last >= limit:
            yield fail("ids", f"{detail}; no row can be added", hint, ExitCode.CONFIG)
        else:
            yield warn("ids", detail, hint)
    if sequences and not low:
        yield ok("ids", f"less than {IDS_LOW:.0%} of each table's are used")


def pruned_tables(settings: Settings) -> list[str]:
    """Return the tables that housekeeping deletes from."""
    retentions = {"twilio_webhook_inbox": settings.inbox_retention, "call_events": settings.events_retention}
    return [table for table, retention in retentions.items() if retention is not None]


def check_schema(conn: db.Connection, *, pruned: Collection[str] = ()) -> Iterator[Check]:
    """Check the ledger against the files, the catalog against our schema, and the privileges of the role.

    `pruned`: the tables that housekeeping deletes from.
    """
    if lacking := _lacking(conn, "unreadable"):
        yield lacking
        return
    try:
        behind = migrate.behind(conn)
    except Refused as exc:
        yield failed("row security", exc)
        return
    if behind:
        names = ", ".join(f"{m.version:03}" for m in behind)
        if len(behind) > FEW and behind[-1].version - behind[0].version + 1 == len(behind):
            names = f"{behind[0].version:03} to {behind[-1].version:03}"
        yield warn("schema", f"migrations not yet applied: {names}", "run `reconcile migrate`")
        migrate.plan(conn)
        yield ok("privileges", "the role may apply the migrations")
        return
    findings = verify(conn)
    for finding in findings:
        detail = f"{finding.subject} {finding.problem}"
        yield fail("schema", detail, finding.hint, ExitCode.CONFIG)
    if not findings:
        yield ok("schema", "the ledger, tables, indexes and triggers agree with the migration files")
    yield _lacking(conn, "lacking_privileges", pruned=list(pruned)) or ok(
        "privileges", f"{conn.info.user} has every privilege that a run needs"
    )


def _lacking(conn: db.Connection, query: str, **params: list[str]) -> Check | None:
    """Return a line about the privileges that the role lacks; None if it lacks none."""
    with db.translated():
        lacking = [what for (what,) in conn.execute(_QUERIES[query], params)]
    if not lacking:
        return None
    detail = f"{conn.info.user} lacks {', '.join(lacking)}"
    pruned = [table for table in params.get("pruned", ()) if f"DELETE on {table}" in lacking]
    hint = f"as the owner of messages: {_grant(conn.info.user, pruned=pruned)}"
    return fail("privileges", detail, hint, ExitCode.REFUSED)


def _grant(role: str, *, pruned: Collection[str] = ()) -> str:
    """The command that runs deploy/grants.sql for `role`; there the grant to delete from a table is a comment."""
    edits = [f"s/^-- GRANT DELETE ON {table} /GRANT DELETE ON {table} /" for table in pruned]
    if role != "reconciler":
        quoted = role if re.fullmatch("[a-z_][a-z0-9_]*", role) else '"{}"'.format(role.replace('"', '""'))
        edits.append(f"s/TO reconciler/TO {quoted}/")
    if not edits:
        return 'psql "$DATABASE_URL" < deploy/grants.sql'
    script = ";".join(edits)
    return f"sed '{script}' deploy/grants.sql | psql \"$DATABASE_URL\""

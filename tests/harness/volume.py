"""A database that has seen many calls: the last days are the same at every size, and only the history before differs.

A statement whose cost depends on what it returns therefore costs the same at every size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from psycopg import sql

from reconciler.database import connection as db

RECENT: Final = 3_000  # calls of the last days, at every size
RECENT_DAYS: Final = 35
HISTORY_DAYS: Final = 365  # of all other calls, before the recent days
OPEN: Final = RECENT // 100  # open calls; as many ended calls are not frozen, half of them by a webhook alone
UNSETTLED: Final = 4 * RECENT // 1000  # rows of the inbox: each of the four unsettled states has as many

_PORTION: Final = 500_000  # rows that one statement writes

# The call number n: the greatest number is the newest call, and its age is 0.
_CALLS: Final = """
    SELECT
        n, %(calls)s - n AS age, 'CA' || md5(n::text) AS call_sid,
        'AC' || lpad(to_hex(1 + mod(n, %(accounts)s)), 32, '0') AS account_sid,
        %(now)s::timestamptz - interval '1 day' * CASE WHEN %(calls)s - n < %(recent)s
            THEN %(recent_days)s * (%(calls)s - n)::float8 / %(recent)s
            ELSE %(recent_days)s
                + %(history_days)s * (%(calls)s - n - %(recent)s)::float8 / greatest(1, %(calls)s - %(recent)s)
        END AS at
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
"""
_MESSAGES: Final = f"""
    INSERT INTO messages (
        twilio_sid, account_sid, direction, status, from_number, to_number, duration, price, price_unit, start_time,
        end_time, date_created, last_event_time, is_final, finalized_at, sync_state, observed_at, observed_via,
        created_at, updated_at
    )
    SELECT
        call_sid, account_sid, 'inbound', CASE WHEN is_open THEN 'ringing' ELSE 'completed' END,
        '+15005550100', '+15005550101', CASE WHEN NOT is_open THEN 60 END, CASE WHEN is_frozen THEN -0.0085 END, 'USD',
        at AT TIME ZONE 'UTC', CASE WHEN NOT is_open THEN at AT TIME ZONE 'UTC' + interval '1 min' END, at, at,
        NOT is_open, CASE WHEN NOT is_open THEN at + interval '1 min' END,
        CASE WHEN is_frozen THEN 'frozen' ELSE 'active' END, at + interval '2 min',
        CASE WHEN is_frozen OR mod(age, 200) = 1 THEN 'rest' ELSE 'webhook' END, at AT TIME ZONE 'UTC', at
    FROM (
        SELECT
            *, age < %(recent)s AND mod(age, 100) = 0 AS is_open, age >= %(recent)s OR mod(age, 100) > 1 AS is_frozen
        FROM ({_CALLS}) AS numbered
    ) AS calls
"""
_EVENTS: Final = f"""
    INSERT INTO call_events (
        call_sid, event_type, event_status, event_time, created_at, source, payload, dedupe_key
    )
    SELECT
        call_sid, 'call.created', 'completed', at, at + interval '2 min',
        (ARRAY['webhook', 'reconcile_hot', 'reconcile_cold'])[1 + mod(n, 3)], '{{"frozen": "complete"}}',
        call_sid || ':created'
    FROM ({_CALLS}) AS numbered
"""
_WEBHOOKS: Final = f"""
    INSERT INTO twilio_webhook_inbox (
        source, event_type, call_sid, dedupe_key, payload, received_at, processing_status, processed_at
    )
    SELECT
        'twilio_voice', 'call-status', call_sid, call_sid || ':completed',
        jsonb_build_object(
            'CallSid', call_sid, 'AccountSid', account_sid, 'CallStatus', 'completed', 'From', '+15005550100',
            'To', '+15005550101', 'CallDuration', '60'
        ),
        at,
        CASE WHEN age >= %(recent)s THEN 'completed' ELSE coalesce(
            (ARRAY['pending', 'processing', 'failed', 'dead_letter'])[mod(age, 1000) + 1], 'completed'
        ) END,
        at
    FROM ({_CALLS}) AS numbered
"""
_DAYS: Final = """
    INSERT INTO account_days (account_sid, day, listed, held, digest, is_complete, verified_at)
    SELECT 'AC' || lpad(to_hex(a), 32, '0'), %(now)s::date - d, 1, 1, '', true, %(now)s
    FROM generate_series(1, %(accounts)s::int) AS a, generate_series(1, %(days)s::int) AS d
"""
_JOBS: Final = """
    INSERT INTO sync_state (job_name, cursor, last_success_at, updated_at)
    SELECT
        kind || ':AC' || lpad(to_hex(a), 32, '0'), jsonb_build_object('since', %(now)s::timestamptz), %(now)s, %(now)s
    FROM generate_series(1, %(accounts)s::int) AS a, unnest(ARRAY['hot', 'warm', 'cold', 'account']) AS kind
"""
_ALERTS: Final = """
    INSERT INTO webhook_alerts (hour, account_sid, error_code, url, alerts, call_sids)
    SELECT
        date_trunc('hour', %(now)s::timestamptz, 'UTC') - h * interval '1 hour', 'AC' || lpad(to_hex(a), 32, '0'),
        '11200', 'https://viewer.example/hook', 1, '{}'
    FROM generate_series(1, least(10, %(accounts)s::int)) AS a, generate_series(1, 24 * 90) AS h
"""
_FAULTS: Final = """
    INSERT INTO endpoint_faults (account_sid, address, endpoint_sid, kind, fault, url, first_seen, last_seen)
    SELECT
        'AC' || lpad(to_hex(a), 32, '0'), '+1500555' || f, 'PN' || f, 'phone_number', 'no_callback', '',
        %(now)s, %(now)s
    FROM generate_series(1, least(10, %(accounts)s::int)) AS a, generate_series(1, 100) AS f
"""
_BY_CALL: Final = {"messages": _MESSAGES, "call_events": _EVENTS, "twilio_webhook_inbox": _WEBHOOKS}


def fill(conn: db.Connection, calls: int, *, now: datetime, accounts: int = 3, is_fast: bool = False) -> None:
    """Fill an empty, migrated database with `calls` calls, as many events and webhooks, and analyse it.

    `is_fast`: write no WAL, and build the indexes at the end. The tables are UNLOGGED then.
    """
    values = {
        "now": now, "calls": calls, "accounts": accounts, "recent": RECENT, "recent_days": RECENT_DAYS,
        "history_days": HISTORY_DAYS, "days": min(12_500, 35 + calls // (20 * accounts)),
    }  # fmt: skip
    conn.execute("SET session_replication_role = replica")  # the rows are as the triggers would leave them
    for table, statement in _BY_CALL.items():
        with _without_indexes(conn, table, is_fast=is_fast):
            for first in range(1, calls + 1, _PORTION):
                last = min(calls, first + _PORTION - 1)
                conn.execute(statement.encode(), {**values, "first": first, "last": last})
    for statement in (_DAYS, _JOBS, _ALERTS, _FAULTS):
        conn.execute(statement.encode(), values)
    conn.execute("SET session_replication_role = origin")
    conn.execute("VACUUM ANALYZE" if is_fast else "ANALYZE")


@contextmanager
def _without_indexes(conn: db.Connection, table: str, *, is_fast: bool) -> Iterator[None]:
    if not is_fast:
        yield
        return
    name = sql.Identifier(table)
    keys = conn.execute(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = %s::regclass AND contype IN ('p', 'u')",
        (table,),
    ).fetchall()
    for key, _ in keys:
        conn.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(name, sql.Identifier(key)))
    indexes = conn.execute(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = %s::regclass",
        (table,),
    ).fetchall()
    for index, _ in indexes:
        conn.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(index)))
    conn.execute(sql.SQL("ALTER TABLE {} SET UNLOGGED").format(name))
    yield
    conn.execute("SET maintenance_work_mem = '1GB'")
    for key, definition in keys:
        alter = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} ").format(name, sql.Identifier(key))
        conn.execute(alter + sql.SQL(definition))
    for _, definition in indexes:
        conn.execute(definition.encode())

-- name: ledger_exists
SELECT to_regclass('reconciler_migrations') IS NOT NULL;

-- name: create_ledger
CREATE TABLE IF NOT EXISTS reconciler_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,       -- SHA-256 of the statements that were applied
    applied_at timestamptz NOT NULL,
    duration   interval NOT NULL
);

-- name: drop_ledger
DROP TABLE IF EXISTS reconciler_migrations;

-- name: ledger
SELECT version, name, checksum FROM reconciler_migrations ORDER BY version;

-- name: record
INSERT INTO reconciler_migrations (version, name, checksum, applied_at, duration)
VALUES (%(version)s, %(name)s, %(checksum)s, %(applied_at)s, %(duration)s);

-- name: forget
DELETE FROM reconciler_migrations WHERE version = %(version)s;

-- name: try_lock
SELECT pg_try_advisory_lock(hashtextextended('reconciler:migrate', 0));

-- name: unlock
SELECT pg_advisory_unlock(hashtextextended('reconciler:migrate', 0));

-- name: set_setting
-- For this session, unless the transaction is rolled back; returns the value it had.
SELECT current_setting(%(name)s), set_config(%(name)s, %(value)s, false);

-- name: read_only
SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean;

-- name: lacking_privileges
-- What the role would need before anything is changed: rather told at once than after half of the files.
SELECT current_user,
       CASE
           WHEN current_schema() IS NULL THEN 'a schema to create tables in (search_path names none that exists)'
           ELSE 'CREATE on schema ' || quote_ident(current_schema())
       END
WHERE current_schema() IS NULL OR NOT has_schema_privilege(current_schema(), 'CREATE')
UNION ALL
SELECT current_user, format('ownership of table %%s, which belongs to %%s', c.oid::regclass, quote_ident(pg_get_userbyid(c.relowner)))
FROM unnest(%(tables)s::text[]) AS t (name)
JOIN pg_class AS c ON c.oid = to_regclass(t.name)
WHERE NOT pg_has_role(c.relowner, 'USAGE');

-- name: existing
-- Those of the tables that are there.
SELECT name FROM unnest(%(tables)s::text[]) AS t (name) WHERE to_regclass(name) IS NOT NULL;

-- name: would_be_dropped
-- Whether the table is there and its rollback file would drop it: messages only if 000 made it.
SELECT to_regclass(%(table)s) IS NOT NULL
   AND (%(table)s <> 'messages'
        OR coalesce(obj_description(to_regclass(%(table)s), 'pg_class') LIKE 'Created by reconciler%%', false));

-- name: blockers
-- Who may be in the way: transactions that hold a lock on one of the tables, then others that are merely open (an
-- index built CONCURRENTLY waits for every older snapshot), the oldest first.
SELECT a.pid,
       coalesce(nullif(a.application_name, ''), a.backend_type, 'unknown application') AS application,
       coalesce(a.usename, 'the server itself') AS role,
       coalesce(a.state, 'in a transaction') AS state
FROM pg_stat_activity AS a
JOIN pg_locks AS l ON l.pid = a.pid AND l.granted
WHERE a.datname = current_database()
  AND a.pid <> pg_backend_pid()
  AND (l.locktype = 'virtualxid'
       OR l.relation IN (SELECT to_regclass(name) FROM unnest(%(tables)s::text[]) AS t (name)))
GROUP BY a.pid, application, role, a.state, a.xact_start
ORDER BY bool_or(l.locktype = 'relation') DESC, a.xact_start NULLS LAST, a.pid
LIMIT 1;

-- name: expected_objects
-- What each migration leaves behind. Indexes of 004 and before may have other names in the field, but 002 and 004
-- create theirs beside them.
VALUES
    (0, 'column', 'messages', 'id', 'integer NOT NULL'),
    (0, 'default', 'messages', 'id', ''),
    (0, 'unique', 'messages', 'id', ''),
    (0, 'column', 'messages', 'conversation_id', 'integer'),
    (0, 'column', 'messages', 'twilio_sid', 'character varying(100) NOT NULL'),
    (0, 'unique', 'messages', 'twilio_sid', ''),
    (0, 'column', 'messages', 'direction', 'character varying(50) NOT NULL'),
    (0, 'column', 'messages', 'status', 'character varying(50) NOT NULL'),
    (0, 'column', 'messages', 'duration', 'integer'),
    (0, 'column', 'messages', 'price_unit', 'character varying(10)'),
    (0, 'column', 'messages', 'start_time', 'timestamp without time zone'),
    (0, 'column', 'messages', 'end_time', 'timestamp without time zone'),
    (0, 'column', 'messages', 'recording_url', 'text'),
    (0, 'column', 'messages', 'parent_call_sid', 'character varying(100)'),
    (0, 'column', 'messages', 'metadata', 'jsonb'),
    (0, 'column', 'messages', 'created_at', 'timestamp without time zone'),

    (1, 'column', 'twilio_webhook_inbox', 'id', 'bigint NOT NULL'),
    (1, 'default', 'twilio_webhook_inbox', 'id', ''),
    (1, 'unique', 'twilio_webhook_inbox', 'id', ''),
    (1, 'column', 'twilio_webhook_inbox', 'source', 'text NOT NULL'),
    (1, 'column', 'twilio_webhook_inbox', 'event_type', 'text NOT NULL'),
    (1, 'column', 'twilio_webhook_inbox', 'call_sid', 'character varying(100)'),
    (1, 'column', 'twilio_webhook_inbox', 'recording_sid', 'character varying(100)'),
    (1, 'column', 'twilio_webhook_inbox', 'dedupe_key', 'character varying(255) NOT NULL'),
    (1, 'unique', 'twilio_webhook_inbox', 'dedupe_key', ''),
    (1, 'column', 'twilio_webhook_inbox', 'payload', 'jsonb NOT NULL'),
    (1, 'column', 'twilio_webhook_inbox', 'received_at', 'timestamp with time zone'),
    (1, 'default', 'twilio_webhook_inbox', 'received_at', ''),
    (1, 'column', 'twilio_webhook_inbox', 'processed_at', 'timestamp with time zone'),
    (1, 'column', 'twilio_webhook_inbox', 'processing_status', 'text NOT NULL'),
    (1, 'default', 'twilio_webhook_inbox', 'processing_status', ''),
    (1, 'column', 'twilio_webhook_inbox', 'error', 'text'),
    (1, 'column', 'twilio_webhook_inbox', 'retry_count', 'integer NOT NULL'),
    (1, 'default', 'twilio_webhook_inbox', 'retry_count', ''),

    (2, 'column', 'call_events', 'id', 'bigint NOT NULL'),
    (2, 'default', 'call_events', 'id', ''),
    (2, 'unique', 'call_events', 'id', ''),
    (2, 'column', 'call_events', 'call_sid', 'character varying(100) NOT NULL'),
    (2, 'column', 'call_events', 'event_type', 'text NOT NULL'),
    (2, 'column', 'call_events', 'event_status', 'text'),
    (2, 'column', 'call_events', 'event_time', 'timestamp with time zone NOT NULL'),
    (2, 'column', 'call_events', 'created_at', 'timestamp with time zone'),
    (2, 'column', 'call_events', 'source', 'text NOT NULL'),
    (2, 'column', 'call_events', 'payload', 'jsonb NOT NULL'),
    (2, 'index', 'call_events', 'idx_call_events_call_sid', ''),
    (2, 'index', 'call_events', 'idx_call_events_event_type', ''),
    (2, 'index', 'call_events', 'idx_call_events_created_at', ''),
    (2, 'index', 'call_events', 'idx_call_events_source', ''),

    (3, 'column', 'sync_state', 'job_name', 'text NOT NULL'),
    (3, 'unique', 'sync_state', 'job_name', ''),
    (3, 'column', 'sync_state', 'cursor', 'jsonb NOT NULL'),
    (3, 'default', 'sync_state', 'cursor', ''),
    (3, 'column', 'sync_state', 'last_success_at', 'timestamp with time zone'),
    (3, 'column', 'sync_state', 'last_error_at', 'timestamp with time zone'),
    (3, 'column', 'sync_state', 'last_error', 'text'),
    (3, 'column', 'sync_state', 'updated_at', 'timestamp with time zone'),

    (4, 'column', 'messages', 'updated_at', 'timestamp with time zone NOT NULL'),
    (4, 'default', 'messages', 'updated_at', ''),
    (4, 'column', 'messages', 'last_event_time', 'timestamp with time zone'),
    (4, 'column', 'messages', 'is_final', 'boolean NOT NULL'),
    (4, 'default', 'messages', 'is_final', ''),
    (4, 'column', 'messages', 'finalized_at', 'timestamp with time zone'),
    (4, 'column', 'messages', 'sync_state', 'text NOT NULL'),
    (4, 'default', 'messages', 'sync_state', ''),
    (4, 'trigger', 'messages', 'messages_touch_updated_at', 'messages_touch_updated_at'),
    (4, 'index', 'messages', 'idx_messages_active_calls', ''),
    (4, 'index', 'messages', 'idx_messages_updated_at', ''),
    (4, 'index', 'messages', 'idx_messages_parent_call_sid', ''),

    (5, 'column', 'messages', 'from_number', 'text NOT NULL'),
    (5, 'column', 'messages', 'to_number', 'text NOT NULL'),
    (5, 'column', 'messages', 'price', 'numeric'),

    (6, 'column', 'messages', 'account_sid', 'text'),
    (6, 'column', 'messages', 'answered_by', 'text'),
    (6, 'column', 'messages', 'date_created', 'timestamp with time zone'),
    (6, 'column', 'messages', 'observed_at', 'timestamp with time zone'),
    (6, 'column', 'messages', 'observed_via', 'text'),
    (6, 'column', 'messages', 'gone_at', 'timestamp with time zone'),
    (6, 'column', 'call_events', 'dedupe_key', 'text'),
    (6, 'column', 'call_events', 'run_id', 'text'),
    (6, 'constraint', 'messages', 'messages_observed_via_known', ''),
    (6, 'function', '', 'call_status_rank(text)', 'smallint'),
    (6, 'function', '', 'call_status_is_final(text)', 'boolean'),

    (7, 'trigger', 'messages', 'messages_guard_1_frozen', 'messages_keep_frozen'),
    (7, 'trigger', 'messages', 'messages_guard_2_final', 'messages_keep_final'),
    (7, 'trigger', 'messages', 'messages_guard_3_make_final', 'messages_make_final'),
    (7, 'trigger', 'messages', 'messages_guard_4_keep_open', 'messages_keep_open'),

    (9, 'constraint', 'messages', 'messages_final_agrees', ''),

    (10, 'index', 'call_events', 'call_events_dedupe_key', 'unique'),
    (10, 'index', 'messages', 'messages_open', ''),
    (10, 'index', 'messages', 'messages_unfrozen', ''),
    (10, 'index', 'twilio_webhook_inbox', 'webhook_inbox_unprocessed', ''),

    (11, 'trigger', 'call_events', 'call_events_append_only', 'call_events_refuse_change'),
    (11, 'trigger', 'call_events', 'call_events_retention', 'call_events_refuse_change'),

    (12, 'column', 'account_days', 'account_sid', 'text NOT NULL'),
    (12, 'column', 'account_days', 'day', 'date NOT NULL'),
    (12, 'unique', 'account_days', 'account_sid, day', ''),
    (12, 'column', 'account_days', 'listed', 'integer NOT NULL'),
    (12, 'column', 'account_days', 'held', 'integer NOT NULL'),
    (12, 'column', 'account_days', 'digest', 'text NOT NULL'),
    (12, 'column', 'account_days', 'billed', 'integer'),
    (12, 'column', 'account_days', 'differences', 'jsonb NOT NULL'),
    (12, 'default', 'account_days', 'differences', ''),
    (12, 'column', 'account_days', 'is_complete', 'boolean NOT NULL'),
    (12, 'column', 'account_days', 'verified_at', 'timestamp with time zone NOT NULL'),

    (13, 'index', 'messages', 'messages_account_time', ''),
    (13, 'index', 'messages', 'messages_freezable', ''),
    (13, 'index', 'twilio_webhook_inbox', 'webhook_inbox_unsettled', ''),
    (13, 'index', 'twilio_webhook_inbox', 'webhook_inbox_completed', '');

-- name: actual_objects
-- What is there, in the same words, and what is wrong with it ('' if nothing).
WITH ours AS (
    SELECT name, to_regclass(name)::oid AS oid FROM unnest(%(tables)s::text[]) AS t (name)
)
SELECT 'column' AS kind, o.name AS relation, a.attname::text AS name,
       format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END AS definition,
       '' AS problem
FROM ours AS o
JOIN pg_attribute AS a ON a.attrelid = o.oid AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'default', o.name, a.attname, '', ''
FROM ours AS o
JOIN pg_attribute AS a ON a.attrelid = o.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE a.atthasdef OR a.attidentity <> ''
UNION ALL
SELECT 'unique', o.name, string_agg(a.attname, ', ' ORDER BY k.position), '', ''
FROM ours AS o
JOIN pg_index AS x ON x.indrelid = o.oid AND x.indisunique AND x.indisvalid AND x.indpred IS NULL
CROSS JOIN LATERAL unnest(x.indkey::smallint[]) WITH ORDINALITY AS k (attnum, position)
JOIN pg_attribute AS a ON a.attrelid = o.oid AND a.attnum = k.attnum
GROUP BY o.name, x.indexrelid
UNION ALL
SELECT 'index', o.name, c.relname, CASE WHEN x.indisunique THEN 'unique' ELSE '' END,
       CASE WHEN x.indisvalid AND x.indisready THEN '' ELSE 'is invalid: its build was interrupted' END
FROM ours AS o
JOIN pg_index AS x ON x.indrelid = o.oid
JOIN pg_class AS c ON c.oid = x.indexrelid
UNION ALL
SELECT 'constraint', o.name, k.conname, '', CASE WHEN k.convalidated THEN '' ELSE 'is not validated' END
FROM ours AS o
JOIN pg_constraint AS k ON k.conrelid = o.oid AND k.contype = 'c'
UNION ALL
SELECT 'trigger', o.name, t.tgname, p.proname, CASE WHEN t.tgenabled IN ('O', 'A') THEN '' ELSE 'is disabled' END
FROM ours AS o
JOIN pg_trigger AS t ON t.tgrelid = o.oid AND NOT t.tgisinternal
JOIN pg_proc AS p ON p.oid = t.tgfoid
UNION ALL
SELECT 'function', '', p.proname || '(' || oidvectortypes(p.proargtypes) || ')',
       format_type(p.prorettype, NULL), ''
FROM pg_proc AS p
WHERE p.proname LIKE 'call\_status\_%%' AND pg_function_is_visible(p.oid);

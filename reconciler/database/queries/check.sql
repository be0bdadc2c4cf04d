-- What `reconcile check` asks the database about itself.

-- name: session
-- Whether we may write, our time zone and the server's own, and the server's clock.
SELECT
    current_setting('transaction_read_only')::boolean, current_setting('TimeZone'),
    (SELECT reset_val FROM pg_settings WHERE name = 'TimeZone'), clock_timestamp()

-- name: unreadable
-- What keeps the role from even looking at the schema.
SELECT 'USAGE on schema ' || quote_ident(nspname)
FROM pg_namespace
WHERE nspname = ANY (
        -- As the role has it: our session leaves out what it may not use.
        SELECT unnest(string_to_array(replace(reset_val, '"', ''), ', ')) FROM pg_settings WHERE name = 'search_path'
    )
    AND NOT has_schema_privilege(oid, 'USAGE')
UNION ALL
SELECT 'SELECT on reconciler_migrations'
WHERE NOT coalesce(has_table_privilege(to_regclass('reconciler_migrations'), 'SELECT'), true)

-- name: lacking_privileges
-- What the role may not do that a run does; deploy/grants.sql grants just that.
SELECT privilege || ' on ' || name
FROM (
    VALUES
        ('messages', 'SELECT'), ('messages', 'INSERT'),
        ('call_events', 'SELECT'), ('call_events', 'INSERT'),
        ('twilio_webhook_inbox', 'SELECT'), ('twilio_webhook_inbox', 'INSERT'),
        ('sync_state', 'SELECT'), ('sync_state', 'INSERT'), ('sync_state', 'UPDATE'),
        ('account_days', 'SELECT'), ('account_days', 'INSERT'), ('account_days', 'UPDATE')
) AS needed (name, privilege)
WHERE NOT has_table_privilege(name, privilege)
UNION ALL
-- Only where a retention is set does anything ever go.
SELECT 'DELETE on twilio_webhook_inbox'
WHERE %(prunes_inbox)s AND NOT has_table_privilege('twilio_webhook_inbox', 'DELETE')
UNION ALL
-- Of these tables only some columns are ours to change.
SELECT 'UPDATE on ' || name || ' (' || string_agg(column_name, ', ') || ')'
FROM (
    VALUES
        ('messages', ARRAY[
            'status', 'from_number', 'to_number', 'duration', 'price', 'price_unit', 'start_time', 'end_time',
            'parent_call_sid', 'account_sid', 'answered_by', 'date_created', 'last_event_time', 'is_final',
            'finalized_at', 'sync_state', 'observed_at', 'observed_via', 'gone_at', 'updated_at'
        ]),
        ('twilio_webhook_inbox', ARRAY['processing_status', 'processed_at', 'error'])
) AS needed (name, columns)
CROSS JOIN LATERAL unnest(columns) AS c (column_name)
WHERE NOT has_column_privilege(name, column_name, 'UPDATE')
GROUP BY name
UNION ALL
-- Ids come from sequences, which a serial column does not open to those who may insert, and an identity does.
SELECT 'USAGE on sequence ' || pg_get_serial_sequence(name, 'id')
FROM unnest(ARRAY['messages', 'call_events', 'twilio_webhook_inbox']) AS t (name)
JOIN pg_attribute AS a ON a.attrelid = to_regclass(name) AND a.attname = 'id' AND a.attidentity = ''
WHERE NOT has_sequence_privilege(pg_get_serial_sequence(name, 'id'), 'USAGE')
UNION ALL
SELECT 'EXECUTE on function ' || signature
FROM unnest(ARRAY['call_status_rank(text)', 'call_status_is_final(text)']) AS f (signature)
WHERE NOT has_function_privilege(signature, 'EXECUTE')
UNION ALL
-- Pages are staged in a temporary table.
SELECT 'TEMPORARY on database ' || current_database()
WHERE NOT has_database_privilege(current_database(), 'TEMPORARY')

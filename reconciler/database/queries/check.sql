-- The questions of `reconcile check` about the database itself.

-- name: session
-- Whether the session is read-only, its time zone, the server's default time zone, and the server's clock.
SELECT
    pg_catalog.current_setting('transaction_read_only')::boolean, pg_catalog.current_setting('TimeZone'),
    (SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'TimeZone'::text), pg_catalog.clock_timestamp()

-- name: unreadable
-- The privileges whose absence keeps the role from reading the schema at all.
SELECT 'USAGE on schema ' || pg_catalog.quote_ident(nspname::text)
FROM pg_catalog.pg_namespace
WHERE nspname::text = ANY (
        -- The role's own search_path: our session's leaves out the schemas that the role may not use.
        SELECT pg_catalog.unnest(pg_catalog.string_to_array(pg_catalog.replace(reset_val, '"', ''), ', '))
        FROM pg_catalog.pg_settings WHERE name = 'search_path'::text
    )
    AND NOT pg_catalog.has_schema_privilege(oid, 'USAGE'::text)
UNION ALL
SELECT 'SELECT on reconciler_migrations'
WHERE NOT coalesce(
    pg_catalog.has_table_privilege(pg_catalog.to_regclass('reconciler_migrations')::oid, 'SELECT'::text), true
)

-- name: lacking_privileges
-- The privileges that a run needs and the role lacks; deploy/grants.sql grants exactly these.
SELECT privilege || ' on '::text || name
FROM (
    VALUES
        ('messages'::text, 'SELECT'::text), ('messages', 'INSERT'),
        ('call_events', 'SELECT'), ('call_events', 'INSERT'),
        ('twilio_webhook_inbox', 'SELECT'), ('twilio_webhook_inbox', 'INSERT'),
        ('sync_state', 'SELECT'), ('sync_state', 'INSERT'), ('sync_state', 'UPDATE'),
        ('account_days', 'SELECT'), ('account_days', 'INSERT'), ('account_days', 'UPDATE'),
        ('twilio_budgets', 'SELECT'), ('twilio_budgets', 'INSERT'), ('twilio_budgets', 'UPDATE'),
        ('webhook_alerts', 'SELECT'), ('webhook_alerts', 'INSERT'), ('webhook_alerts', 'DELETE'),
        ('endpoint_faults', 'SELECT'), ('endpoint_faults', 'INSERT'), ('endpoint_faults', 'UPDATE'),
        ('endpoint_faults', 'DELETE')
) AS needed (name, privilege)
WHERE NOT pg_catalog.has_table_privilege(name, privilege)
UNION ALL
-- Rows of these tables are deleted only if a retention is set.
SELECT 'DELETE on '::text || name
FROM pg_catalog.unnest(%(pruned)s::text[]) AS p (name)
WHERE NOT pg_catalog.has_table_privilege(name, 'DELETE'::text)
UNION ALL
-- In these tables the program changes only some columns.
SELECT 'UPDATE on '::text || name || ' ('::text || pg_catalog.string_agg(column_name, ', '::text) || ')'::text
FROM (
    VALUES
        ('messages'::text, ARRAY[
            'status', 'from_number', 'to_number', 'duration', 'price', 'price_unit', 'start_time', 'end_time',
            'parent_call_sid', 'account_sid', 'answered_by', 'date_created', 'last_event_time', 'is_final',
            'finalized_at', 'sync_state', 'observed_at', 'observed_via', 'gone_at', 'other_fields', 'updated_at',
            'recording_url'
        ]),
        ('twilio_webhook_inbox', ARRAY['processing_status', 'processed_at', 'error'])
) AS needed (name, columns)
CROSS JOIN LATERAL pg_catalog.unnest(columns) AS c (column_name)
WHERE NOT pg_catalog.has_column_privilege(name, column_name, 'UPDATE'::text)
GROUP BY name
UNION ALL
-- Ids come from sequences. INSERT on the table suffices for an identity column, but not for a serial one.
SELECT 'USAGE on sequence '::text || pg_catalog.pg_get_serial_sequence(name, 'id')
FROM pg_catalog.unnest(ARRAY['messages', 'call_events', 'twilio_webhook_inbox']::text[]) AS t (name)
JOIN pg_catalog.pg_attribute AS a
    ON a.attrelid = pg_catalog.to_regclass(name)::oid AND a.attname::text = 'id'::text AND a.attidentity::text = ''::text
WHERE NOT pg_catalog.has_sequence_privilege(pg_catalog.pg_get_serial_sequence(name, 'id'), 'USAGE'::text)
UNION ALL
SELECT 'EXECUTE on function '::text || signature
FROM pg_catalog.unnest(ARRAY['call_status_rank(text)', 'call_status_is_final(text)']::text[]) AS f (signature)
WHERE NOT pg_catalog.has_function_privilege(signature, 'EXECUTE'::text)
UNION ALL
-- Pages are staged in a temporary table.
SELECT 'TEMPORARY on database '::text || pg_catalog.current_database()::text
WHERE NOT pg_catalog.has_database_privilege(pg_catalog.current_database()::text, 'TEMPORARY'::text)

-- name: creators
-- The roles that may create functions and operators in the schemas of our search_path. The owners of the schema and of
-- messages, superusers and our own role are left out. PUBLIC is everybody, the default up to PostgreSQL 14.
--
-- Where search_path has "$user", PostgreSQL searches a schema with the name of our role first. The roles that may create
-- schemas in the database could make it.
WITH places AS (
    SELECT 'SCHEMA'::text AS kind, n.nspname AS name, n.nspowner AS owner,
           coalesce(n.nspacl, pg_catalog.acldefault('n'::"char", n.nspowner)) AS acl
    FROM pg_catalog.pg_namespace AS n
    WHERE n.nspname::text = ANY (pg_catalog.current_schemas(false)::text[]) AND n.nspname::text !~ '^pg_'::text
    UNION ALL
    SELECT 'DATABASE', d.datname, d.datdba, coalesce(d.datacl, pg_catalog.acldefault('d'::"char", d.datdba))
    FROM pg_catalog.pg_database AS d
    WHERE d.datname = pg_catalog.current_database()
        AND EXISTS (
            SELECT FROM pg_catalog.pg_settings
            WHERE name = 'search_path'::text AND reset_val LIKE '%%"$user"%%'::text
        )
        AND pg_catalog.to_regnamespace(pg_catalog.quote_ident(current_user::text)) IS NULL
)
SELECT p.kind, pg_catalog.quote_ident(p.name::text), coalesce(pg_catalog.quote_ident(r.rolname::text), 'PUBLIC')
FROM places AS p
CROSS JOIN LATERAL pg_catalog.aclexplode(p.acl) AS acl
LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = acl.grantee
LEFT JOIN pg_catalog.pg_class AS m ON m.oid = pg_catalog.to_regclass('messages')::oid
WHERE acl.privilege_type = 'CREATE'::text
    AND acl.grantee <> p.owner AND acl.grantee IS DISTINCT FROM m.relowner
    AND NOT coalesce(r.rolsuper OR r.rolname = current_user, false)
ORDER BY 1 DESC, 2, 3

-- name: id_sequences
-- The last id of each of our tables, and the largest possible one for its sequence and the type of its column. A
-- sequence that the role may not read is left out.
SELECT
    t.name, s.oid::regclass::text, pg_catalog.format_type(a.atttypid, a.atttypmod), seen.last_value,
    least(
        seen.max_value,
        CASE pg_catalog.format_type(a.atttypid, NULL) WHEN 'integer'::text THEN 2147483647 WHEN 'smallint'::text THEN 32767 END
    )
FROM pg_catalog.unnest(ARRAY['messages', 'call_events', 'twilio_webhook_inbox']::text[]) AS t (name)
JOIN pg_catalog.pg_attribute AS a
    ON a.attrelid = pg_catalog.to_regclass(t.name)::oid AND a.attname::text = 'id'::text
LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
JOIN pg_catalog.pg_class AS s
    ON s.relkind::text = 'S'::text
    AND (
        s.oid = pg_catalog.pg_get_serial_sequence(t.name, 'id')::regclass::oid
        -- A sequence that does not belong to the column, but that the column's default uses.
        OR s.oid IN (
            SELECT e.refobjid FROM pg_catalog.pg_depend AS e
            WHERE e.classid = 'pg_attrdef'::regclass::oid AND e.objid = d.oid AND e.refclassid = 'pg_class'::regclass::oid
        )
    )
JOIN pg_catalog.pg_namespace AS n ON n.oid = s.relnamespace
JOIN pg_catalog.pg_sequences AS seen ON seen.schemaname = n.nspname AND seen.sequencename = s.relname
WHERE seen.last_value IS NOT NULL

-- Conditions under which a database cannot be migrated, or a role cannot work with it.

-- name: read_only
SELECT pg_catalog.pg_is_in_recovery() OR pg_catalog.current_setting('transaction_read_only')::boolean;

-- name: hidden_tables
-- The tables on which row-level security applies to this role, so that it may hide rows. Superusers and roles with
-- BYPASSRLS are exempt; so is the owner, unless the table has FORCE.
SELECT t.name
FROM pg_catalog.unnest(%(tables)s::text[]) AS t (name)
WHERE pg_catalog.row_security_active(pg_catalog.to_regclass(t.name)::oid);

-- name: kinds
-- The given names that exist, and their kinds: 'r' is an ordinary table.
SELECT t.name, c.relkind::text
FROM pg_catalog.unnest(%(tables)s::text[]) AS t (name)
JOIN pg_catalog.pg_class AS c ON c.oid = pg_catalog.to_regclass(t.name)::oid;

-- name: taken_names
-- Relations that have the name of an index of ours, and are no index of its table. CREATE INDEX IF NOT EXISTS would then
-- make nothing, without an error. An index stands in the schema of its table.
SELECT c.oid::regclass::text
FROM unnest(%(indexes)s::text[], %(of_tables)s::text[]) AS wanted (name, of_table)
LEFT JOIN pg_catalog.pg_class AS t ON t.oid = pg_catalog.to_regclass(wanted.of_table)::oid
JOIN pg_catalog.pg_namespace AS s ON s.oid = t.relnamespace OR (t.oid IS NULL AND s.nspname = pg_catalog.current_schema())
JOIN pg_catalog.pg_class AS c ON c.relnamespace = s.oid AND c.relname::text = wanted.name
LEFT JOIN pg_catalog.pg_index AS x ON x.indexrelid = c.oid
WHERE x.indrelid IS DISTINCT FROM t.oid OR x.indrelid IS NULL
ORDER BY 1;

-- name: lacking_privileges
-- The privileges that the role lacks for the migrations, checked before the first change, not after half of the files.
SELECT
    current_user::text,
    CASE
        WHEN pg_catalog.current_schema() IS NULL
            THEN 'a schema to create tables in (search_path names none that exists)'
        ELSE 'CREATE on schema ' || pg_catalog.quote_ident(pg_catalog.current_schema()::text)
    END
WHERE pg_catalog.current_schema() IS NULL
    OR NOT pg_catalog.has_schema_privilege(pg_catalog.current_schema()::text, 'CREATE'::text)
UNION ALL
SELECT
    current_user::text,
    pg_catalog.format(
        'ownership of table %%s, which belongs to %%s',
        c.oid::regclass, pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)::text)
    )
FROM pg_catalog.unnest(%(tables)s::text[]) AS t (name)
JOIN pg_catalog.pg_class AS c ON c.oid = pg_catalog.to_regclass(t.name)::oid
WHERE NOT pg_catalog.pg_has_role(c.relowner, 'USAGE'::text);

-- name: made_by_strangers
-- Objects in the schemas of our search_path that PostgreSQL could take for ours or for its own. These are tables and
-- functions with our names, functions that our files call, and operators with PostgreSQL's names. They count if their
-- owner could not change our tables anyway. Owners who could: those of messages, of the schema and of the database,
-- superusers, and roles that the current role is a member of.
WITH schemas AS (
    SELECT n.oid, n.nspname, n.nspowner
    FROM pg_catalog.pg_namespace AS n
    WHERE n.nspname::text = ANY (pg_catalog.current_schemas(false)::text[]) AND n.nspname::text !~ '^pg_'::text
),
found AS (
    SELECT 'table ' || c.oid::regclass::text AS what, c.oid, c.relowner AS owner, s.nspowner
    FROM schemas AS s
    JOIN pg_catalog.pg_class AS c ON c.relnamespace = s.oid AND c.relname::text = ANY (%(tables)s::text[])
    UNION ALL
    SELECT 'function ' || p.oid::regprocedure::text, p.oid, p.proowner, s.nspowner
    FROM schemas AS s
    JOIN pg_catalog.pg_proc AS p ON p.pronamespace = s.oid AND p.proname::text = ANY (%(functions)s::text[])
    UNION ALL
    SELECT 'operator ' || o.oid::regoperator::text, o.oid, o.oprowner, s.nspowner
    FROM schemas AS s
    JOIN pg_catalog.pg_operator AS o ON o.oprnamespace = s.oid
    WHERE EXISTS (
        SELECT FROM pg_catalog.pg_operator AS known
        WHERE known.oprname = o.oprname AND known.oprnamespace = 'pg_catalog'::regnamespace::oid
    )
)
SELECT f.what, pg_catalog.quote_ident(r.rolname::text)
FROM found AS f
JOIN pg_catalog.pg_roles AS r ON r.oid = f.owner
JOIN pg_catalog.pg_roles AS us ON us.rolname = current_user
JOIN pg_catalog.pg_database AS d ON d.datname = pg_catalog.current_database()
LEFT JOIN pg_catalog.pg_class AS m ON m.oid = pg_catalog.to_regclass('messages')::oid
WHERE NOT r.rolsuper
    AND f.owner <> us.oid AND f.owner <> d.datdba AND f.owner <> f.nspowner AND f.owner IS DISTINCT FROM m.relowner
    AND (us.rolsuper OR NOT pg_catalog.pg_has_role(f.owner, 'USAGE'::text))
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS e WHERE e.objid = f.oid AND e.deptype::text = 'e'::text)
ORDER BY 1;

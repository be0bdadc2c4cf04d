-- What keeps a database from being migrated, or a role from working with it.

-- name: read_only
SELECT pg_catalog.pg_is_in_recovery() OR pg_catalog.current_setting('transaction_read_only')::boolean;

-- name: hidden_tables
-- The tables that row-level security applies to for this role: its policies hide rows, whatever they say. The owner,
-- a superuser and a role with BYPASSRLS are exempt, the owner unless the table says FORCE.
SELECT t.name
FROM pg_catalog.unnest(%(tables)s::text[]) AS t (name)
WHERE pg_catalog.row_security_active(pg_catalog.to_regclass(t.name)::oid);

-- name: kinds
-- Those of the names that are taken, and what they are: 'r' is an ordinary table.
SELECT t.name, c.relkind::text
FROM pg_catalog.unnest(%(tables)s::text[]) AS t (name)
JOIN pg_catalog.pg_class AS c ON c.oid = pg_catalog.to_regclass(t.name)::oid;

-- name: lacking_privileges
-- What the role would need before anything is changed: rather told at once than after half of the files.
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
-- Tables and functions with names of ours, functions with names that our files call, and operators with names of
-- PostgreSQL's: in a schema that our statements look in, PostgreSQL may take them for the ones that are meant. They are
-- in the way if their owner is none of those that could change our tables anyway: the owners of messages, of the schema
-- and of the database, superusers, and roles that the current one is a member of.
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

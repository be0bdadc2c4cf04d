-- name: ledger_exists
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class
    WHERE oid = pg_catalog.to_regclass('reconciler_migrations')::oid AND relkind::text = 'r'::text
);

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
SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('reconciler:migrate', 0));

-- name: unlock
SELECT pg_catalog.pg_advisory_unlock(pg_catalog.hashtextextended('reconciler:migrate', 0));

-- name: set_setting
-- Set a parameter for this session, unless the transaction is rolled back; return its previous value.
SELECT pg_catalog.current_setting(%(name)s), pg_catalog.set_config(%(name)s, %(value)s, false);

-- name: existing
-- The given tables that exist.
SELECT name FROM pg_catalog.unnest(%(tables)s::text[]) AS t (name) WHERE pg_catalog.to_regclass(name) IS NOT NULL;

-- name: would_be_dropped
-- Whether the table exists and its rollback file would drop it: messages only if 000 made it.
SELECT pg_catalog.to_regclass(%(table)s) IS NOT NULL
   AND (%(table)s::text <> 'messages'::text
        OR coalesce(
            pg_catalog.obj_description(pg_catalog.to_regclass(%(table)s)::oid, 'pg_class')
            LIKE 'Created by reconciler%%'::text, false
        ));

-- name: blockers
-- The sessions that may block a migration, oldest first. Transactions that hold a lock on one of the tables come before
-- other open ones: an index built CONCURRENTLY waits for every older snapshot.
SELECT a.pid,
       coalesce(CASE WHEN a.application_name <> ''::text THEN a.application_name END, a.backend_type,
                'unknown application') AS application,
       coalesce(a.usename::text, 'the server itself') AS role,
       coalesce(a.state, 'in a transaction') AS state
FROM pg_catalog.pg_stat_activity AS a
JOIN pg_catalog.pg_locks AS l ON l.pid = a.pid AND l.granted
WHERE a.datname = pg_catalog.current_database()
  AND a.pid <> pg_catalog.pg_backend_pid()
  AND (l.locktype = 'virtualxid'::text
       OR l.relation IN (
           SELECT pg_catalog.to_regclass(name)::oid FROM pg_catalog.unnest(%(tables)s::text[]) AS t (name)
       ))
GROUP BY a.pid, application, role, a.state, a.xact_start
ORDER BY pg_catalog.bool_or(l.locktype = 'relation'::text) DESC, a.xact_start NULLS LAST, a.pid
LIMIT 1;

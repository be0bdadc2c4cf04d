-- The engine's schema: procrastinate's own tables, and our note of which daemon each of its workers is.
-- Statements name the schema, because the search_path of our sessions does not.

-- name: exists
-- From the catalog: everybody may read that.
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname::text = 'reconciler_engine'::text AND c.relname::text = 'applied_files'::text
)

-- name: create_schema
CREATE SCHEMA IF NOT EXISTS reconciler_engine

-- name: create_ledger
-- The files of procrastinate that made the schema. Its newer versions bring more of them.
CREATE TABLE IF NOT EXISTS reconciler_engine.applied_files (
    filename text PRIMARY KEY,
    applied_at timestamptz NOT NULL
)

-- name: create_daemons
-- The daemon behind each worker. The row goes with the worker's: when it stops, or when it has been silent for too long.
CREATE TABLE IF NOT EXISTS reconciler_engine.daemons (
    worker_id bigint PRIMARY KEY REFERENCES reconciler_engine.procrastinate_workers ON DELETE CASCADE,
    host text NOT NULL,
    process integer NOT NULL,
    since timestamptz NOT NULL,
    slots integer NOT NULL,
    hot_at timestamptz
)

-- name: enter_schema
-- For the files of procrastinate, which name no schema.
SELECT pg_catalog.set_config('search_path', 'reconciler_engine, pg_temp', true)

-- name: applied
SELECT filename FROM reconciler_engine.applied_files ORDER BY filename

-- name: note_applied
INSERT INTO reconciler_engine.applied_files (filename, applied_at)
SELECT name, %(now)s FROM pg_catalog.unnest(%(filenames)s::text[]) AS f (name)
ON CONFLICT (filename) DO NOTHING

-- name: drop_schema
DROP SCHEMA IF EXISTS reconciler_engine CASCADE

-- name: create_expected
-- The objects of the schema as they were made, in PostgreSQL's words; `verify` compares the catalog with them.
CREATE TABLE IF NOT EXISTS reconciler_engine.expected_objects (
    kind text NOT NULL,
    relation text NOT NULL,
    name text NOT NULL,
    definition text NOT NULL,
    PRIMARY KEY (kind, relation, name)
)

-- name: has_expected
SELECT pg_catalog.to_regclass('reconciler_engine.expected_objects') IS NOT NULL

-- name: expected
SELECT kind, relation, name, definition FROM reconciler_engine.expected_objects ORDER BY kind, relation, name

-- name: forget_expected
-- Except those of our own tables.
DELETE FROM reconciler_engine.expected_objects
WHERE relation <> ALL ('{applied_files,daemons,expected_objects}'::text[])

-- name: note_expected
INSERT INTO reconciler_engine.expected_objects (kind, relation, name, definition)
SELECT o.kind, o.relation, o.name, o.definition
FROM ROWS FROM (
    pg_catalog.unnest(%(kinds)s::text[]), pg_catalog.unnest(%(relations)s::text[]), pg_catalog.unnest(%(names)s::text[]),
    pg_catalog.unnest(%(definitions)s::text[])
) AS o (kind, relation, name, definition)

-- name: create_reference
-- For a moment, to see what a new schema would be like.
CREATE SCHEMA reconciler_engine_reference

-- name: enter_reference
SELECT pg_catalog.set_config('search_path', 'reconciler_engine_reference, pg_temp', true)

-- name: tables
-- The tables of the schema that the session is in.
SELECT c.relname::text FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname::text = pg_catalog.current_schema()::text AND c.relkind::text = 'r'::text

-- name: types_and_keys
-- Of the schema that the session is in, the objects that catalog.sql leaves out: kind, table, name, definition.
SELECT 'type' AS kind, '' AS relation, t.typname::text AS name,
       CASE t.typtype::text
           WHEN 'e'::text THEN (
               SELECT pg_catalog.string_agg(e.enumlabel::text, ', '::text ORDER BY e.enumsortorder)
               FROM pg_catalog.pg_enum AS e WHERE e.enumtypid = t.oid
           )
           ELSE (
               SELECT pg_catalog.string_agg(
                   a.attname::text || ' '::text || pg_catalog.format_type(a.atttypid, a.atttypmod), ', '::text
                   ORDER BY a.attnum
               )
               FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
           )
       END AS definition
FROM pg_catalog.pg_type AS t
JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_class AS c ON c.oid = t.typrelid
WHERE n.nspname::text = pg_catalog.current_schema()::text
    AND (t.typtype::text = 'e'::text OR c.relkind::text = 'c'::text)
UNION ALL
SELECT 'key', c.relname::text, k.conname::text,
       pg_catalog.replace(
           pg_catalog.pg_get_constraintdef(k.oid), pg_catalog.quote_ident(n.nspname::text) || '.'::text, ''
       )
FROM pg_catalog.pg_constraint AS k
JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname::text = pg_catalog.current_schema()::text AND k.contype::text = ANY ('{f,p,u}'::text[])

-- name: lacking_privileges
-- The privileges that a daemon of the fleet needs and the role lacks; deploy/grants.sql grants them.
SELECT 'USAGE on schema reconciler_engine'::text
WHERE NOT pg_catalog.has_schema_privilege('reconciler_engine'::text, 'USAGE'::text)
UNION ALL
SELECT needed.privilege || ' on reconciler_engine.'::text || c.relname::text
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
CROSS JOIN pg_catalog.unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS needed (privilege)
WHERE n.nspname::text = 'reconciler_engine'::text
    AND (
        c.relname::text <> ALL ('{applied_files,expected_objects}'::text[]) OR needed.privilege = 'SELECT'::text
    )
    -- CASE: PostgreSQL may ask the function first, which fails for an index.
    AND CASE c.relkind::text WHEN 'r'::text THEN NOT pg_catalog.has_table_privilege(c.oid, needed.privilege) ELSE false END
UNION ALL
SELECT 'USAGE on sequence reconciler_engine.'::text || c.relname::text
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname::text = 'reconciler_engine'::text
    AND CASE c.relkind::text WHEN 'S'::text THEN NOT pg_catalog.has_sequence_privilege(c.oid, 'USAGE'::text) ELSE false END
UNION ALL
SELECT 'DELETE on sync_state'::text
WHERE NOT pg_catalog.has_table_privilege('sync_state'::text, 'DELETE'::text)

-- name: workers
-- The daemons that work, oldest first: host, process, begin, slots, seconds since the last sign of life, and the names
-- of the runs under way.
SELECT
    w.id, d.host, d.process, d.since, d.slots,
    greatest(0::double precision, EXTRACT(epoch FROM pg_catalog.clock_timestamp() - w.last_heartbeat)::double precision),
    d.hot_at,
    coalesce((
        SELECT pg_catalog.array_agg(j.queueing_lock ORDER BY j.priority DESC, j.id)
        FROM reconciler_engine.procrastinate_jobs AS j
        WHERE j.worker_id = w.id AND j.status = 'doing'::reconciler_engine.procrastinate_job_status
    ), '{}'::text[])
FROM reconciler_engine.procrastinate_workers AS w
LEFT JOIN reconciler_engine.daemons AS d ON d.worker_id = w.id
ORDER BY d.since, w.id

-- name: queue
-- The tasks of each queue: due, the age of the oldest due one in seconds, put off, and at work. Finished tasks are
-- deleted, so that the table holds no others.
SELECT
    j.queue_name AS queue,
    pg_catalog.count(*) FILTER (WHERE j.status = 'todo'::reconciler_engine.procrastinate_job_status AND is_due) AS due,
    coalesce(pg_catalog.max(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - since)::double precision) FILTER (
        WHERE j.status = 'todo'::reconciler_engine.procrastinate_job_status AND is_due
    ), 0::double precision) AS oldest_seconds,
    pg_catalog.count(*) FILTER (WHERE j.status = 'todo'::reconciler_engine.procrastinate_job_status AND NOT is_due) AS put_off,
    pg_catalog.count(*) FILTER (WHERE j.status = 'doing'::reconciler_engine.procrastinate_job_status) AS at_work
FROM reconciler_engine.procrastinate_jobs AS j
CROSS JOIN LATERAL (
    SELECT
        coalesce(j.scheduled_at <= pg_catalog.clock_timestamp(), true) AS is_due,
        greatest(
            j.scheduled_at,
            (SELECT pg_catalog.max(e.at) FROM reconciler_engine.procrastinate_events AS e WHERE e.job_id = j.id)
        ) AS since
) AS seen
GROUP BY j.queue_name
ORDER BY j.queue_name

-- name: pending
-- The tasks of these jobs. A task that was put off is due later.
SELECT
    j.queueing_lock AS name,
    j.status = 'doing'::reconciler_engine.procrastinate_job_status AS is_at_work,
    j.status = 'todo'::reconciler_engine.procrastinate_job_status
    AND coalesce(j.scheduled_at > pg_catalog.clock_timestamp(), false) AS is_put_off
FROM reconciler_engine.procrastinate_jobs AS j
WHERE j.queueing_lock = ANY (%(names)s::text[])
    AND j.status = ANY ('{todo,doing}'::reconciler_engine.procrastinate_job_status[])

-- name: forget_put_off
-- Delete the tasks that were put off.
DELETE FROM reconciler_engine.procrastinate_jobs AS j
WHERE j.status = 'todo'::reconciler_engine.procrastinate_job_status AND j.scheduled_at > pg_catalog.clock_timestamp()
RETURNING j.queueing_lock AS name

-- name: sign_of_life
-- A worker that was silent for too long, and forgotten, is known again by the same number.
WITH alive AS (
    INSERT INTO reconciler_engine.procrastinate_workers AS w (id, last_heartbeat)
    OVERRIDING SYSTEM VALUE VALUES (%(worker_id)s, pg_catalog.clock_timestamp())
    ON CONFLICT (id) DO UPDATE SET last_heartbeat = EXCLUDED.last_heartbeat
    RETURNING w.id
)
INSERT INTO reconciler_engine.daemons AS d (worker_id, host, process, since, slots, hot_at)
SELECT id, %(host)s, %(process)s, %(since)s, %(slots)s, %(hot_at)s::timestamptz FROM alive
ON CONFLICT (worker_id) DO UPDATE SET hot_at = EXCLUDED.hot_at

-- name: last_hot
SELECT pg_catalog.max(hot_at) AS at FROM reconciler_engine.daemons

-- name: withdraw
-- Delete tasks that no worker has taken yet.
DELETE FROM reconciler_engine.procrastinate_jobs AS j
WHERE j.status = 'todo'::reconciler_engine.procrastinate_job_status AND pg_catalog.starts_with(j.queueing_lock, %(prefix)s)

-- name: listen
-- procrastinate's trigger notifies this channel of each new task in the queue of bulk work.
LISTEN "procrastinate_queue_v1#bulk"

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

-- name: objects
-- The objects of the schema, each as `kind name`.
SELECT CASE c.relkind::text WHEN 'r'::text THEN 'table '::text ELSE 'index '::text END || c.relname::text
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname::text = 'reconciler_engine'::text AND c.relkind::text = ANY ('{r,i}'::text[])
UNION ALL
SELECT 'function '::text || p.proname::text
FROM pg_catalog.pg_proc AS p
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname::text = 'reconciler_engine'::text
UNION ALL
SELECT 'type '::text || t.typname::text
FROM pg_catalog.pg_type AS t
JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
WHERE n.nspname::text = 'reconciler_engine'::text
UNION ALL
SELECT 'trigger '::text || g.tgname::text
FROM pg_catalog.pg_trigger AS g
JOIN pg_catalog.pg_class AS c ON c.oid = g.tgrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname::text = 'reconciler_engine'::text AND g.tgenabled::text <> 'D'::text

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
    AND (c.relname::text <> 'applied_files'::text OR needed.privilege = 'SELECT'::text)
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
-- The daemons that work, oldest first: who, since when, how many runs at once, seconds since the last sign of life, and
-- the names of the runs under way.
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
-- The tasks of each queue: those that are due, the age of the oldest of these in seconds, those put off, and those at
-- work. Finished tasks are deleted, so that the table holds no others.
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

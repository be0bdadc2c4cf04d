-- A job's place in its work, one row a job (and account).

-- name: read_cursor
SELECT cursor, cursor::text FROM sync_state WHERE job_name = %(job)s

-- name: cursors_of_kind
-- The cursors of one kind of job: one of the main account, and one of each other account.
SELECT cursor FROM sync_state WHERE pg_catalog.split_part(job_name, ':', 1) = %(kind)s

-- name: set_cursor
-- Runs in the transaction of the rows the cursor speaks of.
INSERT INTO sync_state (job_name, cursor, updated_at)
VALUES (%(job)s, %(cursor)s, %(now)s)
ON CONFLICT (job_name) DO UPDATE SET cursor = EXCLUDED.cursor, updated_at = EXCLUDED.updated_at

-- name: move_cursor
-- As set_cursor, but only from where it is expected to be: a process that was stopped while another took its place
-- must not set the cursor back. No row: the job never ran.
INSERT INTO sync_state AS s (job_name, cursor, updated_at)
VALUES (%(job)s, %(cursor)s, %(now)s)
ON CONFLICT (job_name) DO UPDATE SET cursor = EXCLUDED.cursor, updated_at = EXCLUDED.updated_at
WHERE s.cursor = coalesce(%(expected)s::jsonb, '{}')
    -- Also where it is to go already: the commit whose answer was lost was ours.
    OR s.cursor = EXCLUDED.cursor

-- name: record_success
INSERT INTO sync_state (job_name, last_success_at, updated_at)
VALUES (%(job)s, %(now)s, %(now)s)
ON CONFLICT (job_name) DO UPDATE SET last_success_at = EXCLUDED.last_success_at, updated_at = EXCLUDED.updated_at

-- name: record_failure
INSERT INTO sync_state (job_name, last_error_at, last_error, updated_at)
VALUES (%(job)s, %(now)s, %(error)s, %(now)s)
ON CONFLICT (job_name) DO UPDATE SET
    last_error_at = EXCLUDED.last_error_at, last_error = EXCLUDED.last_error, updated_at = EXCLUDED.updated_at
RETURNING last_success_at

-- name: keep_leaders_word
-- What only the daemon that leads knows: whom it waits for, when its jobs run next. Who reads it believes it only
-- while that server process (`backend`) holds the lock of the leader.
INSERT INTO sync_state (job_name, cursor, updated_at)
VALUES (%(job)s, %(word)s, %(now)s)
ON CONFLICT (job_name) DO UPDATE SET cursor = EXCLUDED.cursor, updated_at = EXCLUDED.updated_at

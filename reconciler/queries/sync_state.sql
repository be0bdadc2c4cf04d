-- A job's place in its work, one row a job (and account).

-- name: read_cursor
SELECT cursor FROM sync_state WHERE job_name = %(job)s

-- name: save_cursor
-- Runs in the transaction of the rows the cursor speaks of.
INSERT INTO sync_state (job_name, cursor, updated_at)
VALUES (%(job)s, %(cursor)s, %(now)s)
ON CONFLICT (job_name) DO UPDATE SET cursor = EXCLUDED.cursor, updated_at = EXCLUDED.updated_at

-- name: record_success
INSERT INTO sync_state (job_name, last_success_at, updated_at)
VALUES (%(job)s, %(now)s, %(now)s)
ON CONFLICT (job_name) DO UPDATE SET last_success_at = EXCLUDED.last_success_at, updated_at = EXCLUDED.updated_at

-- name: record_failure
INSERT INTO sync_state (job_name, last_error_at, last_error, updated_at)
VALUES (%(job)s, %(now)s, %(error)s, %(now)s)
ON CONFLICT (job_name) DO UPDATE SET
    last_error_at = EXCLUDED.last_error_at, last_error = EXCLUDED.last_error, updated_at = EXCLUDED.updated_at

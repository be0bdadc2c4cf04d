-- The cursor and the last run of each job: one row for each job and account.

-- name: read_cursor
SELECT cursor FROM sync_state WHERE job_name = %(job)s

-- name: cursors_of_kind
-- The cursors of one kind of job: one for the main account, and one for each other account.
SELECT cursor FROM sync_state WHERE pg_catalog.split_part(job_name, ':', 1) = %(kind)s

-- name: set_cursor
-- Runs in the same transaction as the rows that the cursor covers.
INSERT INTO sync_state (job_name, cursor, updated_at)
VALUES (%(job)s, %(cursor)s, %(now)s)
ON CONFLICT (job_name) DO UPDATE SET cursor = EXCLUDED.cursor, updated_at = EXCLUDED.updated_at

-- name: take_over
-- Begin a run: from now on no transaction of an earlier run can move the cursor. This waits for one that has moved it and
-- not committed yet.
INSERT INTO sync_state AS s (job_name, term) VALUES (%(job)s, 1)
ON CONFLICT (job_name) DO UPDATE SET term = s.term + 1
RETURNING term, cursor::text

-- name: move_cursor
-- As set_cursor, but only for the run that took the job over last, and from one of the expected values (Hold.cursors).
-- The row stays locked until the commit.
UPDATE sync_state SET cursor = %(cursor)s, updated_at = %(now)s
WHERE job_name = %(job)s AND term = %(term)s AND cursor = ANY(%(expected)s::jsonb[])

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

-- name: note_first_look
-- Since when this installation looks after an account: written by the first run, and never again. An older version
-- left no such note: where it worked for the account, its first event tells. Twilio's times are whole seconds.
--
-- Cost: once for each account of an older version, one read of the index on source and created_at for each source.
-- Without that index (migration 018) every event was written by a version that left the note first.
INSERT INTO sync_state (job_name, cursor, updated_at)
SELECT
    %(job)s,
    pg_catalog.jsonb_build_object('since', pg_catalog.date_trunc('second', coalesce((
        SELECT pg_catalog.min(e.created_at)
        FROM pg_catalog.unnest(%(sources)s::text[]) AS s (source)
        CROSS JOIN LATERAL (
            SELECT created_at FROM call_events WHERE source = s.source ORDER BY created_at LIMIT 1
        ) AS e
        WHERE EXISTS (
            SELECT FROM sync_state
            WHERE cursor ->> 'account'::text = %(account_sid)s OR job_name = 'backfill:' || %(account_sid)s::text
        )
    ), %(now)s))),
    %(now)s
ON CONFLICT (job_name) DO NOTHING

-- name: first_looks
-- Since when which account is looked after.
SELECT pg_catalog.split_part(job_name, ':', 2), cursor FROM sync_state WHERE pg_catalog.split_part(job_name, ':', 1) = 'account'

-- name: save_leaders_note
-- Save the leader's note: the outage it waits out, and when its jobs run next. The note is valid only while the server
-- process `backend` holds the leader's lock.
INSERT INTO sync_state (job_name, cursor, updated_at)
VALUES (%(lock)s, %(note)s, %(now)s)
ON CONFLICT (job_name) DO UPDATE SET cursor = EXCLUDED.cursor, updated_at = EXCLUDED.updated_at

-- name: progress_of
-- The cursors and errors of these jobs: the slices of a backfill that workers read.
SELECT job_name, cursor, last_error FROM sync_state WHERE job_name = ANY (%(names)s::text[])

-- name: forget_jobs
-- Delete the rows of these jobs: slices that a backfill has counted.
DELETE FROM sync_state WHERE job_name = ANY (%(names)s::text[])

-- name: forget_slices
-- Delete what an earlier backfill of the account left of its slices.
DELETE FROM sync_state
WHERE pg_catalog.starts_with(job_name, 'backfill:'::text || %(account_sid)s::text || ':'::text)
    AND job_name <> 'backfill:'::text || %(account_sid)s::text || ':fleet'::text

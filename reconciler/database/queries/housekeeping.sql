-- The sizes of the tables, and the deletion of old webhooks and events.

-- name: measure
-- Tables with their indexes, in bytes.
SELECT name, pg_catalog.pg_total_relation_size(name::regclass)
FROM pg_catalog.unnest(%(tables)s::text[]) WITH ORDINALITY AS asked (name, place)
ORDER BY place

-- name: prune_inbox
-- Delete a batch of the oldest completed webhooks, from the time `place` on. Return how many were deleted, and the time
-- of the newest of the batch; null if the batch was empty.
--
-- Deleted rows stay in the index until VACUUM, and while an older snapshot is open they cannot even be marked as dead. A
-- batch that began at the oldest row would step over all rows of the batches before it. MATERIALIZED: the planner must
-- not choose the rows of a batch twice.
--
-- Cost: reads webhook_inbox_completed from `place` on.
WITH oldest AS MATERIALIZED (
    SELECT id, received_at FROM twilio_webhook_inbox
    WHERE processing_status = 'completed' AND received_at >= %(place)s AND received_at < %(before)s
    ORDER BY received_at
    LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED
),
deleted AS (
    DELETE FROM twilio_webhook_inbox AS i USING oldest WHERE i.id = oldest.id
    RETURNING i.received_at
)
SELECT pg_catalog.count(*), pg_catalog.max(received_at) FROM deleted

-- name: open_retention
-- The trigger that keeps call_events append-only (sql/014) lets this transaction delete.
SELECT pg_catalog.set_config('reconciler.retention', 'on', true)

-- name: prune_events
-- Look at a batch of the events behind the id `place`, and delete those that were written before `before`. Events of a
-- call that is not frozen stay: a source may tell a fact again, and by its dedupe_key the merge knows the event.
-- Return how many were deleted, and the last id of the batch; null if the batch has no event that old.
--
-- Ids grow with the time of writing, up to transactions that run at once. The order of ids therefore needs no index of
-- its own, and a batch begins where the one before ended, see prune_inbox.
--
-- Cost: reads call_events_pkey from `place` on, and messages_twilio_sid_key once for each event.
WITH oldest AS MATERIALIZED (
    -- In the Viewer's table created_at may be null.
    SELECT id, call_sid::text AS call_sid, coalesce(created_at, event_time) < %(before)s AS is_old
    FROM call_events
    WHERE id > %(place)s
    ORDER BY id
    LIMIT %(batch)s
),
deleted AS (
    DELETE FROM call_events AS e
    USING oldest
    WHERE e.id = oldest.id AND oldest.is_old AND NOT EXISTS (
        SELECT FROM messages AS m WHERE m.twilio_sid::text = oldest.call_sid AND m.sync_state <> 'frozen'
        OFFSET 0
    )
    RETURNING 1
)
SELECT
    (SELECT pg_catalog.count(*) FROM deleted),
    CASE WHEN pg_catalog.bool_or(is_old) THEN pg_catalog.max(id) END
FROM oldest

-- name: close_retention
SELECT pg_catalog.set_config('reconciler.retention', 'off', true)

-- The sizes of the tables, and the deletion of old webhooks.

-- name: measure
-- Tables with their indexes, in bytes.
SELECT name, pg_catalog.pg_total_relation_size(name::regclass)
FROM pg_catalog.unnest(%(tables)s::text[]) WITH ORDINALITY AS asked (name, place)
ORDER BY place

-- name: prune_inbox
-- Delete the oldest completed webhooks. MATERIALIZED: the planner must not choose the rows of a batch twice.
--
-- Cost: reads webhook_inbox_completed, which loses the rows that go.
WITH oldest AS MATERIALIZED (
    SELECT id FROM twilio_webhook_inbox
    WHERE processing_status = 'completed' AND received_at < %(received_before)s
    ORDER BY received_at
    LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED
)
DELETE FROM twilio_webhook_inbox AS i USING oldest WHERE i.id = oldest.id

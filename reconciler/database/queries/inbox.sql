-- The webhook inbox. It also holds the dead letters: records and webhooks that could not be read.

-- name: keep_dead_letter
-- Keep a record that cannot be read, with the reason. The same record is kept only once.
INSERT INTO twilio_webhook_inbox (
    source, event_type, call_sid, dedupe_key, payload, received_at, processed_at, processing_status, error
)
VALUES (
    'twilio_rest', 'call-record', %(call_sid)s, %(dedupe_key)s, pg_catalog.jsonb_build_object('record', %(record)s::text),
    %(now)s, %(now)s, 'dead_letter', %(reason)s
)
ON CONFLICT (dedupe_key) DO NOTHING

-- name: has_letter
-- Whether the record is kept: after a conflict it is, after a trigger that returns NULL it is not.
SELECT EXISTS (SELECT FROM twilio_webhook_inbox WHERE dedupe_key::text = %(dedupe_key)s)

-- name: keep_for_retry
-- Keep a record that could not be written because another session holds its row; claim_failed claims it later. A newer
-- record of the same call becomes another row only if it differs.
INSERT INTO twilio_webhook_inbox (
    source, event_type, call_sid, dedupe_key, payload, received_at, processing_status, error
)
VALUES (
    'twilio_rest', 'call-record', %(call_sid)s, %(dedupe_key)s, pg_catalog.jsonb_build_object('record', %(record)s::text),
    %(now)s, 'failed', %(reason)s
)
ON CONFLICT (dedupe_key) DO UPDATE SET
    processing_status = 'failed', received_at = EXCLUDED.received_at, retry_count = 0, error = EXCLUDED.error
WHERE twilio_webhook_inbox.processing_status <> 'failed'

-- name: put_off
-- Mark rows that could not be merged now as failed, each with its reason; claim_failed claims them later.
UPDATE twilio_webhook_inbox AS i
SET processing_status = 'failed', retry_count = i.retry_count + 1, error = p.reason
FROM unnest(%(ids)s::bigint[], %(reasons)s::text[]) AS p (id, reason)
WHERE i.id = p.id

-- name: claim_due
-- Claim the oldest webhooks that the Viewer's worker left: pending for longer than the grace, or stuck in processing.
-- They stay locked until our commit settles them. Other workers skip locked rows, and so do we.
--
-- The table does not say when a row was claimed, only when it was received. For a worker that is behind, `stuck_before`
-- (grace and a minute before now) can therefore be too early. Then both merge the same webhook, the second merge
-- changes nothing, and the row ends completed either way. A longer wait would only delay the rows of a dead worker.
--
-- Cost: both parts read webhook_inbox_unprocessed, which holds no settled row.
WITH dated AS (
    SELECT id FROM twilio_webhook_inbox
    WHERE processing_status IN ('pending', 'processing')
        AND received_at < %(pending_before)s
        AND (processing_status = 'pending' OR received_at < %(stuck_before)s)
    ORDER BY received_at
    LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED
),
undated AS (
    -- In the Viewer's table received_at may be null or in the future. Such a row has no age, and is due at once.
    SELECT id FROM twilio_webhook_inbox
    WHERE processing_status IN ('pending', 'processing')
        AND (received_at IS NULL OR received_at > %(now)s + interval '1 day')
    LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED
)
SELECT
    id, source, event_type, call_sid, recording_sid, payload::text,
    -- A time before Twilio existed, or after tomorrow, is no time of receipt. Python has no infinity and no year 20000.
    CASE WHEN received_at <= %(now)s + interval '1 day' AND received_at >= '2000-01-01 00:00:00+00'::timestamptz
        THEN received_at ELSE %(now)s END AS received_at,
    processing_status, retry_count, error
FROM twilio_webhook_inbox
WHERE id IN (SELECT id FROM dated UNION ALL SELECT id FROM undated)
ORDER BY received_at, id

-- name: claim_failed
-- Claim failed webhooks from the id `first` on. Each is due 2, 4, 8, ... minutes after it was received.
--
-- Cost: reads webhook_inbox_unsettled, which holds no completed row.
SELECT
    id, source, event_type, call_sid, recording_sid, payload::text,
    CASE WHEN received_at <= %(now)s + interval '1 day' AND received_at >= '2000-01-01 00:00:00+00'::timestamptz
        THEN received_at ELSE %(now)s END AS received_at,
    processing_status, retry_count, error
FROM twilio_webhook_inbox
WHERE id >= %(first)s
    AND processing_status = 'failed'
    AND (
        received_at IS NULL
        OR received_at > %(now)s + interval '1 day'
        OR retry_count >= %(max_tries)s
        OR received_at < %(now)s - interval '1 minute' * 2::float8 ^ least(greatest(retry_count, 0), %(max_tries)s)::float8
    )
ORDER BY id
LIMIT %(batch)s
FOR UPDATE SKIP LOCKED

-- name: claim_dead
-- Claim dead letters from the id `first` on.
--
-- Cost: reads webhook_inbox_unsettled.
SELECT
    id, source, event_type, call_sid, recording_sid, payload::text,
    CASE WHEN received_at <= %(now)s + interval '1 day' AND received_at >= '2000-01-01 00:00:00+00'::timestamptz
        THEN received_at ELSE %(now)s END AS received_at,
    processing_status, retry_count, error
FROM twilio_webhook_inbox
WHERE id >= %(first)s AND processing_status = 'dead_letter'
ORDER BY id
LIMIT %(batch)s
FOR UPDATE

-- name: claim_dead_by_id
SELECT
    id, source, event_type, call_sid, recording_sid, payload::text,
    CASE WHEN received_at <= %(now)s + interval '1 day' AND received_at >= '2000-01-01 00:00:00+00'::timestamptz
        THEN received_at ELSE %(now)s END AS received_at,
    processing_status, retry_count, error
FROM twilio_webhook_inbox
WHERE id = ANY(%(ids)s::bigint[]) AND processing_status = 'dead_letter'
ORDER BY id
FOR UPDATE

-- name: complete
UPDATE twilio_webhook_inbox
SET processing_status = 'completed', processed_at = %(now)s, error = NULL
WHERE id = ANY(%(ids)s::bigint[])

-- name: give_up
-- Keep rows as dead letters, each with its reason.
UPDATE twilio_webhook_inbox AS i
SET processing_status = 'dead_letter', processed_at = %(now)s, error = g.reason
FROM unnest(%(ids)s::bigint[], %(reasons)s::text[]) AS g (id, reason)
WHERE i.id = g.id

-- name: fill_answered_by
-- Fill answered_by from machine detection. Its webhook may come after the call's end, when the merge refuses the
-- observation because of its status (rule 3). A frozen row does not change (rule 7), and an existing value stays. Returns
-- the calls, each with the key of its event if that was not written.
WITH told AS (
    SELECT DISTINCT ON (call_sid) call_sid, answered_by, said_at
    FROM unnest(%(call_sids)s::text[], %(answers)s::text[], %(said_ats)s::timestamptz[]) AS t (call_sid, answered_by, said_at)
    ORDER BY call_sid, said_at DESC
),
held AS MATERIALIZED (
    SELECT m.twilio_sid, told.answered_by, told.said_at
    FROM told JOIN messages AS m ON m.twilio_sid::text = told.call_sid
    WHERE m.answered_by IS NULL AND m.sync_state <> 'frozen'
    -- All our writes use this order, so that two of them wait for one another instead of deadlocking.
    ORDER BY m.twilio_sid
    FOR UPDATE OF m
),
filled AS (
    UPDATE messages AS m SET answered_by = held.answered_by, updated_at = %(now)s
    FROM held
    WHERE m.twilio_sid::text = held.twilio_sid::text
    RETURNING
        m.twilio_sid, m.status, m.answered_by, held.said_at, m.twilio_sid::text || ':answered_by:' || m.answered_by AS dedupe_key
),
recorded AS (
    INSERT INTO call_events (
        call_sid, event_type, event_status, event_time, created_at, source, run_id, payload, dedupe_key
    )
    SELECT
        twilio_sid, 'call.enriched', status, said_at, %(now)s, %(source)s, %(run_id)s,
        pg_catalog.jsonb_build_object('answered_by', answered_by), dedupe_key
    FROM filled
    ON CONFLICT DO NOTHING
    RETURNING dedupe_key
)
SELECT twilio_sid, CASE WHEN dedupe_key NOT IN (SELECT r.dedupe_key FROM recorded AS r) THEN dedupe_key END FROM filled

-- name: backlog
-- The number of due webhooks, and the age of the oldest in seconds; null if none is due.
--
-- Cost: reads webhook_inbox_unprocessed.
SELECT pg_catalog.count(*), extract(epoch FROM %(now)s - pg_catalog.min(greatest(received_at, timestamptz '2000-01-01 00:00:00+00')))::float8
FROM twilio_webhook_inbox
WHERE processing_status IN ('pending', 'processing')
    AND received_at < %(pending_before)s
    AND (processing_status = 'pending' OR received_at < %(stuck_before)s)

-- name: count_unsettled
-- The number of unsettled webhooks by status.
--
-- Cost: the first part reads webhook_inbox_unprocessed, the second webhook_inbox_unsettled; they hold no other rows.
SELECT processing_status, pg_catalog.count(*) FROM twilio_webhook_inbox
WHERE processing_status IN ('pending', 'processing')
GROUP BY 1
UNION ALL
SELECT processing_status, pg_catalog.count(*) FROM twilio_webhook_inbox
WHERE processing_status IN ('failed', 'dead_letter')
GROUP BY 1

-- name: list_dead_letters
-- The newest dead letters. to_json writes an ISO time and accepts an infinite one.
--
-- Cost: reads webhook_inbox_unsettled.
SELECT id, pg_catalog.to_json(received_at) #>> '{}'::text[], source, event_type, call_sid, error
FROM twilio_webhook_inbox
WHERE processing_status = 'dead_letter'
ORDER BY id DESC
LIMIT %(limit)s

-- name: count_dead_letters
-- Cost: reads webhook_inbox_unsettled.
SELECT pg_catalog.count(*) FROM twilio_webhook_inbox WHERE processing_status = 'dead_letter'

-- name: find
SELECT
    id, pg_catalog.to_json(received_at) #>> '{}'::text[] AS received_at, pg_catalog.to_json(processed_at) #>> '{}'::text[] AS processed_at, source, event_type,
    call_sid, recording_sid, processing_status, retry_count, error AS reason, payload::text
FROM twilio_webhook_inbox
WHERE id = %(id)s

-- name: not_dead
-- The ids among the given ones that are no dead letters.
SELECT asked.id
FROM pg_catalog.unnest(%(ids)s::bigint[]) AS asked (id)
WHERE NOT EXISTS (
    SELECT FROM twilio_webhook_inbox AS i WHERE i.id = asked.id AND i.processing_status = 'dead_letter'
)
ORDER BY asked.id

-- A frozen call opened by a person; the three run in one transaction.

-- name: open_door
-- The guard of frozen rows (sql/007) lets this transaction through.
SELECT set_config('reconciler.thaw', 'on', true)

-- name: thaw
-- Nothing that was observed so far counts as newer than what Twilio says now.
WITH thawed AS (
    UPDATE messages SET sync_state = 'active', observed_at = NULL, updated_at = %(now)s
    WHERE twilio_sid = %(call_sid)s AND sync_state = 'frozen'
    RETURNING twilio_sid, status
),
recorded AS (
    INSERT INTO call_events (
        call_sid, event_type, event_status, event_time, created_at, source, run_id, payload, dedupe_key
    )
    SELECT
        twilio_sid, 'call.thawed', status, %(now)s, %(now)s, %(source)s, %(run_id)s,
        jsonb_build_object('reason', 'thawed by a person'), twilio_sid || ':thawed:' || extract(epoch FROM %(now)s)
    FROM thawed
    ON CONFLICT (dedupe_key) WHERE dedupe_key IS NOT NULL DO NOTHING
)
SELECT twilio_sid FROM thawed

-- name: close_door
SELECT set_config('reconciler.thaw', 'off', true)

-- A person thaws a frozen call. The three statements run in one transaction.

-- name: open_door
-- Make the guard of frozen rows (sql/007) let this transaction through.
SELECT pg_catalog.set_config('reconciler.thaw', 'on', true)

-- name: thaw
-- Open a frozen row: Twilio's next record counts as newer than every observation so far. The event holds the row as it was,
-- because the event of a call that was inserted as frozen does not. Returns the call, and the key of its event if that was
-- not written.
WITH thawed AS (
    UPDATE messages SET sync_state = 'active', observed_at = NULL, updated_at = %(now)s
    WHERE twilio_sid::text = %(call_sid)s AND sync_state = 'frozen'
    RETURNING
        twilio_sid, status, parent_call_sid, from_number, to_number, duration, price, price_unit,
        start_time AT TIME ZONE 'UTC' AS start_time, end_time AT TIME ZONE 'UTC' AS end_time, answered_by,
        other_fields, twilio_sid::text || ':thawed:' || extract(epoch FROM %(now)s)::text AS dedupe_key
),
recorded AS (
    INSERT INTO call_events (
        call_sid, event_type, event_status, event_time, created_at, source, run_id, payload, dedupe_key
    )
    SELECT
        twilio_sid, 'call.thawed', status, %(now)s, %(now)s, %(source)s, %(run_id)s,
        coalesce(other_fields, '{}'::jsonb) || pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
            'reason', 'thawed by a person',
            'status', status,
            'parent_call_sid', parent_call_sid,
            'from_number', nullif(from_number, ''),
            'to_number', nullif(to_number, ''),
            'duration', duration,
            'price', price,
            'price_unit', price_unit,
            'start_time', start_time,
            'end_time', end_time,
            'answered_by', answered_by
        )),
        dedupe_key
    FROM thawed
    ON CONFLICT DO NOTHING
    RETURNING dedupe_key
)
SELECT twilio_sid, CASE WHEN dedupe_key NOT IN (SELECT r.dedupe_key FROM recorded AS r) THEN dedupe_key END FROM thawed

-- name: close_door
SELECT pg_catalog.set_config('reconciler.thaw', 'off', true)

-- The rows that the demonstration compares with Twilio: columns of `rows` and fields of demo.compare.Row are the same.

-- name: rows
SELECT
    twilio_sid, account_sid, parent_call_sid, direction, status,
    nullif(from_number, '') AS from_number, nullif(to_number, '') AS to_number,
    duration, price, price_unit,
    start_time AT TIME ZONE 'UTC' AS start_time, end_time AT TIME ZONE 'UTC' AS end_time,
    answered_by, date_created, other_fields
FROM messages

-- name: count_frozen
SELECT count(*) FROM messages WHERE sync_state = 'frozen'

-- name: events
SELECT event_type, count(*) FROM call_events GROUP BY event_type

-- name: statuses
SELECT twilio_sid, status FROM messages WHERE twilio_sid = ANY (%(sids)s)

-- The webhook inbox: what could not be read waits here for a person.

-- name: bury
-- A record that cannot be read, kept with its reason. The same record met again is not kept twice.
INSERT INTO twilio_webhook_inbox (
    source, event_type, call_sid, dedupe_key, payload, received_at, processed_at, processing_status, error
)
VALUES (
    'twilio_rest', 'call-record', %(call_sid)s, %(dedupe_key)s, jsonb_build_object('record', %(record)s::text),
    %(now)s, %(now)s, 'dead_letter', %(reason)s
)
ON CONFLICT (dedupe_key) DO NOTHING

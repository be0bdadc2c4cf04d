-- 001: the queue that webhooks arrive in.
--
-- In the field the Viewer's own script may have made the table; then this file changes nothing. source and event_type
-- have no CHECK: besides the Viewer's values there are dead letters of the REST API, records that could not be read
-- (source 'twilio_rest', event_type 'call-record').
--
-- lock: none that a writer could meet

CREATE TABLE IF NOT EXISTS twilio_webhook_inbox (
    id                bigserial PRIMARY KEY,
    source            text NOT NULL,                    -- twilio_voice, twilio_recording, twilio_rest
    event_type        text NOT NULL,                    -- call-status, call-inbound, dial-action, recording-complete
    call_sid          varchar(100),
    recording_sid     varchar(100),
    dedupe_key        varchar(255) NOT NULL UNIQUE,     -- the same webhook delivered twice is one row
    payload           jsonb NOT NULL,
    received_at       timestamptz DEFAULT now(),
    processed_at      timestamptz,
    processing_status text NOT NULL DEFAULT 'pending'   -- pending -> processing -> completed / failed -> dead_letter
        CHECK (processing_status IN ('pending', 'processing', 'completed', 'failed', 'dead_letter')),
    error             text,
    retry_count       integer NOT NULL DEFAULT 0
);

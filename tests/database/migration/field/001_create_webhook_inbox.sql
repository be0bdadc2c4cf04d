-- The Viewer's own 001: fails when it is run again.
CREATE TABLE twilio_webhook_inbox (
    id BIGSERIAL PRIMARY KEY,
    source TEXT NOT NULL, -- 'twilio_voice', 'twilio_recording'
    event_type TEXT NOT NULL, -- 'call-status', 'call-inbound', 'dial-action', 'recording-complete'
    call_sid VARCHAR(100),
    recording_sid VARCHAR(100),
    dedupe_key VARCHAR(255) UNIQUE NOT NULL,
    payload JSONB NOT NULL,
    received_at TIMESTAMPTZ DEFAULT NOW(),
    processed_at TIMESTAMPTZ,
    processing_status TEXT NOT NULL DEFAULT 'pending',
    error TEXT,
    retry_count INTEGER NOT NULL DEFAULT 0
);

CREATE INDEX idx_inbox_status ON twilio_webhook_inbox(processing_status, received_at);
CREATE INDEX idx_inbox_call_sid ON twilio_webhook_inbox(call_sid) WHERE call_sid IS NOT NULL;

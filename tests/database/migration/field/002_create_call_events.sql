-- The Viewer's own 002: fails when it is run again.
CREATE TABLE call_events (
    id BIGSERIAL PRIMARY KEY,
    call_sid VARCHAR(100) NOT NULL,
    event_type TEXT NOT NULL,
    event_status TEXT,
    event_time TIMESTAMPTZ NOT NULL,
    created_at TIMESTAMPTZ DEFAULT NOW(),
    source TEXT NOT NULL,
    payload JSONB NOT NULL
);

CREATE INDEX idx_events_call_time ON call_events(call_sid, event_time DESC);
CREATE INDEX idx_events_type_time ON call_events(event_type, event_time DESC);
CREATE INDEX idx_events_created ON call_events(created_at);
CREATE INDEX idx_events_source ON call_events(source, created_at);

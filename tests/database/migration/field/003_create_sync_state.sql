-- The Viewer's own 003.
CREATE TABLE IF NOT EXISTS sync_state (
    job_name TEXT PRIMARY KEY,
    cursor JSONB NOT NULL DEFAULT '{}',
    last_success_at TIMESTAMPTZ,
    last_error_at TIMESTAMPTZ,
    last_error TEXT,
    updated_at TIMESTAMPTZ DEFAULT NOW()
);

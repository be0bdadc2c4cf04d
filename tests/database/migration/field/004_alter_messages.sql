-- The Viewer's own 004: every old row says is_final = false afterwards.
ALTER TABLE messages ADD COLUMN IF NOT EXISTS updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW();
ALTER TABLE messages ADD COLUMN IF NOT EXISTS last_event_time TIMESTAMPTZ;
ALTER TABLE messages ADD COLUMN IF NOT EXISTS is_final BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE messages ADD COLUMN IF NOT EXISTS finalized_at TIMESTAMPTZ;
ALTER TABLE messages ADD COLUMN IF NOT EXISTS sync_state TEXT NOT NULL DEFAULT 'active';

CREATE INDEX IF NOT EXISTS idx_messages_active ON messages(status, start_time) WHERE is_final = FALSE;
CREATE INDEX IF NOT EXISTS idx_messages_updated ON messages(updated_at);
CREATE INDEX IF NOT EXISTS idx_messages_parent ON messages(parent_call_sid) WHERE parent_call_sid IS NOT NULL;

CREATE OR REPLACE FUNCTION update_messages_updated_at()
RETURNS TRIGGER AS $$
BEGIN
    NEW.updated_at = NOW();
    RETURN NEW;
END;
$$ LANGUAGE plpgsql;

DROP TRIGGER IF EXISTS trigger_messages_updated_at ON messages;
CREATE TRIGGER trigger_messages_updated_at
    BEFORE UPDATE ON messages
    FOR EACH ROW
    EXECUTE FUNCTION update_messages_updated_at();

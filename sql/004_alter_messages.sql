-- 004: the columns of messages for updates by events: times of change and of the last event, and whether it is over.
--
-- In the field messages has millions of rows, and a backend writes to it. One statement adds the columns without a
-- rewrite: their defaults are not volatile, so PostgreSQL stores them once and not in each row. The Viewer's own script
-- may have added them, with a trigger and indexes of other names. Two triggers then set the same value.
--
-- lock: ACCESS EXCLUSIVE on messages for a moment; writers go on while the indexes are built
-- transaction: none

ALTER TABLE messages
    ADD COLUMN IF NOT EXISTS updated_at      timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS last_event_time timestamptz,
    ADD COLUMN IF NOT EXISTS is_final        boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS finalized_at    timestamptz,
    ADD COLUMN IF NOT EXISTS sync_state      text NOT NULL DEFAULT 'active';

CREATE OR REPLACE FUNCTION messages_touch_updated_at() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;

-- The trigger does not touch a statement that sets updated_at itself, nor 008, which only writes down what was true of
-- old rows all along. Its name sorts behind those of the guards in 007: triggers fire in the order of their names.
CREATE OR REPLACE TRIGGER messages_touch_updated_at
    BEFORE UPDATE ON messages
    FOR EACH ROW
    WHEN (NEW.updated_at IS NOT DISTINCT FROM OLD.updated_at
          AND current_setting('reconciler.keep_updated_at', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION messages_touch_updated_at();

-- Drop an index that a killed build left INVALID.
DO $$
DECLARE
    leftover regclass;
BEGIN
    FOR leftover IN
        SELECT x.indexrelid
        FROM pg_index AS x
        JOIN pg_class AS c ON c.oid = x.indexrelid
        WHERE x.indrelid = 'messages'::regclass
          AND NOT x.indisvalid
          AND c.relname IN ('idx_messages_active_calls', 'idx_messages_updated_at', 'idx_messages_parent_call_sid')
    LOOP
        EXECUTE format('DROP INDEX %s', leftover);
    END LOOP;
END
$$;

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_messages_active_calls
    ON messages (status, start_time) WHERE NOT is_final;
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_messages_updated_at ON messages (updated_at);
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_messages_parent_call_sid
    ON messages (parent_call_sid) WHERE parent_call_sid IS NOT NULL;

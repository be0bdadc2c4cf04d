-- Undoes 018: makes the three B-trees again, without blocking a writer, and drops the BRIN index.
--
-- An index that a killed build left INVALID is dropped first.
--
-- lock: SHARE UPDATE EXCLUSIVE on call_events while building; writers go on
-- transaction: none

DO $$
DECLARE
    leftover regclass;
BEGIN
    FOR leftover IN
        SELECT x.indexrelid
        FROM pg_index AS x
        JOIN pg_class AS c ON c.oid = x.indexrelid
        WHERE x.indrelid = to_regclass('call_events')
          AND NOT x.indisvalid
          AND c.relname IN ('idx_call_events_event_type', 'idx_call_events_created_at', 'idx_call_events_source')
    LOOP
        EXECUTE format('DROP INDEX %s', leftover);
    END LOOP;
END
$$;

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_call_events_event_type ON call_events (event_type, event_time DESC);
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_call_events_created_at ON call_events (created_at);
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_call_events_source ON call_events (source, created_at);
DROP INDEX CONCURRENTLY IF EXISTS call_events_created_at;

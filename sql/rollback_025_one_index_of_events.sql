-- Undoes 025: makes the two indexes again, without blocking a writer, and drops the one.
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
          AND c.relname IN ('idx_call_events_call_sid', 'call_events_dedupe_key')
    LOOP
        EXECUTE format('DROP INDEX %s', leftover);
    END LOOP;
END
$$;

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_call_events_call_sid ON call_events (call_sid, event_time DESC);
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS call_events_dedupe_key
    ON call_events (dedupe_key) WHERE dedupe_key IS NOT NULL;
DROP INDEX CONCURRENTLY IF EXISTS call_events_facts;

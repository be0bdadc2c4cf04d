-- 002: the log of each call's events; rows are added and never changed (011 enforces it).
--
-- In the field the Viewer's own script may have made the table, perhaps with other index names and millions of rows.
-- The indexes are therefore built CONCURRENTLY. An index that a killed build left INVALID is dropped first.
--
-- lock: SHARE UPDATE EXCLUSIVE on call_events while the indexes are built; writers go on
-- transaction: none

CREATE TABLE IF NOT EXISTS call_events (
    id           bigserial PRIMARY KEY,
    call_sid     varchar(100) NOT NULL,
    event_type   text NOT NULL,                         -- call.created, call.status_changed, recording.ready, ...
    event_status text,
    event_time   timestamptz NOT NULL,
    created_at   timestamptz DEFAULT now(),
    source       text NOT NULL,                         -- webhook, reconcile_hot, reconcile_warm, reconcile_cold, ...
    payload      jsonb NOT NULL
);

DO $$
DECLARE
    leftover regclass;
BEGIN
    FOR leftover IN
        SELECT x.indexrelid
        FROM pg_index AS x
        JOIN pg_class AS c ON c.oid = x.indexrelid
        WHERE x.indrelid = 'call_events'::regclass
          AND NOT x.indisvalid
          AND c.relname IN ('idx_call_events_call_sid', 'idx_call_events_event_type',
                            'idx_call_events_created_at', 'idx_call_events_source')
    LOOP
        EXECUTE format('DROP INDEX %s', leftover);
    END LOOP;
END
$$;

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_call_events_call_sid ON call_events (call_sid, event_time DESC);
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_call_events_event_type ON call_events (event_type, event_time DESC);
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_call_events_created_at ON call_events (created_at);
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_call_events_source ON call_events (source, created_at);

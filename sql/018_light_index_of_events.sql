-- 018: a new database keeps the times of its events in one BRIN index instead of three B-trees.
--
-- Events arrive in the order of created_at, so a BRIN index of a few pages finds the events since a moment. An event
-- then costs three index entries less. Nothing is changed where call_events has rows, and nothing where the Viewer made
-- the table: its indexes stay. A table of the Viewer's is older than the ledger, which `reconcile migrate` makes before
-- any table; PostgreSQL numbers objects in the order in which they are made. Without a ledger nothing is changed either.
--
-- lock: ACCESS EXCLUSIVE on call_events for a moment, if it is empty

DO $$
DECLARE
    ledger regclass := to_regclass('reconciler_migrations');
BEGIN
    IF ledger IS NULL OR ledger::oid > 'call_events'::regclass::oid OR EXISTS (SELECT FROM call_events) THEN
        RETURN;
    END IF;
    LOCK TABLE call_events IN ACCESS EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM call_events) THEN  -- another session was faster
        RETURN;
    END IF;
    DROP INDEX IF EXISTS idx_call_events_event_type, idx_call_events_created_at, idx_call_events_source;
    -- autosummarize: the newest events are found by the index as well, before the next VACUUM.
    CREATE INDEX IF NOT EXISTS call_events_created_at ON call_events USING brin (created_at) WITH (autosummarize = on);
END
$$;

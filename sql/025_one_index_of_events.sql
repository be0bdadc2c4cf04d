-- 025: a new database finds the events of a call, and tells each fact once, by one index instead of two.
--
-- `dedupe_key` begins with the call's SID, so an index on the SID and the rest of the key serves both. An event then costs
-- one index entry less. As in 018, nothing is changed where call_events has rows, nothing where the Viewer made the table,
-- and nothing without a ledger that is older than the table.
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
    CREATE UNIQUE INDEX IF NOT EXISTS call_events_facts
        ON call_events (call_sid, replace(dedupe_key, call_sid::text || ':', ''));
    DROP INDEX IF EXISTS call_events_dedupe_key, idx_call_events_call_sid;
END
$$;

-- 010: the indexes that the jobs read, and the unique index that keeps each event from being written twice.
--
-- In the field the tables have millions of rows, so the indexes are built CONCURRENTLY. An index that a killed build
-- left INVALID is dropped first. Old events have no dedupe_key and are not in its index: duplicates among them stay.
--
-- lock: SHARE UPDATE EXCLUSIVE on messages, call_events and the inbox while building; writers go on
-- transaction: none

DO $$
DECLARE
    leftover regclass;
BEGIN
    FOR leftover IN
        SELECT x.indexrelid
        FROM pg_index AS x
        JOIN pg_class AS c ON c.oid = x.indexrelid
        WHERE x.indrelid IN ('messages'::regclass, 'call_events'::regclass, 'twilio_webhook_inbox'::regclass)
          AND NOT x.indisvalid
          AND c.relname IN ('call_events_dedupe_key', 'messages_open', 'messages_unfrozen', 'webhook_inbox_unprocessed')
    LOOP
        EXECUTE format('DROP INDEX %s', leftover);
    END LOOP;
END
$$;

-- Each event is written once, however often its source is replayed.
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS call_events_dedupe_key
    ON call_events (dedupe_key) WHERE dedupe_key IS NOT NULL;

-- hot: the calls of an account that are still open.
CREATE INDEX CONCURRENTLY IF NOT EXISTS messages_open
    ON messages (account_sid, start_time) WHERE NOT is_final AND gone_at IS NULL;

-- warm and freeze: calls that ended and are not frozen.
CREATE INDEX CONCURRENTLY IF NOT EXISTS messages_unfrozen
    ON messages (finalized_at) WHERE is_final AND sync_state <> 'frozen';

-- inbox: the oldest rows to claim, and those stuck in processing.
CREATE INDEX CONCURRENTLY IF NOT EXISTS webhook_inbox_unprocessed
    ON twilio_webhook_inbox (received_at) WHERE processing_status IN ('pending', 'processing');

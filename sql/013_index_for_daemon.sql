-- 013: the indexes that the daemon's jobs read.
--
-- In the field messages and the inbox have millions of rows, so the indexes are built CONCURRENTLY. An index that a
-- killed build left INVALID is dropped first.
--
-- lock: SHARE UPDATE EXCLUSIVE on messages and the twilio_webhook_inbox while building; writers go on
-- transaction: none

DO $$
DECLARE
    leftover regclass;
BEGIN
    FOR leftover IN
        SELECT x.indexrelid
        FROM pg_index AS x
        JOIN pg_class AS c ON c.oid = x.indexrelid
        WHERE x.indrelid IN ('messages'::regclass, 'twilio_webhook_inbox'::regclass)
          AND NOT x.indisvalid
          AND c.relname IN ('messages_account_time', 'messages_freezable', 'webhook_inbox_unsettled',
                            'webhook_inbox_completed')
    LOOP
        EXECUTE format('DROP INDEX %s', leftover);
    END LOOP;
END
$$;

-- cold: the calls of an account and day. warm: the number of calls that the listing of a window will have.
CREATE INDEX CONCURRENTLY IF NOT EXISTS messages_account_time
    ON messages (account_sid, (coalesce(start_time AT TIME ZONE 'UTC', date_created)));

-- freeze: ended calls that wait only for their deadline.
CREATE INDEX CONCURRENTLY IF NOT EXISTS messages_freezable
    ON messages (finalized_at)
    WHERE is_final AND sync_state <> 'frozen' AND (observed_via = 'rest' OR gone_at IS NOT NULL);

-- inbox: failed rows and dead letters, without the millions of completed rows.
CREATE INDEX CONCURRENTLY IF NOT EXISTS webhook_inbox_unsettled
    ON twilio_webhook_inbox (id) WHERE processing_status IN ('failed', 'dead_letter');

-- housekeeping: the oldest completed rows.
CREATE INDEX CONCURRENTLY IF NOT EXISTS webhook_inbox_completed
    ON twilio_webhook_inbox (received_at) WHERE processing_status = 'completed';

-- Undoes 020: drops the index of unfrozen calls, and makes messages_open as 010 did, without blocking a writer.
--
-- lock: SHARE UPDATE EXCLUSIVE on messages while building; ACCESS EXCLUSIVE on the old index for a moment
-- transaction: none

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
          AND c.relname IN ('messages_open', 'messages_open_old')
    LOOP
        EXECUTE format('DROP INDEX %s', leftover);
    END LOOP;
END
$$;

DROP INDEX CONCURRENTLY IF EXISTS messages_unfrozen_account;

CREATE INDEX CONCURRENTLY IF NOT EXISTS messages_open_old
    ON messages (account_sid, start_time) WHERE NOT is_final AND gone_at IS NULL;
DROP INDEX CONCURRENTLY IF EXISTS messages_open;
ALTER INDEX messages_open_old RENAME TO messages_open;

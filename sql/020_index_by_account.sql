-- 020: indexes for hot and warm that only their own conditions fit, so that a run reads the calls of its account alone.
--
-- In the field idx_messages_active_calls holds every open call under the condition `NOT is_final`, and messages_open had
-- the same condition. By statistics from an hour in which nobody talked PostgreSQL took the first, and hot read the open
-- calls of all accounts for each account. An open row has no finalized_at (constraint messages_final_agrees), and
-- messages_open says so now. The new index is built beside the old one, and takes its name when the old one is gone.
--
-- lock: SHARE UPDATE EXCLUSIVE on messages while building; ACCESS EXCLUSIVE on the old index for a moment
-- transaction: none

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
          AND c.relname IN ('messages_open', 'messages_open_new', 'messages_unfrozen_account')
    LOOP
        EXECUTE format('DROP INDEX %s', leftover);
    END LOOP;
END
$$;

-- hot: the calls of an account that are still open.
CREATE INDEX CONCURRENTLY IF NOT EXISTS messages_open_new
    ON messages (account_sid, start_time) WHERE finalized_at IS NULL AND gone_at IS NULL;
DROP INDEX CONCURRENTLY IF EXISTS messages_open;
ALTER INDEX messages_open_new RENAME TO messages_open;

-- warm: the calls of an account that ended and are not frozen. messages_unfrozen holds those of all accounts.
CREATE INDEX CONCURRENTLY IF NOT EXISTS messages_unfrozen_account
    ON messages (account_sid, finalized_at) WHERE finalized_at IS NOT NULL AND sync_state <> 'frozen';

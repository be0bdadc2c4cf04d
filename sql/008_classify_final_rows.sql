-- 008: is_final and finalized_at of rows that are older than these columns.
--
-- In the field 004 left every old row with is_final = false, and the Viewer's first reconciler sealed rows as final
-- whose status was not. This file corrects each row once, along the primary key, in small batches that commit one by
-- one. A writer waits for one batch at most, and a run after a killed one continues with the rows that are still wrong.
-- New rows cannot be wrong: 007 prevents it. updated_at stays, because nothing happened to these calls (a trigger of
-- the Viewer's own may move it).
--
-- lock: the rows of one batch, until it commits
-- transaction: none

DO $$
DECLARE
    batch_size CONSTANT integer := 1000;
    done_to    messages.id%TYPE;
    batch_end  messages.id%TYPE;
    last_id    messages.id%TYPE;
BEGIN
    -- Once 009 is valid it proves that nothing is left: a second run costs this look and no scan.
    IF EXISTS (SELECT FROM pg_constraint
               WHERE conrelid = 'messages'::regclass AND conname = 'messages_final_agrees' AND convalidated) THEN
        RETURN;
    END IF;

    SELECT min(id) - 1, max(id) INTO done_to, last_id FROM messages;
    WHILE done_to < last_id LOOP
        SELECT max(id) INTO batch_end
        FROM (SELECT id FROM messages WHERE id > done_to ORDER BY id LIMIT batch_size) AS batch;

        -- Both end with the batch: a row sealed by mistake is to be set right, and nothing happened to the call.
        PERFORM set_config('reconciler.thaw', 'on', true), set_config('reconciler.keep_updated_at', 'on', true);

        UPDATE messages
        SET is_final = true,
            finalized_at = coalesce(finalized_at,
                                    end_time AT TIME ZONE 'UTC',
                                    last_event_time,
                                    start_time AT TIME ZONE 'UTC' + make_interval(secs => coalesce(duration, 0)),
                                    created_at AT TIME ZONE 'UTC')
        WHERE id > done_to AND id <= batch_end
          AND call_status_is_final(status)
          AND (NOT is_final OR finalized_at IS NULL);

        UPDATE messages
        SET is_final = false,
            finalized_at = NULL,
            sync_state = CASE sync_state WHEN 'frozen' THEN 'active' ELSE sync_state END
        WHERE id > done_to AND id <= batch_end
          AND NOT call_status_is_final(status)
          AND (is_final OR finalized_at IS NOT NULL OR sync_state = 'frozen');

        COMMIT;
        done_to := batch_end;
    END LOOP;
END
$$;
